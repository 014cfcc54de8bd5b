"""Configuration of the methods, with the values of their papers."""

from dataclasses import field
from enum import StrEnum
from typing import Annotated

from dreamstill.config import (
    Bool,
    Float,
    Int,
    Text,
    above,
    at_least,
    config_class,
    no_effect,
    within,
)
from dreamstill.errors import ConfigError

__all__ = [
    "AbdConfig",
    "CLOTHES",
    "DaflConfig",
    "DeepInversionConfig",
    "DfadConfig",
    "KnowledgeWithinConfig",
    "MetadataConfig",
    "NoiseConfig",
    "RandomShapes",
    "RdskdConfig",
    "SCENES",
    "Scheme",
    "Start",
    "StructuredNoiseConfig",
    "ZskdConfig",
    "ZsktConfig",
]

Positive = Annotated[Int, at_least(1)]
Cells = Annotated[Int, at_least(2)]
Rate = Annotated[Float, above(0)]
Share = Annotated[Float, within(0, 1)]
Weight = Annotated[Float, at_least(0)]
Decay = Annotated[Float, within(0, 0.9999)]


@config_class
class RandomShapes:
    """Appearance of random shapes; the defaults serve images of 28 to 64 pixels."""

    cells: tuple[Cells, ...] = (2, 4, 8, 16, 32)
    """Grid cells along the longer side of each random field, coarse to fine; at least 2 each."""
    shape_cells: tuple[Cells, ...] = (3, 5, 8)
    """Grid cells of the fields whose level lines are shapes; at least 2 each."""
    stroke_share: Share = 0.9
    """Share of masks that are strokes along a level line; the rest are blobs. 0 to 1."""
    texture_share: Share = 0.3
    """Share of images that are one rough texture behind the mask; the rest are a smooth figure on
    a smooth ground. 0 to 1."""
    symmetry_share: Share = 0.0
    """Share of images that are mirror images of themselves, left to right. 0 to 1."""
    centered_share: Share = 0.0
    """Share of masks drawn to the middle of the image, as an object on a ground is. 0 to 1."""
    channel_correlation: Share = 0.9
    """Correlation of the color channels. 0 to 1."""
    scene_share: Share | None = None
    """Share of images that are a scene, as photographs are: two to five blobs, one over another,
    each of a medium shade with a gradient and a texture. The shares above are of the rest. 0 to 1.
    Default: half of color images, 0 for one channel."""
    scene_contrast: Weight = 0.3
    """Standard deviation of a scene's shades around the middle, of pixels in [0, 1]; at least 0."""

    def __post_init__(self) -> None:
        if not self.cells or not self.shape_cells:
            raise ConfigError(f"cells must not be empty; got {self.cells}, {self.shape_cells}")


CLOTHES = RandomShapes(stroke_share=0.2, texture_share=0.6, symmetry_share=0.6, centered_share=0.7)
SCENES = RandomShapes(scene_share=1.0, scene_contrast=0.2)


class Start(StrEnum):
    """Pixels before the first step of an optimization."""

    UNIFORM = "uniform"
    GAUSSIAN = "gaussian"
    STRUCTURED = "structured"


@config_class
class PixelConfig:
    """Configuration that all methods share which optimize pixels."""

    batch_size: Positive = 256
    """Images optimized together; at least 1."""
    steps: Positive = 500
    """Adam steps per batch; at least 1."""
    lr: Rate = 0.1
    """Learning rate of Adam, in the teacher's input space; above 0."""
    start: Start = Start.GAUSSIAN
    """Pixels before the first step: gaussian, uniform or structured (random shapes)."""
    shapes: RandomShapes = field(default_factory=RandomShapes)
    """Random shapes of a structured start."""

    def __post_init__(self) -> None:
        if self.start is not Start.STRUCTURED:
            no_effect(self, f"with start {self.start.value}", "shapes")


@config_class
class GeneratorConfig:
    """Configuration that all methods share which train a generator."""

    batch_size: Annotated[Int, at_least(2)] = 512
    """Images per batch; at least 2, for BatchNorm."""
    latent: Positive = 100
    """Length of the generator's input; at least 1."""
    widths: tuple[Positive, Positive] = (128, 64)
    """Channels of the generator's two inner convolutions; at least 1 each."""
    lr: Rate = 1e-3
    """Learning rate of the generator's Adam; above 0."""


@config_class
class NoiseConfig:
    """Configuration of Gaussian noise."""

    batch_size: Positive = 256
    """Images per batch; at least 1."""


