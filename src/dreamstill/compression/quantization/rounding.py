"""Learn whether each weight is rounded up or down, block by block.

Sources: Nagel et al., "Up or Down? Adaptive Rounding for Post-Training Quantization" (AdaRound),
ICML 2020; Li et al., BRECQ, ICLR 2021, for blocks (`graph.blocks`); Wei et al., "QDrop: Randomly
Dropping Quantization for Extremely Low-bit Post-Training Quantization", ICLR 2022. Each block is
fitted to what it puts out in the network of full precision, given what it is fed in the quantized
one, after the blocks before it.
"""

from collections import Counter
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from dreamstill.compression.config import QuantizeConfig, Rounding
from dreamstill.errors import NonFiniteError, TeacherError
from dreamstill.evaluation import device_of, evaluating
from dreamstill.graph.blocks import blocks
from dreamstill.graph.modules import replace_module, shared_weights
from dreamstill.graph.tracing import trace
from dreamstill.input_spec import InputSpec
from dreamstill.nn.hooks import some_of, watched
from dreamstill.nn.quantized import QuantizedLayer
from dreamstill.output_spec import logits_of
from dreamstill.progress import OnProgress, Progress

__all__ = [
    "SoftRounding",
    "beta_at",
    "learn_rounding",
    "partly_quantized",
    "rectified_sigmoid",
    "rounding_loss",
]

ZETA, GAMMA = 1.1, -0.1
"""Upper and lower limit of the sigmoid before it is cut to [0, 1]."""
WEIGHT = 0.01
"""Weight of the regularizer."""
BETA = (20.0, 2.0)
"""First and last exponent of the regularizer."""
WARM_UP = 0.2
"""Share of the steps without regularizer."""
BATCH_SIZE, AT_ONCE = 32, 64
"""Images in a step, and in a forward pass without one."""
LR, STEP_LR = 0.1, 1e-2
"""Learning rates of the roundings and of the logarithms of the activations' step sizes."""
MOST_VALUES = 2**26
"""Values in the inputs of a block together: bounds the memory."""


def rectified_sigmoid(v: Tensor) -> Tensor:
    """Return h(V) = clip(sigmoid(V) (zeta - gamma) + gamma, 0, 1): AdaRound, equation 23."""
    return (v.sigmoid() * (ZETA - GAMMA) + GAMMA).clamp(0, 1)


def rounding_loss(h: Tensor, beta: float) -> Tensor:
    """Return the sum of 1 - |2 h - 1|^beta: AdaRound, equation 24; 0 if each h is 0 or 1."""
    return (1 - (2 * h - 1).abs().pow(beta)).sum()


def beta_at(share: float) -> float | None:
    """Return the regularizer's exponent after a share of the steps; None in the warm-up."""
    if share < WARM_UP:
        return None
    first, last = BETA
    return last + (first - last) * (1 - share) / (1 - WARM_UP)


class _PartlyQuantized(torch.autograd.Function):
    """Quantize the values where `kept` (of the same shape) is 0, with LSQ's gradients.

    One function, as the passes over memory of torch's own would take most of a step.
    """

    @staticmethod
    def forward(
        ctx: Any, values: Tensor, step: Tensor, kept: Tensor, low: int, high: int
    ) -> Tensor:
        ratio = values / step
        level = ratio.round().clamp_(low, high)
        ctx.save_for_backward(ratio, level, kept)
        ctx.limits = low, high
        return (level * step).lerp_(values, kept)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        ratio, level, kept = ctx.saved_tensors
        low, high = ctx.limits
        through = grad * kept
        quantized = grad - through
        inside = ratio.clamp(low, high).eq_(ratio)
        of_step = (level.addcmul_(ratio, inside, value=-1) * quantized).sum()
        return through.addcmul_(quantized, inside), of_step, None, None, None


def partly_quantized(values: Tensor, step: Tensor, kept: Tensor, low: int, high: int) -> Tensor:
    """Return values rounded to the grid step * {low, ..., high} where `kept` is 0, else as is."""
    quantized: Tensor = _PartlyQuantized.apply(values, step, kept, low, high)  # type: ignore[no-untyped-call]
    return quantized


