"""Configuration of the methods; most defaults are those of their papers."""

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
    "FastDfkdConfig",
    "ImageProgramsConfig",
    "KnowledgeWithinConfig",
    "MetaGradient",
    "MetadataConfig",
    "NayerConfig",
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
    """Appearance of random shapes; the defaults suit images of 28 to 64 pixels."""

    cells: tuple[Cells, ...] = (2, 4, 8, 16, 32)
    """Grid cells along the longer side of each random field, coarse to fine; at least 2 each."""
    shape_cells: tuple[Cells, ...] = (3, 5, 8)
    """Grid cells of the fields whose level lines are shapes; at least 2 each."""
    stroke_share: Share = 0.9
    """Share of masks that are strokes along a level line; the rest are blobs. 0 to 1."""
    texture_share: Share = 0.3
    """Share of images that show a rough texture through the mask; the rest show a smooth figure on
    a smooth ground. 0 to 1."""
    symmetry_share: Share = 0.0
    """Share of images that are symmetric, left to right. 0 to 1."""
    centered_share: Share = 0.0
    """Share of masks centered in the image, like an object on a ground. 0 to 1."""
    channel_correlation: Share = 0.9
    """Correlation of the color channels. 0 to 1."""
    scene_share: Share | None = None
    """Share of images that are scenes, similar to photographs: two to five overlapping blobs, each
    of a medium shade with a gradient and a texture. The other shares apply to the rest. 0 to 1.
    Default: 0.5 for color images, 0 for one channel."""
    scene_contrast: Weight = 0.3
    """Standard deviation of a scene's shades around 0.5, for pixels in [0, 1]; at least 0."""

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
    """Base of the configuration of methods that optimize pixels."""

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
    """Base of the configuration of methods that train a generator."""

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
class BalancedDrawsConfig:
    """Base of the configuration of methods that draw images and balance the classes."""

    batch_size: Positive = 256
    """Images per batch; at least 1."""
    oversample: Positive = 2
    """Images drawn per image kept, to balance the classes; at least 1."""
    memory: Positive = 5000
    """Images remembered, evenly over the classes, to fill up classes that are rare in a draw; at
    least 1. Limited to 64 MiB."""
    mine: Bool = False
    """Prefer images with the largest KL between teacher and live student."""

    @property
    def adversarial(self) -> bool:
        """Whether batches depend on the live student."""
        return self.mine


@config_class
class StructuredNoiseConfig(BalancedDrawsConfig):
    """Configuration of structured noise."""

    shapes: RandomShapes = field(default_factory=RandomShapes)
    """Appearance of the shapes."""


