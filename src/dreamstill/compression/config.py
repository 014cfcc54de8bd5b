"""Configuration of pruning, merging, factorization, quantization and packing."""

from dataclasses import field
from enum import StrEnum
from typing import Annotated

from dreamstill.config import (
    Bool,
    Float,
    Int,
    Text,
    at_least,
    config_class,
    no_effect,
    share,
    within,
    zero_or_at_least,
)
from dreamstill.distillation.config import FinetuneConfig
from dreamstill.errors import ConfigError

__all__ = [
    "FactorizeConfig",
    "Importance",
    "InputRange",
    "MergeConfig",
    "PackConfig",
    "PruneConfig",
    "QuantizeConfig",
    "Rounding",
    "Target",
]


class Importance(StrEnum):
    """Measure of a channel's importance."""

    MAGNITUDE = "magnitude"
    BATCH_NORM = "batch-norm"
    TAYLOR = "taylor"


class Target(StrEnum):
    """Quantity of which a share is kept."""

    PARAMETERS = "parameters"
    MACS = "macs"
    LATENCY = "latency"


class InputRange(StrEnum):
    """Rule for the range of a layer's input, from its values on the images."""

    MSE = "mse"
    PERCENTILE = "percentile"
    MIN_MAX = "min-max"


class Rounding(StrEnum):
    """Rule for rounding weights to their grid."""

    NEAREST = "nearest"
    ADAROUND = "adaround"
    QDROP = "qdrop"


@config_class
class PruneConfig:
    """Configuration of pruning channels."""

    keep: Annotated[Float, share(whole=False)] = 0.5
    """Largest share of the target to keep; in (0, 1)."""
    target: Target = Target.MACS
    """Quantity to reduce: macs, parameters, or the measured latency of one image."""
    keep_layer: Annotated[Float, share(whole=False)] = 0.25
    """Least share of channels that every layer keeps, to avoid bottlenecks; in (0, 1)."""
    importance: Importance = Importance.MAGNITUDE
    """Importance of a channel: magnitude, batch-norm (scale of BatchNorm), or taylor on the images
    (DeepInversion)."""
    latency: Annotated[Float, at_least(0)] = 0.0
    """Weight of latency in the importance; at least 0. At 1 a channel of average latency loses the
    mean importance."""
    rounds: Annotated[Int, at_least(1)] = 4
    """Rounds of pruning and fine-tuning; at least 1."""
    reconstruct: Annotated[Int, zero_or_at_least(2)] = 2048
    """Number of images for layer reconstruction by least squares; at least 2, or 0 to skip it."""
    finetune: FinetuneConfig | None = field(
        default_factory=lambda: FinetuneConfig(
            steps=500, batch_size=64, lr=1e-3, num_validation=256
        )
    )
    """Fine-tuning after each round; None for none."""


@config_class
class MergeConfig:
    """Configuration of merging neurons and filters."""

    keep: Annotated[Float, share()] | None = None
    """Share of neurons to keep in every layer; in (0, 1]. Default: half for convolutions; for
    linear layers, up to the turning point of the saliency curve."""
    layers: tuple[Text, ...] = ()
    """Names of the layers to narrow. Default: all layers that feed exactly one other layer."""
    compensate: Bool = True
    """Add the weights of a removed neuron to the one it is merged into. False is the baseline."""
    threshold: Annotated[Float, within(-1, 1)] = 0.1
    """Least cosine similarity for merging two filters, below which the removed one is dropped; -1
    to 1. Kim et al. use 0.45 on other networks."""
    cosine_share: Annotated[Float, within(0, 1)] = 0.85
    """Weight of the cosine similarity against that of the biases when filters with BatchNorm are
    matched; 0 to 1. Kim et al. use 0.85."""
    reconstruct: Annotated[Int, zero_or_at_least(2)] = 2048
    """Number of images for layer reconstruction by least squares; at least 2, or 0 for the papers'
    data-free method."""
    finetune: FinetuneConfig | None = None
    """Fine-tuning at the end; None for none."""

    def __post_init__(self) -> None:
        if not self.compensate:
            no_effect(self, "with compensate off", "threshold", "cosine_share")
        if len(set(self.layers)) < len(self.layers):
            raise ConfigError(f"layers names one twice: {', '.join(self.layers)}")

    @property
    def reads_images(self) -> bool:
        """Tell whether images are read, or the weights alone."""
        return bool(self.reconstruct or self.finetune)