@config_class
class StructuredNoiseConfig:
    """Configuration of structured noise."""

    batch_size: Positive = 256
    """Images per batch; at least 1."""
    oversample: Positive = 2
    """Images drawn for each one kept, to balance the classes; at least 1."""
    memory: Positive = 5000
    """Images remembered, evenly over the classes, to fill up classes that are rare in a draw; at
    least 1. At most 64 MiB."""
    mine: Bool = False
    """Prefer images on which the live student is most wrong, by KL: adversarial without a gradient
    step."""
    shapes: RandomShapes = field(default_factory=RandomShapes)
    """Appearance of the shapes."""

    @property
    def adversarial(self) -> bool:
        """Tell whether batches depend on the live student."""
        return self.mine


@config_class
class DaflConfig(GeneratorConfig):
    """Configuration of DAFL; the defaults are the paper's for MNIST."""

    lr: Rate = 0.2
    """Learning rate of the generator's Adam; above 0."""
    one_hot: Weight = 1.0
    """Weight of the one-hot loss; at least 0."""
    information_entropy: Weight = 5.0
    """Weight of the information entropy loss; at least 0."""
    activation: Weight = 0.1
    """Weight of the activation loss; at least 0."""


@config_class
class DeepInversionConfig(PixelConfig):
    """Configuration of DeepInversion; the defaults are the authors' for CIFAR-10."""

    batch_size: Annotated[Int, at_least(2)] = 256
    """Images optimized together; at least 2. Statistics are matched over a batch: keep it large."""
    steps: Positive = 2000
    """Adam steps per batch; at least 1."""
    low_resolution_steps: Annotated[Int, at_least(0)] = 0
    """The first of `steps`, taken at half resolution, before Adam and its schedule begin again; 0
    to `steps`."""
    lr: Rate = 0.05
    """Learning rate of Adam, in the teacher's input space; above 0."""
    betas: tuple[Decay, Decay] = (0.9, 0.999)
    """Decay of Adam's two averages; each in [0, 0.9999]."""
    lr_warm_up: Annotated[Int, at_least(0)] = 0
    """Steps over which the learning rate rises to `lr` at each resolution; at least 0."""
    cosine: Bool = False
    """Anneal the learning rate to 0 by a cosine after the warm-up."""
    batch_norm: Weight = 10.0
    """Weight of the distance from the BatchNorm statistics; at least 0."""
    first_batch_norm: Weight = 1.0
    """Extra factor of the first BatchNorm layer; at least 0. The authors' ImageNet code has 10."""
    total_variation: Weight = 2.5e-5
    """Weight of total variation, summed over the batch; at least 0."""
    l2: Weight = 0.0
    """Weight of the images' mean l2 norm; at least 0."""
    jitter: Annotated[Int, at_least(0)] = 2
    """Largest random shift in pixels of full resolution, rolled around the edges; at least 0."""
    flip: Bool = True
    """Mirror half of the steps left to right. Turn it off for digits and text."""
    competition: Weight = 0.0
    """Weight of the competition against the live student; at least 0. Adaptive DeepInversion has 10
    on CIFAR-10, 0.2 in the authors' ImageNet code. It needs `distill.fresh_every`."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.low_resolution_steps > self.steps:
            raise ConfigError(
                f"low_resolution_steps must be in [0, {self.steps}], the steps; got "
                f"{self.low_resolution_steps}"
            )

    @property
    def adversarial(self) -> bool:
        """Tell whether batches depend on the live student."""
        return self.competition > 0


@config_class
class ZskdConfig(PixelConfig):
    """Configuration of ZSKD."""

    batch_size: Positive = 500
    """Data impressions optimized together; at least 1. Each is independent: a matter of speed."""
    steps: Positive = 150
    """Adam steps per batch; at least 1. The authors' code has 1500 at 1e-3, of pixels in [0, 1]."""
    lr: Rate = 0.15
    """Learning rate of Adam, in the teacher's input space; above 0."""
    temperature: Rate = 20.0
    """Temperature of the teacher's softmax while optimizing; above 0."""
    betas: tuple[Rate, ...] = (1.0, 0.1)
    """Scales of the Dirichlet concentration, in equal shares: near 1 spread, near 0 peaked."""
    rescale_rows: Bool = True
    """Rescale each class's similarities to [0, 1], as in the paper. False rescales over all classes
    at once, which leaves targets more mixed: the recipe's student has 94.8 %, not 90.8."""
    start: Start = Start.UNIFORM
    """Pixels before the first step: uniform (the paper's), gaussian or structured."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.betas:
            raise ConfigError("betas must not be empty; got ()")


@config_class
class ZsktConfig(GeneratorConfig):
    """Configuration of ZSKT; the defaults are the paper's."""

    batch_size: Annotated[Int, at_least(2)] = 128
    """Images per batch; at least 2, for BatchNorm."""
    clip: Weight = 5.0
    """Largest norm of the gradient of the generator's KL, a mean over batch and classes; 0 for no
    limit."""
    student_steps: Positive = 10
    """Student steps on the same z after each generator step; at least 1."""
    cosine_batches: Annotated[Int, at_least(0)] | None = None
    """Batches over which the generator's learning rate is annealed to 0 by a cosine; 0 keeps it.
    Default: all batches of a distillation, those of model selection included."""


