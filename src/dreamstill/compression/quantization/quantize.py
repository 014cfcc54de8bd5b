"""Quantize to 2 to 8 bits by simulation: with no input at all, or calibrated and fine-tuned.

Every convolution and linear layer gets a quantized weight and a quantized input, but those inside
torch's attention, which reads their weights itself. Sources: DFQ (Nagel et al. 2019) for ranges and
bias correction without inputs; LSQ (Esser et al. 2020) for step sizes that learn (`quantized`);
ZeroQ (Cai et al. 2020) for the bits of each layer (`sensitivity`). The fine-tuning is distillation
from the network itself.
"""

import copy
import math
from collections.abc import Callable
from dataclasses import replace
from statistics import fmean

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from dreamstill.compression.config import QuantizeConfig
from dreamstill.compression.quantization.equalization import equalize, expected_inputs
from dreamstill.compression.quantization.moments import Moments
from dreamstill.compression.quantization.sensitivity import mixed_bits, sensitivities
from dreamstill.distillation.finetune import finetune
from dreamstill.errors import TeacherError
from dreamstill.evaluation import check_same_function
from dreamstill.exporters.config import Calibration
from dreamstill.graph.batch_norm_folding import fold_batch_norm
from dreamstill.graph.modules import map_modules, plain_layers
from dreamstill.input_spec import InputSpec
from dreamstill.nn.copying import copy_network
from dreamstill.nn.hooks import probed_at_once, some_of, watched
from dreamstill.nn.quantized import Logarithm, QuantizedLayer
from dreamstill.progress import Progress
from dreamstill.teacher import Teacher

__all__ = [
    "Calibration",
    "QuantizeConfig",
    "check_plain",
    "quantize",
    "quantize_without_inputs",
]


KINDS = (nn.Conv1d, nn.Conv2d, nn.Linear)
"""Layers that are quantized."""
Ranges = dict[str, tuple[float, float]]


@torch.no_grad()
def observed_ranges(
    model: nn.Module, spec: InputSpec, images: Tensor, calibration: Calibration
) -> Ranges:
    """Range of what enters each layer over images uint8 (N, C, H, W), in the order of the calls.

    A layer that is called several times has the range of all its calls.
    """
    chunks: list[Ranges] = []
    device = next(model.parameters()).device

    def look(name: str, values: Tensor, output: Tensor) -> None:
        flat = values.flatten().float()
        if calibration is Calibration.PERCENTILE:
            tail = max(1, round(1e-4 * len(flat)))
            low = flat.kthvalue(tail).values
            high = flat.kthvalue(len(flat) - tail + 1).values
        else:
            low, high = flat.aminmax()
        before = chunks[-1].get(name, (math.inf, -math.inf))
        chunks[-1][name] = min(before[0], float(low)), max(before[1], float(high))

    with watched(plain_layers(model, KINDS), look):
        for part in images.split(probed_at_once(spec.shape)):
            chunks.append({})
            model(spec.encode(part.to(device)))
    ends = {name: tuple(zip(*(c[name] for c in chunks), strict=True)) for name in chunks[0]}
    if calibration is Calibration.MIN_MAX:
        return {name: (min(lows), max(highs)) for name, (lows, highs) in ends.items()}
    return {name: (fmean(lows), fmean(highs)) for name, (lows, highs) in ends.items()}


def _with_bits(
    model: nn.Module, config: QuantizeConfig, ranges: Ranges, bits: dict[str, int] | None = None
) -> nn.Module:
    """A copy with every layer quantized that has a range."""
    names = list(ranges)

    def change(name: str, module: nn.Module) -> nn.Module | None:
        if name not in ranges:
            return None
        assert isinstance(module, KINDS)
        weight_bits, activation_bits = config.weight_bits, config.activation_bits
        if bits is not None:
            weight_bits = bits[name]  # of the first and last layer too
        if config.first_last_bits and name in (names[0], names[-1]):
            weight_bits = activation_bits = config.first_last_bits
        return QuantizedLayer(
            module, weight_bits, activation_bits, *ranges[name], per_channel=config.per_channel
        )

    return map_modules(copy_network(model), change)


def check_layers(ranges: dict[str, tuple[float, float]]) -> None:
    """TeacherError where no layer's input has a range: nothing would be quantized."""
    if not ranges:
        raise TeacherError("there is no convolution or linear layer that can be quantized")


@torch.no_grad()
def quantize_without_inputs(
    teacher: Teacher, config: QuantizeConfig, *, correct: bool = True
) -> nn.Module:
    """DFQ: fold, equalize, absorb, ranges from BatchNorm, and analytic bias correction.

    Args:
        teacher: left as it was; traceable, on the CPU.
        config: the bits; `calibration`, `keep` and `finetune` need images and must be left out.
        correct: the bias correction.

    Returns:
        A quantized copy, frozen; of the network with ReLU in place of each ReLU6 module between two
        layers that are equalized, see `equalize`.

    Raises:
        ConfigError: a setting that needs images.
        TeacherError: the network cannot be traced, computes something else once it is equalized,
            has something in it whose output cannot be known without inputs, or no layer that can
            be quantized.

    """
    config = replace(config, without_inputs=True)  # which refuses what needs images
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
    """Take the expected output of the weight's rounding error off the bias: DFQ, equation 17."""
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
    on_progress: Callable[[Progress], None] = lambda progress: None,
) -> nn.Module:
    """A quantized copy of a network, calibrated on images and, if asked, fine-tuned on them.

    Args:
        teacher: what the copy is fine-tuned towards.
        images: uint8 (N, C, H, W), synthetic or not.
        config: see QuantizeConfig.
        rng: of the fine-tuning.
        model: what is quantized; default: the teacher itself. Left as it was; BatchNorm is folded,
            so that a network with it must be traceable.
        on_progress: called after each step of it.

    Raises:
        TeacherError: the network has BatchNorm and cannot be traced, computes something else once
            it is folded, or has no layer that can be quantized.
        ConfigError: a size that the fewest bits do not meet.

    """
    model = fold_batch_norm(teacher.module if model is None else model, teacher.input_spec)
    shown = some_of(images, 2048)
    ranges = observed_ranges(model, teacher.input_spec, shown, config.calibration)
    check_layers(ranges)
    bits = None
    if config.keep is not None:
        names, layers = list(ranges), plain_layers(model, KINDS)
        table = sensitivities(
            model, teacher.input_spec, images, names, per_channel=config.per_channel
        )
        if fixed := config.first_last_bits:  # they count in the size and have no choice
            table |= {name: {fixed: 0.0} for name in (names[0], names[-1])}
        sizes = {name: layers[name].weight.numel() for name in names}
        bits = mixed_bits(table, sizes, config.keep)
    model = _with_bits(model, config, ranges, bits)
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
    """Every quantized layer with the names of its two steps."""
    layers = [module for module in model.modules() if isinstance(module, QuantizedLayer)]
    return [(layer, name) for layer in layers for name in ("weight_step", "input_step")]


def check_plain(quantized: nn.Module, plain: nn.Module, spec: InputSpec) -> None:
    """Compare a network with one whose quantized layers were made `plain`, inputs as they come.

    Raises:
        TeacherError: the plain network computes something else.

    """
    quantized = copy_network(quantized)
    for layer in quantized.modules():
        if isinstance(layer, QuantizedLayer):
            layer.weight_only = True
    check_same_function(quantized, plain, spec, "taking the simulation of low bits out")