@config_class
class ImageProgramsConfig(BalancedDrawsConfig):
    """Configuration of image programs."""

    programs: tuple[Text, ...] = ()
    """Names of the programs to draw with; see docs/image_programs.md. Default: all."""
    fit: Bool = True
    """Choose images that fit the teacher; otherwise all programs have the same share."""


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
    """Number of the first steps, at half resolution, after which Adam and its schedule restart; 0
    to `steps`."""
    lr: Rate = 0.05
    """Learning rate of Adam, in the teacher's input space; above 0."""
    betas: tuple[Decay, Decay] = (0.9, 0.999)
    """Decay rates of Adam's two averages; each in [0, 0.9999]."""
    lr_warm_up: Annotated[Int, at_least(0)] = 0
    """Steps over which the learning rate rises to `lr` at each resolution; at least 0."""
    cosine: Bool = False
    """Anneal the learning rate to 0 by a cosine after the warm-up."""
    batch_norm: Weight = 10.0
    """Weight of the distance from the BatchNorm statistics; at least 0."""
    first_batch_norm: Weight = 1.0
    """Extra factor of the first BatchNorm layer; at least 0. The authors use 10 for ImageNet."""
    total_variation: Weight = 2.5e-5
    """Weight of total variation, summed over the batch; at least 0."""
    l2: Weight = 0.0
    """Weight of the images' mean l2 norm; at least 0."""
    jitter: Annotated[Int, at_least(0)] = 2
    """Largest random shift in pixels of full resolution, rolled around the edges; at least 0."""
    flip: Bool = True
    """Mirror half of the steps left to right. Turn it off for digits and text."""
    competition: Weight = 0.0
    """Weight of the competition against the live student; at least 0. Adaptive DeepInversion uses
    10 for CIFAR-10 and 0.2 for ImageNet. It needs `distill.fresh_every`."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.low_resolution_steps > self.steps:
            raise ConfigError(
                f"low_resolution_steps must be in [0, {self.steps}], the steps; got "
                f"{self.low_resolution_steps}"
            )

    @property
    def adversarial(self) -> bool:
        """Whether batches depend on the live student."""
        return self.competition > 0


@config_class
class ZskdConfig(PixelConfig):
    """Configuration of ZSKD."""

    batch_size: Positive = 500
    """Data impressions optimized together, each independently of the others; at least 1."""
    steps: Positive = 150
    """Adam steps per batch; at least 1. The authors use 1500 at 1e-3, on pixels in [0, 1]."""
    lr: Rate = 0.15
    """Learning rate of Adam, in the teacher's input space; above 0."""
    temperature: Rate = 20.0
    """Temperature of the teacher's softmax in the loss of the images; above 0."""
    betas: tuple[Rate, ...] = (1.0, 0.1)
    """Scales of the Dirichlet concentration, used in turn; above 0. Small ones give peaked
    targets."""
    rescale_rows: Bool = True
    """Rescale the similarities of each class to [0, 1], as in the paper. False rescales all classes
    at once: targets are more mixed, and the recipe's student reaches 94.8 %, not 90.8 %."""
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
    """Maximum norm of the gradient of the generator's KL, a mean over batch and classes; 0 for no
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
    """Student batches after each generator step; at least 1."""
    drops: tuple[Share, ...] = ()
    """Fractions of a distillation's batches, 0 to 1, after which the generator's learning rate is
    divided by 10."""
    log_loss: Bool = False
    """Use -log(1 + L1) in place of -L1, as the paper does for segmentation: its gradient is smaller
    where the networks differ most."""


@config_class
class RdskdConfig(GeneratorConfig):
    """Configuration of RDSKD; the defaults are the authors' for MNIST."""

    batch_size: Annotated[Int, at_least(4)] = 512
    """Images per batch, whose halves are compared; even and at least 4."""
    generator_steps: Positive = 2400
    """Steps of the first phase; at least 1."""
    refresh_every: Positive = 120
    """Steps after which the current losses become the base of the exponential penalties; at
    least 1."""
    one_hot: Weight = 1.0
    """Weight of authenticity; at least 0."""
    information_entropy: Weight = 1.0
    """Weight of class diversity; at least 0."""
    diversity: Weight = 1.0
    """Weight of inter-sample diversity; at least 0."""

    def __post_init__(self) -> None:
        if self.batch_size % 2:
            raise ConfigError(f"batch_size must be even; got {self.batch_size}")


@config_class
class AbdConfig(GeneratorConfig):
    """Configuration of Always Be Dreaming; the defaults are the authors' for CIFAR-100."""

    batch_size: Annotated[Int, at_least(2)] = 128
    """Images per batch; at least 2, for BatchNorm."""
    latent: Positive = 1000
    """Length of the generator's input; at least 1."""
    generator_steps: Positive = 10_000
    """Steps of the first phase; at least 1."""
    content: Weight = 1.0
    """Weight of the content loss, the teacher's cross-entropy with its own prediction; at
    least 0."""
    temperature: Rate = 1e3
    """Temperature of the teacher's logits in the content loss; above 0."""
    information_entropy: Weight = 1.0
    """Weight of class balance; at least 0."""
    batch_norm: Weight = 50.0
    """Weight of the distance from the BatchNorm statistics; at least 0."""
    prior: Weight = 1e-3
    """Weight of smoothness; at least 0."""


