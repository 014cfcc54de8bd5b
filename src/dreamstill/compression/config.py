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
from dreamstill.exporters.config import Calibration

__all__ = [
    "FactorizeConfig",
    "Importance",
    "MergeConfig",
    "PackConfig",
    "PruneConfig",
    "QuantizeConfig",
    "Target",
]


class Importance(StrEnum):
    """The measure of a channel's importance."""

    MAGNITUDE = "magnitude"
    BATCH_NORM = "batch-norm"
    TAYLOR = "taylor"


class Target(StrEnum):
    """The quantity of which a share is kept."""

    PARAMETERS = "parameters"
    MACS = "macs"
    LATENCY = "latency"


@config_class
class PruneConfig:
    """Configuration of pruning channels."""

    keep: Annotated[Float, share(whole=False)] = 0.5
    """Share of the target to keep, at most; in (0, 1)."""
    target: Target = Target.MACS
    """macs, parameters, or the measured latency of one image."""
    keep_layer: Annotated[Float, share(whole=False)] = 0.25
    """Least share of its channels that every layer keeps, so that none becomes a bottleneck; in
    (0, 1)."""
    importance: Importance = Importance.MAGNITUDE
    """magnitude, batch-norm (the scale of BatchNorm), or taylor on the images (DeepInversion)."""
    latency: Annotated[Float, at_least(0)] = 0.0
    """Weight of latency in the importance; at least 0. At 1 a channel of average time loses the
    mean importance, a channel of a slow layer more."""
    rounds: Annotated[Int, at_least(1)] = 4
    """Rounds of pruning and fine-tuning; at least 1."""
    reconstruct: Annotated[Int, zero_or_at_least(2)] = 2048
    """Images on which layers are solved, by least squares, for their outputs before the cut; at
    least 2, or 0 to skip this."""
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
    """Share of the neurons of every layer to keep; in (0, 1]. Default: up to where the curve of
    saliencies turns, for linear layers; half, for convolutions."""
    layers: tuple[Text, ...] = ()
    """Names of the layers to make narrower. Default: all that feed one other layer alone."""
    compensate: Bool = True
    """Give the weights of a removed neuron to those that stay. False is the baseline that merging
    is compared with."""
    threshold: Annotated[Float, within(-1, 1)] = 0.1
    """Least cosine between a removed filter and the one it is merged into, else it is dropped; -1
    to 1. Kim et al. have 0.45, on other networks."""
    cosine_share: Annotated[Float, within(0, 1)] = 0.85
    """Share of the cosine in the choice of that filter behind BatchNorm, as in Kim et al.; the
    rest compares their biases; 0 to 1."""
    reconstruct: Annotated[Int, zero_or_at_least(2)] = 2048
    """Images on which layers are solved, by least squares, for their outputs before the merge; at
    least 2, or 0: the papers' method, from the weights alone."""
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
    """Share of the target to keep, at most; in (0, 1]. Default: what `energy` needs."""
    target: Target = Target.MACS
    """macs or parameters."""
    energy: Annotated[Float, share()] = 0.99
    """Without `keep`: the share of the squares of a layer's responses to keep in every mode, on
    average; in (0, 1]. With `responses` 0, of the squares of its weights."""
    first_layer: Bool = False
    """Factorize the first layer too: it is small, and its errors reach all others."""
    responses: Annotated[Int, at_least(0)] = 2048
    """Images whose responses decide what to keep of a layer; 0 decides from the weights alone."""
    reconstruct: Annotated[Int, zero_or_at_least(2)] = 2048
    """Images on which the factors, and the layers that stay, are solved by least squares; at least
    2, or 0 to skip this."""
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
    """Bits of the first and the last layer, weights and inputs; 2 to 8. None: as the others."""
    per_channel: Bool = True
    """One step size per output channel of a weight; False: one per weight."""
    calibration: Calibration = Calibration.PERCENTILE
    """Ranges of activations on the images: min-max, or percentile (99.99 %)."""
    keep: Annotated[Float, within(0.25, 1)] | None = None
    """Mixed precision: the share of their size at 8 bits to keep of the weights, at most, the least
    sensitive layers reduced first; 0.25 to 1. In place of `weight_bits`."""
    without_inputs: Bool = False
    """Data-free quantization (DFQ): look at no image at all."""
    finetune: FinetuneConfig | None = None
    """Fine-tuning of weights and step sizes; None for none."""

    def __post_init__(self) -> None:
        if self.keep is not None:
            no_effect(self, "beside keep", "weight_bits")
        if self.calibration is Calibration.ENTROPY:
            raise ConfigError("calibration must be min-max or percentile; got entropy")
        if self.without_inputs:
            if self.keep is not None or self.finetune is not None:
                raise ConfigError("keep and finetune need images: leave without_inputs out")
            no_effect(self, "without inputs: it reads images", "calibration")

    @property
    def reads_images(self) -> bool:
        """Tell whether images are read, or the weights alone."""
        return not self.without_inputs


@config_class
class PackConfig:
    """Configuration of packing: pruned, shared and Huffman-coded weights."""

    keep: Annotated[Float, share()] = 0.1
    """Share of the weights to keep, over all layers; in (0, 1]."""
    rounds: Annotated[Int, at_least(1)] = 4
    """Rounds of pruning and fine-tuning, each to a lower share; at least 1."""
    convolution_bits: Annotated[Int, within(1, 8)] = 5
    """Codebooks of convolutions have 2 to this power entries; 1 to 8."""
    linear_bits: Annotated[Int, within(1, 8)] = 4
    """Codebooks of linear layers have 2 to this power entries; 1 to 8."""
    finetune: FinetuneConfig | None = field(
        default_factory=lambda: FinetuneConfig(
            steps=1000, batch_size=64, lr=2e-3, num_validation=256
        )
    )
    """Fine-tuning after each round and after sharing; None for none."""
