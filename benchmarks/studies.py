"""What the studies of single methods share: LeNet-5 as the teacher on MNIST, 1,500 steps."""

from benchmarks.protocol import Benchmark, Row, floors
from dreamstill.data.config import Augmentation
from dreamstill.distillation.config import DistillConfig
from dreamstill.synthesis.config import StructuredNoiseConfig

__all__ = ["SCHEDULE", "SHAKE", "WIDTHS", "study"]

SCHEDULE = DistillConfig(steps=1500, batch_size=64, lr=3e-3, validate_every=250, num_validation=512)
SHAKE = Augmentation(shift=0.1, rotate=15, scale=0.15, mix=True)
WIDTHS = (32, 16)


def study(
    name: str, rows: dict[str, Row], published: dict[str, float], student: str = "lenet5_half"
) -> Benchmark:
    """Rows of one method beside the floors and the bound."""
    return Benchmark(
        name=name,
        data="mnist",
        teacher="lenet5_mnist",
        student=f"dreamstill.nn.lenet:{student}",
        rows=rows | floors(SCHEDULE, StructuredNoiseConfig()),
        published=published,
    )
