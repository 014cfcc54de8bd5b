"""Simulate quantization to 2 to 8 bits: without data, or calibrated and fitted on images.

Weights and inputs of all convolutions and linear layers are quantized, except inside torch's
attention, which reads its weights directly. Sources: DFQ (Nagel et al. 2019) for ranges and bias
correction without data; LSQ (Esser et al. 2020) for learned step sizes (`nn.quantized`); ZeroQ (Cai
et al. 2020) for the bits of each layer (`sensitivity`); AdaRound and QDrop for learned rounding
(`rounding`). Fine-tuning distills from the teacher.
"""

import copy
import math
from collections.abc import Iterable
from dataclasses import replace
from statistics import fmean

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from dreamstill.compression.config import InputRange, QuantizeConfig, Rounding
from dreamstill.compression.quantization.equalization import equalize, expected_inputs
from dreamstill.compression.quantization.moments import Moments
from dreamstill.compression.quantization.rounding import learn_rounding
from dreamstill.compression.quantization.sensitivity import mixed_bits, sensitivities
from dreamstill.distillation.finetune import finetune
from dreamstill.errors import TeacherError
from dreamstill.evaluation import check_same_function
from dreamstill.graph.batch_norm_folding import fold_batch_norm
from dreamstill.graph.modules import map_modules, plain_layers
from dreamstill.input_spec import InputSpec
from dreamstill.nn.copying import copy_network
from dreamstill.nn.hooks import probed_at_once, some_of, watched
from dreamstill.nn.quantized import Logarithm, QuantizedLayer, fake_quantize, input_grid
from dreamstill.progress import OnProgress
from dreamstill.teacher import Teacher

__all__ = [
    "QuantizeConfig",
    "check_plain",
    "quantize",
    "quantize_without_inputs",
]


KINDS = (nn.Conv1d, nn.Conv2d, nn.Linear)
"""Kinds of layers that are quantized."""
Ranges = dict[str, tuple[float, float]]
SHARES = [0.92**power for power in range(42)]
"""Shares of the range from least to largest to choose from, 1 to 0.03."""
MOST_ROUNDED = 2**14
"""Values of a layer's input in a batch that are rounded to choose the range."""


@torch.no_grad()
def observed_ranges(
    model: nn.Module, spec: InputSpec, images: Tensor, config: QuantizeConfig
) -> Ranges:
    """Return the input range of each layer over uint8 images (N, C, H, W), in order of the calls.

    The range of a layer that is called several times covers all calls.
    """
    chunks: list[Ranges] = []
    layers, device = plain_layers(model, KINDS), next(model.parameters()).device
    bits: dict[str, int] = {}

    def note(name: str, values: Tensor, output: Tensor) -> None:
        bits.setdefault(name, config.activation_bits)

    def look(name: str, values: Tensor, output: Tensor) -> None:
        low, high = _range(values.flatten().float(), config.calibration, bits[name])
        before = chunks[-1].get(name, (math.inf, -math.inf))
        chunks[-1][name] = min(before[0], low), max(before[1], high)

    with watched(layers, note):
        model(spec.encode(images[:1].to(device)))
    if config.first_last_bits and bits:
        bits |= dict.fromkeys(_first_and_last(bits), config.first_last_bits)
    with watched(layers, look):
        for part in images.split(probed_at_once(spec.shape)):
            chunks.append({})
            model(spec.encode(part.to(device)))
    ends = {name: tuple(zip(*(c[name] for c in chunks), strict=True)) for name in chunks[0]}
    if config.calibration is InputRange.MIN_MAX:
        return {name: (min(lows), max(highs)) for name, (lows, highs) in ends.items()}
    return {name: (fmean(lows), fmean(highs)) for name, (lows, highs) in ends.items()}


def _range(values: Tensor, calibration: InputRange, bits: int) -> tuple[float, float]:
    """Return the range of values (N,) for a grid of 2^bits levels."""
    if calibration is InputRange.PERCENTILE:
        tail = max(1, round(1e-4 * len(values)))
        return (
            values.kthvalue(tail).values.item(),
            values.kthvalue(len(values) - tail + 1).values.item(),
        )
    low, high = (end.item() for end in values.aminmax())
    if calibration is InputRange.MIN_MAX:
        return low, high
    # at random: an even step can see the same columns of every image alone
    rng = torch.Generator(values.device).manual_seed(0)
    some = values[torch.randint(len(values), (MOST_ROUNDED,), generator=rng, device=rng.device)]

    def error(share: float) -> float:
        step, zero_point = input_grid(share * low, share * high, bits)
        grid = fake_quantize(some, some.new_tensor(step), -zero_point, 2**bits - 1 - zero_point)
        return (grid - some).square().sum().item()

    best = min(SHARES, key=error)
    return best * low, best * high


def _first_and_last(names: Iterable[str]) -> tuple[str, str]:
    """Return the first and the last of the layers in order of the calls."""
    first, *others = names
    return first, others[-1] if others else first


def _with_bits(
    model: nn.Module, config: QuantizeConfig, ranges: Ranges, bits: dict[str, int] | None = None
) -> nn.Module:
    """Return a copy in which every layer with a range is quantized."""
    ends = _first_and_last(ranges)

    def change(name: str, module: nn.Module) -> nn.Module | None:
        if name not in ranges:
            return None
        assert isinstance(module, KINDS)
        weight_bits, activation_bits = config.weight_bits, config.activation_bits
        if bits is not None:
            weight_bits = bits[name]  # includes the first and last layer
        if config.first_last_bits and name in ends:
            weight_bits = activation_bits = config.first_last_bits
        return QuantizedLayer(
            module, weight_bits, activation_bits, *ranges[name], per_channel=config.per_channel
        )

    return map_modules(copy_network(model), change)