class SoftRounding(nn.Module):
    """Quantized layer whose weight lies between its two grid points, by a learned share h(V).

    Args:
        quantized: layer; V begins where h(V) leaves its weight as it is in full precision.
        rng: draws which half of the input's values is quantized; None: none is.

    """

    def __init__(self, quantized: QuantizedLayer, rng: torch.Generator | None) -> None:
        super().__init__()
        self.quantized, self.rng = quantized, rng
        weight = (quantized.layer.weight / quantized.weight_step).detach()
        self.high = 2 ** (quantized.weight_bits - 1) - 1
        self.floor = weight.floor()
        share = (weight - self.floor - GAMMA) / (ZETA - GAMMA)
        self.v = nn.Parameter(share.logit())
        self.input_step = nn.Parameter(quantized.input_step.detach().log())

    def share(self) -> Tensor:
        """Return h(V), of the weight's shape."""
        return rectified_sigmoid(self.v)

    def weight(self, h: Tensor) -> Tensor:
        """Return the weight for shares h (O, ...) of the way from the lower grid point up."""
        levels = (self.floor + h).clamp(-self.high - 1, self.high)
        return levels * self.quantized.weight_step

    def forward(self, inputs: Tensor) -> Tensor:
        """Compute the layer's output, quantizing a random half of the input."""
        if self.rng is not None:
            kept = coins(inputs, self.rng)
            zero, levels = self.quantized.zero_point, 2**self.quantized.activation_bits - 1
            inputs = partly_quantized(inputs, self.input_step.exp(), kept, -zero, levels - zero)
        return self.quantized.with_weight(inputs, self.weight(self.share()))

    @torch.no_grad()
    def harden(self) -> QuantizedLayer:
        """Return the quantized layer with each weight at the grid point that is nearer to h(V)."""
        self.quantized.layer.weight.copy_(self.weight((self.v >= 0).float()))
        if self.rng is not None:
            self.quantized.input_step.copy_(self.input_step.exp())
        return self.quantized


