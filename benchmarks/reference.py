"""All methods on one teacher, student, schedule and number of student steps: one record a data set.

    python -m benchmarks.reference_mnist --data FOLDER
    python -m benchmarks.reference_fashion_mnist --data FOLDER
    python -m benchmarks.reference_mnist_lenet5 --data FOLDER
    python -m benchmarks.reference_fashion_mnist_lenet5 --data FOLDER
    python -m benchmarks.reference_mnist_hinton --data FOLDER --teachers TEACHERS
    python -m benchmarks.reference_fashion_mnist_hinton --data FOLDER --teachers TEACHERS

LeNet-5 with BatchNorm to its half, so that every method can take part; and the plain LeNet-5 and
Hinton's MLP to theirs, with the methods that can do without BatchNorm. Each method is
sized to a CPU: generators of (32, 16) channels, 2,048 optimized images at 100 steps. The rows
"after structured noise" spend the first half of the steps there; those "from structured noise"
start their pixels there: what is gained by optimizing on top of a free start. What the student pays
is Dreamstill's default, KL at temperature 4 and L1, for all but ZSKT and DFAD, whose losses are
part of their game: the rows compare images. The papers' students, in the presets, have KL at 1
(DAFL), 3 (DeepInversion), 10 (RDSKD) and 20 (ZSKD).
"""

from dataclasses import replace
from typing import Any

from benchmarks.protocol import Benchmark, Row, floors
from dreamstill.data.config import Augmentation
from dreamstill.distillation.config import DistillConfig, LossName
from dreamstill.synthesis.activation_statistics import Kind
from dreamstill.synthesis.config import (
    AbdConfig,
    DaflConfig,
    DeepInversionConfig,
    DfadConfig,
    KnowledgeWithinConfig,
    MetadataConfig,
    RandomShapes,
    RdskdConfig,
    Scheme,
    Start,
    StructuredNoiseConfig,
    ZskdConfig,
    ZsktConfig,
)

__all__ = ["reference"]

SCHEDULE = DistillConfig(
    steps=1500, batch_size=64, lr=3e-3, validate_every=250, num_validation=1024
)
WIDTHS = (32, 16)
POOL = 2048


def reference(
    name: str,
    data: str,
    teacher: str,
    student: str,
    *,
    unrelated: str,
    shapes: RandomShapes,
    flip: bool,
    batch_norm: bool = True,
    maps: bool = True,
    published: dict[str, float] | None = None,
) -> Benchmark:
    """Every method's row, and the floors and the bound.

    Args:
        name, data, teacher, student: of the record.
        unrelated: the other set whose images are a floor.
        drawing: of structured noise.
        flip: images may be mirrored.
        batch_norm: the teacher has BatchNorm: without it go the methods that match its statistics.
        maps: it has feature maps: without them ZSKT goes by its logits alone.
        published: the papers' figures for the pair, after the papers' steps.

    """
    shake = Augmentation(shift=0.15, rotate=20, scale=0.2, noise=0.2, mix=True, flip=flip)
    structured = StructuredNoiseConfig(oversample=3, shapes=shapes)

    def streamed(method: str, synthesis: Any, **changes: Any) -> Row:
        return Row(method=method, synthesis=synthesis, distill=replace(SCHEDULE, **changes))

    def optimized(method: str, synthesis: Any, **changes: Any) -> Row:
        num_validation = {"num_validation": 256, "buffer_size": POOL, "augment": shake}
        return streamed(method, synthesis, **(num_validation | changes))

    inversion = DeepInversionConfig(steps=100, lr=0.1, flip=flip)
    within = KnowledgeWithinConfig(steps=100)
    adaptive = replace(inversion, competition=10.0)
    dafl = DaflConfig(batch_size=128, widths=WIDTHS)
    dfad = DfadConfig(batch_size=128, widths=WIDTHS)
    rdskd = RdskdConfig(batch_size=128, widths=WIDTHS, generator_steps=600)
    abd = AbdConfig(widths=WIDTHS, generator_steps=600)
    rows = {
        "dafl": streamed("dafl", dafl, fresh_every=2, augment=shake),
        "deepinversion": optimized("deepinversion", inversion),
        "adaptive deepinversion": optimized(
            "deepinversion", adaptive, prefill=POOL // 2, fresh_every=150
        ),
        "zskd": optimized("zskd", ZskdConfig(rescale_rows=False, steps=100, batch_size=256)),
        "zskt": streamed(
            "zskt",
            ZsktConfig(widths=WIDTHS, cosine_batches=0),
            losses=(LossName.KL, LossName.ATTENTION) if maps else (LossName.KL,),
            temperature=1.0,
            clip_gradient=5.0,
        ),
        "dfad": streamed("dfad", dfad, losses=(LossName.L1,)),
        "rdskd": streamed("rdskd", rdskd),
        "abd": streamed("abd", abd),
        **{
            f"metadata ({kind.value})": optimized(
                "metadata", MetadataConfig(file=kind.value, batch_size=256, steps=100)
            )
            for kind in Kind
        },
        **{
            f"knowledge within ({scheme.value})": optimized(
                "knowledge_within", replace(within, scheme=scheme)
            )
            for scheme in Scheme
        },
        "structured noise (mined)": streamed(
            "structured_noise", replace(structured, batch_size=64, mine=True)
        ),
        "unrelated": streamed("unrelated", unrelated),
        **floors(SCHEDULE, structured),
    }
    for name_of, row in list(rows.items()):
        if hasattr(row.synthesis, "start"):
            start = replace(row.synthesis, start=Start.STRUCTURED, shapes=shapes)
            rows[f"{name_of} from structured noise"] = replace(row, synthesis=start)
    for name_of in ("dafl", "zskt", "dfad", "rdskd", "abd"):
        after = SCHEDULE.steps // 2
        rows[f"{name_of} after structured noise"] = replace(rows[name_of], after=after)
    if not batch_norm:
        matched = ("deepinversion", "knowledge within (bns", "abd")
        rows = {
            name_of: row for name_of, row in rows.items() if not any(m in name_of for m in matched)
        }
    return Benchmark(
        name=name, data=data, teacher=teacher, student=student, rows=rows, published=published or {}
    )
