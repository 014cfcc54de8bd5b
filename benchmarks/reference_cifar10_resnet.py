"""Methods on CIFAR-10: an independent ResNet-20 to a ResNet-20 of half its width.

    python -m benchmarks.independent --data FOLDER --weights FILE.th --out TEACHERS
    python -m benchmarks.reference_cifar10_resnet --data FOLDER --teachers TEACHERS --seeds 1

The teacher was trained on lossless CIFAR-10; FOLDER holds a JPEG copy (quality 75, PSNR about
30 dB), so read each row against the teacher's own accuracy there and against the agreement. Sized
to a CPU: 1,000 student steps, generators of (32, 16) channels, 512 optimized images at 100 steps,
networks in bfloat16. The rows "inherited" start from the teacher's channels; those "reconstructed"
also have their layers solved on the images; "by layers" they learn what the teacher's layers make
in place of its answers.
"""

from dataclasses import replace
from typing import Any

from benchmarks.protocol import Benchmark, Row, floors, main
from benchmarks.resnets import THINGS
from dreamstill.config import Precision
from dreamstill.data.config import Augmentation
from dreamstill.distillation.config import DistillConfig, LossName
from dreamstill.synthesis.activation_statistics import Kind
from dreamstill.synthesis.config import (
    AbdConfig,
    KnowledgeWithinConfig,
    MetadataConfig,
    Start,
    StructuredNoiseConfig,
    ZskdConfig,
)
from dreamstill.synthesis.methods import dafl, deepinversion, dfad, rdskd, zskt

SCHEDULE = DistillConfig(steps=1000, batch_size=64, lr=3e-3, validate_every=250, num_validation=512)
WIDTHS = (32, 16)
SHAKE = Augmentation(shift=0.1, scale=0.1, mix=True, flip=True)
OPTIMIZED = replace(SCHEDULE, buffer_size=512, num_validation=128, augment=SHAKE)
STRUCTURED = StructuredNoiseConfig(batch_size=64, oversample=3, shapes=THINGS)
INVERSION = replace(deepinversion.CIFAR10, batch_size=128, steps=100)
SHAPES: dict[str, Any] = {"start": Start.STRUCTURED, "shapes": THINGS}
GENERATOR: dict[str, Any] = {"batch_size": 64, "widths": WIDTHS}

FLOORS = floors(SCHEDULE, STRUCTURED)
INVERTED = Row(
    method="deepinversion",
    synthesis=replace(INVERSION, **SHAPES),
    distill=OPTIMIZED,
    inherit=True,
)
DAFL = Row(
    method="dafl",
    synthesis=replace(dafl.CIFAR10, batch_size=128, widths=WIDTHS),
    distill=replace(SCHEDULE, fresh_every=2, augment=SHAKE),
)
DFAD = Row(
    method="dfad",
    synthesis=replace(dfad.CIFAR10, drops=(), **GENERATOR),
    distill=replace(SCHEDULE, losses=(LossName.L1,)),
)


INHERITED = {name: replace(row, inherit=True) for name, row in FLOORS.items()} | {
    "deepinversion from structured noise": INVERTED,
    "deepinversion (20 steps, 2,048 images) from structured noise": replace(
        INVERTED,
        synthesis=replace(INVERTED.synthesis, steps=20, lr=0.05),
        distill=replace(INVERTED.distill, buffer_size=2048),
    ),
}
RECONSTRUCTED = {
    f"{name}, reconstructed": replace(row, reconstruct=2048) for name, row in INHERITED.items()
}


def optimized(method: str, synthesis: Any, **changes: Any) -> Row:
    return Row(method=method, synthesis=synthesis, distill=replace(OPTIMIZED, **changes))


BENCHMARK = Benchmark(
    name="reference_cifar10_resnet",
    data="cifar10",
    teacher="resnet20",
    student="dreamstill.nn.resnet_cifar:resnet20_half",
    precision=Precision.BFLOAT16,
    rows={
        **FLOORS,
        **{f"{name}, inherited": row for name, row in INHERITED.items()},
        **RECONSTRUCTED,
        **{
            f"{name}, by layers": replace(
                row, distill=replace(row.distill, losses=(LossName.LAYERS,))
            )
            for name, row in RECONSTRUCTED.items()
        },
        "deepinversion": optimized("deepinversion", INVERSION),
        "deepinversion from structured noise": optimized(
            "deepinversion", replace(INVERSION, **SHAPES)
        ),
        "dafl": DAFL,
        "dafl after structured noise": replace(DAFL, after=500),
        "dfad": DFAD,
        "dfad after structured noise": replace(DFAD, after=500),
        "zskt": Row(
            method="zskt",
            synthesis=zskt.ZsktConfig(**GENERATOR, cosine_batches=0),
            distill=replace(
                SCHEDULE,
                losses=(LossName.KL, LossName.ATTENTION),
                temperature=1.0,
                clip_gradient=5.0,
            ),
        ),
        "zskd": optimized("zskd", ZskdConfig(rescale_rows=False, steps=100, batch_size=128)),
        "zskd from structured noise": Row(
            method="zskd",
            synthesis=ZskdConfig(
                rescale_rows=False, batch_size=64, steps=10, lr=0.1, temperature=4.0, **SHAPES
            ),
            distill=replace(SCHEDULE, prefill=0, fresh_every=4, augment=SHAKE),
        ),
        "knowledge within (bns+i)": optimized(
            "knowledge_within", KnowledgeWithinConfig(batch_size=128, steps=100)
        ),
        "rdskd": Row(
            method="rdskd",
            synthesis=replace(rdskd.COLOR, batch_size=128, widths=WIDTHS, generator_steps=400),
            distill=SCHEDULE,
        ),
        "abd": Row(
            method="abd",
            synthesis=AbdConfig(widths=WIDTHS, generator_steps=400),
            distill=SCHEDULE,
        ),
        "adaptive deepinversion": optimized(
            "deepinversion", replace(INVERSION, competition=10.0), prefill=256, fresh_every=400
        ),
        "metadata (all)": optimized(
            "metadata", MetadataConfig(file=Kind.ALL.value, batch_size=128, steps=100)
        ),
        "structured noise (mined)": Row(
            method="structured_noise", synthesis=replace(STRUCTURED, mine=True), distill=SCHEDULE
        ),
        "unrelated": Row(method="unrelated", synthesis="fashion_mnist", distill=SCHEDULE),
    },
)

if __name__ == "__main__":
    main(BENCHMARK)