@config_class
class FactorizeConfig:
    """Configuration of factorizing layers."""

    keep: Annotated[Float, share()] | None = None
    """Largest share of the target to keep; in (0, 1]. Default: determined by `energy`."""
    target: Target = Target.MACS
    """Quantity to reduce: macs or parameters."""
    energy: Annotated[Float, share()] = 0.99
    """Share of the energy of a layer's responses (of its weights if `responses` is 0) to keep if
    `keep` is not given, averaged over modes; in (0, 1]."""
    first_layer: Bool = False
    """Factorize the first layer too: it is small, and its errors affect all later layers."""
    responses: Annotated[Int, at_least(0)] = 2048
    """Number of images whose responses determine the factors; 0 uses the weights alone."""
    reconstruct: Annotated[Int, zero_or_at_least(2)] = 2048
    """Number of images for reconstruction of all layers by least squares; at least 2, or 0 to skip
    it."""
    finetune: FinetuneConfig | None = None
    """Fine-tuning at the end; None for none."""

    def __post_init__(self) -> None:
        if self.target is Target.LATENCY:
            raise ConfigError("target must be macs or parameters; got latency")
        if self.keep is None:
            no_effect(self, "without keep", "target")
        else:
            no_effect(self, "beside keep", "energy")

    @property
    def reads_images(self) -> bool:
        """Tell whether images are read, or the weights alone."""
        return bool(self.responses or self.reconstruct or self.finetune)


@config_class
class QuantizeConfig:
    """Configuration of simulated quantization."""

    weight_bits: Annotated[Int, within(2, 8)] = 8
    """Bits of the weights; 2 to 8."""
    activation_bits: Annotated[Int, within(2, 8)] = 8
    """Bits of each layer's input; 2 to 8."""
    first_last_bits: Annotated[Int, within(2, 8)] | None = 8
    """Bits of weights and inputs of the first and last layer; 2 to 8. None: same as the others."""
    per_channel: Bool = True
    """Use one step size per output channel; False uses one per weight tensor."""
    calibration: InputRange = InputRange.MSE
    """Ranges of activations on the images: mse (least squared rounding error), percentile
    (99.99 %) or min-max."""
    keep: Annotated[Float, within(0.25, 1)] | None = None
    """Mixed precision instead of `weight_bits`: largest share of the 8-bit weight size to keep,
    reducing the least sensitive layers first; 0.25 to 1."""
    rounding: Rounding = Rounding.NEAREST
    """Round weights to nearest, or up or down as learned block by block on the images: adaround
    (weights alone), or qdrop (with activations quantized at random, and their step sizes)."""
    rounding_steps: Annotated[Int, at_least(1)] = 500
    """Optimizer steps for each block, of 32 images, to learn the rounding; at least 1."""
    without_inputs: Bool = False
    """Quantize without any images (data-free quantization, DFQ)."""
    finetune: FinetuneConfig | None = None
    """Fine-tuning of weights and step sizes; None for none."""

    def __post_init__(self) -> None:
        if self.keep is not None:
            no_effect(self, "beside keep", "weight_bits")
        if self.rounding is Rounding.NEAREST:
            no_effect(self, "on rounding to nearest", "rounding_steps")
        if self.without_inputs:
            if self.keep is not None or self.finetune is not None:
                raise ConfigError("keep and finetune need images: leave without_inputs out")
            if self.rounding is not Rounding.NEAREST:
                raise ConfigError(f"{self.rounding} needs images: leave without_inputs out")
            no_effect(self, "without inputs: it reads images", "calibration")

    @property
    def reads_images(self) -> bool:
        """Tell whether images are read, or the weights alone."""
        return not self.without_inputs


@config_class
class PackConfig:
    """Configuration of packing: pruning, weight sharing and Huffman coding."""

    keep: Annotated[Float, share()] = 0.1
    """Share of weights to keep over all layers; in (0, 1]."""
    rounds: Annotated[Int, at_least(1)] = 4
    """Rounds of pruning and fine-tuning, each to a lower share; at least 1."""
    convolution_bits: Annotated[Int, within(1, 8)] = 5
    """Bits of a weight index in convolutions; 1 to 8."""
    linear_bits: Annotated[Int, within(1, 8)] = 4
    """Bits of a weight index in linear layers; 1 to 8."""
    finetune: FinetuneConfig | None = field(
        default_factory=lambda: FinetuneConfig(
            steps=1000, batch_size=64, lr=2e-3, num_validation=256
        )
    )
    """Fine-tuning after each round and after sharing; None for none."""
