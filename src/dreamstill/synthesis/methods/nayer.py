"""NAYER: a generator whose inputs are the classes, and whose randomness is a layer drawn anew.

Source: Tran et al., "NAYER: Noisy Layer Data Generation for Efficient and Effective Data-free
Knowledge Distillation", CVPR 2024, and the authors' code. Differences from the code:

- A class is represented by its row of the teacher's last linear layer, of unit length, in place of
  CLIP's embedding of its name: nothing but the teacher is needed, and the classes need no names.
- Classes beyond whole sets are taken in turn, where theirs are drawn with replacement.
- A generator lives for `generator_life` batches from the first on; theirs lives longer in the
  warm-up.
- The images that are kept have the lowest loss of their own batch; theirs is compared with that of
  the batches before in the same epoch, so that most keep what an early step made.
- The end of the generator, the shifts and the first images are those of `fastdfkd`.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dreamstill.data.batch import Batch, answered
from dreamstill.synthesis.class_balance import Turns
from dreamstill.synthesis.config import NayerConfig
from dreamstill.synthesis.few_steps import FewSteps
from dreamstill.synthesis.generator import LatentGenerator
from dreamstill.teacher import Teacher

__all__ = ["Nayer", "NayerConfig", "NoisyLayers"]


class NoisyLayers(nn.Module):
    """Linear layers, each for `num_classes` consecutive inputs of a batch: K-to-1.

    Args:
        inputs, outputs: sizes of each layer.
        batch_size: N.
        num_classes: K; there are N / K layers, rounded up.

    """

    def __init__(self, inputs: int, outputs: int, batch_size: int, num_classes: int) -> None:
        super().__init__()
        num = -(-batch_size // num_classes)
        self.weight = nn.Parameter(torch.zeros(num, inputs, outputs))
        self.bias = nn.Parameter(torch.zeros(num, 1, outputs))
        self.num_classes = num_classes

    def draw(self, rng: torch.Generator) -> None:
        """Draw all weights from N(0, 1), and set the biases to 0."""
        nn.init.normal_(self.weight, generator=rng)
        nn.init.zeros_(self.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Return (N, outputs) for x (N, inputs)."""
        num = len(self.weight)
        whole = F.pad(x, (0, 0, 0, num * self.num_classes - len(x)))
        grouped = whole.view(num, self.num_classes, -1)
        return (grouped @ self.weight + self.bias).flatten(0, 1)[: len(x)]


class Nayer(FewSteps):
    """Method that optimizes noisy layers and the generator behind them, for classes in turn."""

    config: NayerConfig
    needs = (*FewSteps.needs, "last_linear")
    state = (*FewSteps.state, "turns")

    def __init__(self, teacher: Teacher, config: NayerConfig, *, rng: torch.Generator) -> None:
        super().__init__(teacher, config, rng=rng)
        self.embeddings = F.normalize(teacher.last_linear.weight.detach())
        self.turns = Turns(teacher.num_classes, rng.device)
        self.generator = self._new_generator()

    def _new_generator(self) -> LatentGenerator:
        size, config = self.embeddings.shape[1], self.config
        self.noisy = NoisyLayers(size, config.latent, config.batch_size, self.teacher.num_classes)
        before = (nn.BatchNorm1d(size), self.noisy)
        generator = LatentGenerator(
            self.teacher, config, self.rng, before=before, betas=(0.5, 0.999)
        )
        self.noisy.draw(self.rng)
        return generator

    def next_batch(self, student: nn.Module | None = None) -> Batch:
        """Optimize a batch; leave new noisy layers, or a whole new generator, for the next."""
        rival = self.rival("nayer", student)
        classes = self.turns.take(self.config.batch_size)
        images = self.take_steps(self.generator, self.embeddings[classes], classes, rival)
        if self.batches % self.config.generator_life == 0:
            self.generator = self._new_generator()
        else:
            self.noisy.draw(self.rng)
            self.generator.restart(self.config.lr)
        return answered(self.teacher, images)