def coins(like: Tensor, rng: torch.Generator) -> Tensor:
    """Return zeros and ones of equal probability, in the shape and type of a tensor.

    Eight are made of a random number, since drawing takes most of the time.
    """
    size = (-(-like.numel() // 8), 1)
    drawn = torch.randint(256, size, generator=rng, device=rng.device, dtype=torch.uint8)
    bits = drawn.bitwise_right_shift(torch.arange(8, dtype=torch.uint8, device=rng.device)) & 1
    strides = torch.empty_like(like).stride()  # as channels_last is faster
    return bits.flatten().to(like.dtype).as_strided(like.shape, strides)


class Reconstruction(NamedTuple):
    """Part of a quantized network, and what it is to be fitted to."""

    part: nn.Module
    layers: list[str]
    """Names of its layers whose rounding is learned."""
    given: Tensor
    """(N, ...) inputs in the quantized network."""
    whole: Tensor
    """(N, ...) inputs in the network of full precision."""
    wanted: Tensor
    """(N, ...) outputs there."""


def learn_rounding(
    whole: nn.Module,
    model: nn.Module,
    spec: InputSpec,
    images: Tensor,
    config: QuantizeConfig,
    *,
    rng: torch.Generator,
    on_progress: OnProgress = lambda progress: None,
) -> None:
    """Learn the rounding of all quantized layers, in place.

    Layers that run more than once or share their weight stay rounded to nearest. A network that
    cannot be traced is fitted layer by layer.

    Args:
        whole: the network of full precision, with the same names; not modified.
        model: the quantized network.
        spec: input of both.
        images: uint8 (N, C, H, W), of which at most as many are used as 2^26 values of a layer
            hold.
        config: the rounding, and its steps for each block.
        rng: draws batches, and the activations that are quantized.
        on_progress: called after each step.

    Raises:
        TeacherError: no layer runs exactly once with a weight of its own.
        NonFiniteError: a loss is not finite.

    """
    model.requires_grad_(False)
    inputs = spec.encode(some_of(images, 2).to(device_of(model)))
    names, largest = _learnable(whole, model, inputs)
    inputs = some_of(images, max(2, MOST_VALUES // largest)).to(device_of(model))
    inputs = torch.cat([spec.encode(part) for part in inputs.split(AT_ONCE)])
    inputs = inputs.contiguous(memory_format=torch.channels_last)  # convolutions are faster
    parts = _parts(whole, model, names, inputs[:3])
    if parts:
        total, found = sum(bool(layers) for layers, *_ in parts), _by_block(parts, inputs)
    else:
        total, found = len(names), _by_layer(whole, model, names, inputs)
    total *= config.rounding_steps
    for index, task in enumerate(found):
        for done, loss in enumerate(_fit(task, config, rng), 1 + index * config.rounding_steps):
            on_progress(Progress("round", done, total, {"step": float(done), "loss": loss}))


def _learnable(whole: nn.Module, model: nn.Module, inputs: Tensor) -> tuple[list[str], int]:
    """Return the layers that can be learned, in order, and the most values of one for an image."""
    quantized = [n for n, part in model.named_modules() if isinstance(part, QuantizedLayer)]
    layers = {name: whole.get_submodule(name) for name in quantized}
    tied, calls, largest = {*shared_weights(whole)}, Counter[str](), inputs[0].numel()

    def look(name: str, values: Tensor, output: Tensor) -> None:
        nonlocal largest
        calls[name] += 1
        largest = max(largest, *(tensor.numel() // len(inputs) for tensor in (values, output)))

    with watched(layers, look), evaluating(whole):
        whole(inputs)
    names = [name for name, times in calls.items() if times == 1 and name not in tied]
    if not names:
        raise TeacherError(
            "the rounding of no layer can be learned: each runs more than once or shares its "
            "weight; leave rounding out"
        )
    return names, largest


Part = tuple[list[str], nn.Module, nn.Module]
"""Names of layers, and a part of the quantized and of the whole network."""


def _parts(whole: nn.Module, model: nn.Module, names: list[str], inputs: Tensor) -> list[Part]:
    """Return the blocks of both networks, or nothing where they cannot be followed."""
    try:
        graph = trace(whole)
    except TeacherError:
        return []
    pairs = zip(blocks(graph, model, names), blocks(graph, whole, names), strict=True)
    parts: list[Part] = [(layers, part, of_whole) for (layers, part), (_, of_whole) in pairs]
    with evaluating(whole):
        wanted, output = logits_of(whole(inputs)), inputs
        try:
            for _, _, of_whole in parts:
                output = of_whole(output)
        except Exception:  # a size that is not the input's
            return []
    same = output.shape == wanted.shape and torch.allclose(output, wanted, 1e-3, 1e-4, True)
    return parts if same else []


def _by_block(parts: list[Part], inputs: Tensor) -> Iterator[Reconstruction]:
    """Yield the blocks with layers to be learned, each after those before it."""
    given = of_whole = inputs
    for layers, part, whole in parts:
        wanted = _outputs(whole, of_whole)
        if layers:
            yield Reconstruction(part, layers, given, of_whole, wanted)
        given, of_whole = _outputs(part, given), wanted


def _by_layer(
    whole: nn.Module, model: nn.Module, names: list[str], inputs: Tensor
) -> Iterator[Reconstruction]:
    """Yield each layer to be learned, after those before it."""
    for name in names:
        of_whole, wanted = _seen(whole, name, inputs)
        given, _ = _seen(model, name, inputs)
        part = nn.Sequential(model.get_submodule(name))
        yield Reconstruction(part, ["0"], given, of_whole, wanted)


@torch.no_grad()
def _outputs(module: nn.Module, inputs: Tensor) -> Tensor:
    """Return a network's outputs for inputs that it may change in place."""
    return torch.cat([module(part.clone()) for part in inputs.split(AT_ONCE)])


@torch.no_grad()
def _seen(model: nn.Module, name: str, inputs: Tensor) -> tuple[Tensor, Tensor]:
    """Return the inputs and outputs of a layer over all images."""
    seen = list[tuple[Tensor, Tensor]]()

    def look(_: str, given: Tensor, output: Tensor) -> None:
        seen.append((given.clone(), output.clone()))

    with watched({name: model.get_submodule(name)}, look):
        _outputs(model, inputs)
    given, output = map(torch.cat, zip(*seen, strict=True))
    return given, output


def _fit(task: Reconstruction, config: QuantizeConfig, rng: torch.Generator) -> Iterator[float]:
    """Learn the rounding of a part; yield the loss of each step."""
    steps, qdrop = config.rounding_steps, config.rounding is Rounding.QDROP
    layers = list[SoftRounding]()
    for name in task.layers:
        layer = task.part.get_submodule(name)
        assert isinstance(layer, QuantizedLayer)
        layers.append(SoftRounding(layer, rng if qdrop else None))
        replace_module(task.part, name, layers[-1])
    rounding = torch.optim.Adam([layer.v for layer in layers], LR)
    ranges = torch.optim.Adam([layer.input_step for layer in layers], STEP_LR)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(ranges, steps)
    for step in range(steps):
        chosen = torch.randint(len(task.given), (BATCH_SIZE,), generator=rng, device=rng.device)
        given = task.given[chosen]
        if qdrop:
            given = given.lerp(task.whole[chosen], coins(given, rng))
        error = (task.part(given) - task.wanted[chosen]).pow(2)
        loss = error.sum(1 if error.dim() == 4 else -1).mean()  # over the channels
        beta = beta_at(step / steps)
        if beta is not None:
            loss = loss + WEIGHT * sum(rounding_loss(layer.share(), beta) for layer in layers)
        if not loss.isfinite():
            raise NonFiniteError(
                f"the loss of rounding {', '.join(task.layers)} is {loss.item()} in step {step + 1}"
            )
        rounding.zero_grad()
        ranges.zero_grad()
        loss.backward()
        rounding.step()
        ranges.step()
        schedule.step()
        yield loss.item()
    for name, soft in zip(task.layers, layers, strict=True):
        replace_module(task.part, name, soft.harden())