@config_class
class FewStepsConfig(GeneratorConfig):
    """Base of the configuration of methods that take a few generator steps for each batch."""

    batch_size: Annotated[Int, at_least(2)] = 256
    """Images optimized together; at least 2. Statistics are matched over a batch: keep it large."""
    generator_steps: Positive = 5
    """Adam steps per batch; at least 1."""
    batch_norm: Weight = 10.0
    """Weight of the distance from the BatchNorm statistics; at least 0."""
    momentum: Decay = 0.9
    """Share of earlier batches in the statistics that are matched; 0 to 0.9999. The weight of
    `batch_norm` falls by as much: the newest batch counts for the rest."""
    one_hot: Weight = 0.4
    """Weight of the cross-entropy with the class that an image is for; at least 0."""
    adversarial: Weight = 1.1
    """Weight of the KL between teacher and live student, on images on which they agree; at least 0.
    It needs `distill.fresh_every`; at 0 there is no need of a student."""
    warm_up: Annotated[Int, at_least(0)] = 20
    """Number of first batches without the adversarial term, drawn ones included; at least 0."""
    shift: Annotated[Int, at_least(0)] = 4
    """Largest random shift in pixels of each image that the teacher is shown; at least 0."""
    flip: Bool = True
    """Show the teacher half of the images mirrored left to right. Turn it off for digits and
    text."""
    drawn_start: Bool = True
    """Begin a replay buffer that fresh batches follow with images of image programs, which nothing
    optimized. Turn it off for the papers' start, images of the generator."""


class MetaGradient(StrEnum):
    """Gradients by which FastDFKD's generator learns from its adapted copies."""

    FOMAML = "fomaml"
    REPTILE = "reptile"


@config_class
class FastDfkdConfig(FewStepsConfig):
    """Configuration of FastDFKD; the defaults are the authors' for WRN-40-2 and five steps."""

    latent: Positive = 256
    """Length of the generator's input; at least 1."""
    lr: Rate = 3e-3
    """Learning rate of the Adam of the generator's copy; above 0. The generator's own is
    `generator_steps` times as much."""
    latent_lr: Rate = 0.01
    """Learning rate of the latent vectors; above 0."""
    meta_gradient: MetaGradient = MetaGradient.FOMAML
    """fomaml: the sum of the copy's gradients. reptile: the way that the copy has gone, back."""
    reset_after: Share = 0.63
    """Share of a distillation's batches, 0 to 1, after which the generator's first layer is drawn
    anew; 0 for never."""


@config_class
class NayerConfig(FewStepsConfig):
    """Configuration of NAYER; the defaults are the authors' for CIFAR-10."""

    batch_size: Annotated[Int, at_least(2)] = 400
    """Images optimized together; at least 2. A multiple of the number of classes is best."""
    latent: Positive = 1000
    """Size of the noisy layer's output, the generator's input; at least 1."""
    lr: Rate = 4e-3
    """Learning rate of Adam, which starts anew with each batch; above 0."""
    generator_steps: Positive = 30
    """Adam steps per batch; at least 1. The authors take 40 for 100 classes and 60 for 200."""
    one_hot: Weight = 0.5
    """Weight of the cross-entropy with the class that an image is for; at least 0."""
    adversarial: Weight = 1.33
    """Weight of the KL between teacher and live student, on images on which they agree; at least 0.
    It needs `distill.fresh_every`; at 0 there is no need of a student."""
    warm_up: Annotated[Int, at_least(0)] = 200
    """Number of first batches without the adversarial term; at least 0."""
    generator_life: Positive = 20
    """Batches after which another generator begins; at least 1."""


class Scheme(StrEnum):
    """Objectives of The Knowledge Within."""

    INCEPTION = "inception"
    BNS = "bns"
    BNS_INCEPTION = "bns+i"


@config_class
class KnowledgeWithinConfig(PixelConfig):
    """Configuration of The Knowledge Within; the defaults are ours."""

    batch_size: Annotated[Int, at_least(2)] = 256
    """Images optimized together; at least 2. Statistics are matched over a batch: keep it large."""
    scheme: Scheme = Scheme.BNS_INCEPTION
    """inception: the logit of the class and the image prior. bns: BatchNorm statistics. bns+i:
    both."""
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
    """Configuration of metadata distillation; the defaults are the authors', except the start.

    Their learning rate is for pixels in [0, 1]; the preset converts it to the input space.
    """

    file: Text = ""
    """Path of the statistics that the teacher's owner recorded with `dreamstill metadata`."""
    batch_size: Positive = 64
    """Images optimized together, each independently of the others; at least 1."""
    steps: Positive = 1000
    """Adam steps per batch; at least 1."""
    lr: Rate = 0.07
    """Learning rate of Adam, in the teacher's input space; above 0."""