def check_layers(ranges: dict[str, tuple[float, float]]) -> None:
    """Raise TeacherError if no layer has a range and nothing would be quantized."""
    if not ranges:
        raise TeacherError("there is no convolution or linear layer that can be quantized")


@torch.no_grad()
def quantize_without_inputs(
    teacher: Teacher, config: QuantizeConfig, *, correct: bool = True
) -> nn.Module:
    """Quantize without data (DFQ): equalization, ranges from BatchNorm, analytic bias correction.

    Args:
        teacher: traceable, on the CPU; not modified.
        config: bits; `calibration`, `keep` and `finetune` need images and must not be set.
        correct: whether to correct biases.

    Returns:
        A frozen, quantized copy. ReLU may replace ReLU6, see `equalize`.

    Raises:
        ConfigError: a setting needs images.
        TeacherError: the network cannot be traced, changes its function when equalized, contains an
            operation whose output range is unknown, or has no layer that can be quantized.

    """
    config = replace(config, without_inputs=True)  # raises ConfigError if images are needed
    equalized = equalize(teacher.module, teacher.input_spec)
    layers = plain_layers(equalized.model, KINDS)
    expected = {
        name: moments
        for name, moments in expected_inputs(equalized, teacher.input_spec).items()
        if name in layers
    }
    ranges = {n: (m.low.min().item(), m.high.max().item()) for n, m in expected.items()}
    check_layers(ranges)
    model = _with_bits(equalized.model, config, ranges)
    if correct:
        for name, moments in expected.items():
            layer = model.get_submodule(name)
            assert isinstance(layer, QuantizedLayer)
            _correct_bias(layer, moments)
    return model.eval().requires_grad_(False)


def _correct_bias(layer: QuantizedLayer, moments: Moments) -> None:
    """Subtract the expected output of the weight's rounding error from the bias: DFQ, eq. 17."""
    error = layer.quantized_weight() - layer.layer.weight
    whole = copy.deepcopy(layer.layer)
    whole.weight, whole.bias = nn.Parameter(error), None
    shift = whole(moments.mean).movedim(1 if isinstance(whole, nn.Conv2d) else -1, 0)
    shift = shift.flatten(1).mean(1)
    bias = layer.layer.bias
    layer.layer.bias = nn.Parameter((0 if bias is None else bias.detach()) - shift)


def quantize(
    teacher: Teacher,
    images: Tensor,
    config: QuantizeConfig,
    *,
    rng: torch.Generator,
    model: nn.Module | None = None,
    on_progress: OnProgress = lambda progress: None,
) -> nn.Module:
    """Return a quantized copy of a network, calibrated, rounded and fine-tuned on images.

    Args:
        teacher: target of the fine-tuning.
        images: uint8 (N, C, H, W), synthetic or real.
        config: see QuantizeConfig.
        rng: generator for the rounding and the fine-tuning.
        model: network to quantize, not modified; default: the teacher. Must be traceable if it has
            BatchNorm, which is folded.
        on_progress: called after each step of the rounding and the fine-tuning.

    Raises:
        TeacherError: the network has BatchNorm and cannot be traced, changes its function when it
            is folded, or has no layer that can be quantized or, if asked for, learned.
        ConfigError: the fewest bits do not meet `keep`.
        NonFiniteError: a loss is not finite.

    """
    spec = teacher.input_spec
    whole = fold_batch_norm(teacher.module if model is None else model, spec)
    ranges = observed_ranges(whole, spec, some_of(images, 2048), config)
    check_layers(ranges)
    bits = None
    if config.keep is not None:
        names, layers = list(ranges), plain_layers(whole, KINDS)
        table = sensitivities(
            *(whole, spec, images, names),
            per_channel=config.per_channel,
            kind=teacher.output_kind,
        )
        if fixed := config.first_last_bits:  # counted in the size, but not searched
            table |= {name: {fixed: 0.0} for name in _first_and_last(names)}
        sizes = {name: layers[name].weight.numel() for name in names}
        bits = mixed_bits(table, sizes, config.keep)
    model = _with_bits(whole, config, ranges, bits).eval()
    if config.rounding is not Rounding.NEAREST:
        learn_rounding(whole, model, spec, images, config, rng=rng, on_progress=on_progress)
    if config.finetune is not None:
        for layer, name in _steps(model):
            parametrize.register_parametrization(layer, name, Logarithm())
        model = finetune(
            teacher,
            model.requires_grad_(True),
            images,
            config.finetune,
            rng=rng,
            on_progress=on_progress,
        )
        for layer, name in _steps(model):
            parametrize.remove_parametrizations(layer, name)
    return model.eval().requires_grad_(False)


def _steps(model: nn.Module) -> list[tuple[QuantizedLayer, str]]:
    """Return every quantized layer with the name of each of its two step sizes."""
    layers = [module for module in model.modules() if isinstance(module, QuantizedLayer)]
    return [(layer, name) for layer in layers for name in ("weight_step", "input_step")]


def check_plain(quantized: nn.Module, plain: nn.Module, spec: InputSpec) -> None:
    """Check that plain layers with quantized weights compute the same as the simulation.

    Inputs are not quantized in either network.

    Raises:
        TeacherError: the plain network computes something else.

    """
    quantized = copy_network(quantized)
    for layer in quantized.modules():
        if isinstance(layer, QuantizedLayer):
            layer.weight_only = True
    check_same_function(quantized, plain, spec, "taking the simulation of low bits out")