@config_class
class DfadConfig(GeneratorConfig):
    """Configuration of DFAD; the defaults are the paper's for MNIST."""

    student_steps: Positive = 5
    """Batches for the student after each generator step; at least 1."""
    drops: tuple[Share, ...] = ()
    """Shares of a distillation's batches, 0 to 1, after which the generator's learning rate falls
    to a tenth."""
    log_loss: Bool = False
    """Use -log(1 + L1) in place of -L1: its gradient is smaller where the networks differ most. The
    paper takes it for segmentation."""


@config_class
class RdskdConfig(GeneratorConfig):
    """Configuration of RDSKD; the defaults are the authors' for MNIST."""

    batch_size: Annotated[Int, at_least(4)] = 512
    """Images per batch, one half compared with the other; even and at least 4."""
    generator_steps: Positive = 2400
    """Steps of the first phase; at least 1."""
    refresh_every: Positive = 120
    """Steps after which the exponential penalties take the present losses as their base."""
    one_hot: Weight = 1.0
    """Weight of authenticity; at least 0. The paper has 1, and no weight needs tuning."""
    information_entropy: Weight = 1.0
    """Weight of class diversity; at least 0."""
    diversity: Weight = 1.0
    """Weight of inter-sample diversity; at least 0."""

    def __post_init__(self) -> None:
        if self.batch_size % 2:
            raise ConfigError(f"batch_size must be even; got {self.batch_size}")


@config_class
class AbdConfig(GeneratorConfig):
    """Configuration of Always Be Dreaming's generator; the authors' values for CIFAR-100."""

    batch_size: Annotated[Int, at_least(2)] = 128
    """Images per batch; at least 2, for BatchNorm."""
    latent: Positive = 1000
    """Length of the generator's input; at least 1."""
    generator_steps: Positive = 10_000
    """Steps of the first phase; at least 1."""
    content: Weight = 1.0
    """Weight of the teacher's certainty about each image; at least 0."""
    temperature: Rate = 1e3
    """Temperature of the teacher's logits in that loss; above 0."""
    information_entropy: Weight = 1.0
    """Weight of class balance; at least 0."""
    batch_norm: Weight = 50.0
    """Weight of the distance from the BatchNorm statistics; at least 0."""
    prior: Weight = 1e-3
    """Weight of smoothness; at least 0."""


class Scheme(StrEnum):
    """Objectives of The Knowledge Within."""

    INCEPTION = "inception"
    BNS = "bns"
    BNS_INCEPTION = "bns+i"


@config_class
class KnowledgeWithinConfig(PixelConfig):
    """Configuration of The Knowledge Within; the numbers are ours."""

    batch_size: Annotated[Int, at_least(2)] = 256
    """Images optimized together; at least 2. Statistics are matched over a batch: keep it large."""
    scheme: Scheme = Scheme.BNS_INCEPTION
    """inception: the class's logit and the image prior. bns: BatchNorm statistics, of a teacher
    that has them. bns+i: both."""
    inception: Weight = 0.01
    """Weight of the logit; at least 0."""
    prior: Weight = 0.1
    """Weight of the image prior, the squared distance to a blurred copy; at least 0."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.scheme is Scheme.BNS:
            no_effect(self, "with scheme bns", "inception", "prior")


@config_class
class MetadataConfig(PixelConfig):
    """Configuration of metadata distillation; the authors' numbers, but for the start.

    Their learning rate is of pixels in [0, 1]; the preset has it in the input space.
    """

    file: Text = ""
    """Path of the statistics that the teacher's owner recorded (`dreamstill metadata`)."""
    batch_size: Positive = 64
    """Images optimized together; at least 1. Each is independent: a matter of speed."""
    steps: Positive = 1000
    """Adam steps per batch; at least 1."""
    lr: Rate = 0.07
    """Learning rate of Adam, in the teacher's input space; above 0."""
