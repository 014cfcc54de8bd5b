"""Methods on CIFAR-10: an independent ResNet-20 to a ResNet-20 of half its width.

    python -m benchmarks.independent --data FOLDER --weights FILE.th --out TEACHERS
    python -m benchmarks.reference_cifar10_resnet --data FOLDER --teachers TEACHERS --seeds 1

The teacher was trained on lossless CIFAR-10; FOLDER holds a JPEG copy (quality 75, PSNR about
30 dB), so read each row against the teacher's own accuracy there and against the agreement. Sized
to a CPU: 1,000 student steps, generators of (32, 16) channels, 512 optimized images.
"""

from dataclasses import replace
from typing import Any

from benchmarks.protocol import Benchmark, Row, floors, main
from dreamstill.pool import Augmentation
from dreamstill.synthesis import dafl, deepinversion, dfad, zskt
from dreamstill.synthesis.drawings import Drawing
from dreamstill.synthesis.pixels import Start
from dreamstill.synthesis.structured_noise import StructuredNoiseSettings
from dreamstill.synthesis.zskd import ZskdSettings
from dreamstill.tasks.distill import DistillSettings
from dreamstill.tasks.transfer import Transfer

SCHEDULE = DistillSettings(steps=1000, batch_size=64, lr=3e-3, judge_every=250, held_out=512)
WIDTHS = (32, 16)
SHAKE = Augmentation(shift=0.1, scale=0.1, mix=True, flip=True)
OPTIMIZED = replace(SCHEDULE, pool=512, held_out=128, augment=SHAKE)
THINGS = Drawing(stroke_share=0.2, texture_share=0.6, centered_share=0.5, symmetry_share=0.2)
STRUCTURED = StructuredNoiseSettings(batch_size=64, oversample=3, drawing=THINGS)
INVERSION = replace(deepinversion.CIFAR10, batch_size=128, steps=100)
SHAPES: dict[str, Any] = {"start": Start.STRUCTURED, "drawing": THINGS}

BENCHMARK = Benchmark(
    name="reference_cifar10_resnet",
    data="cifar10",
    teacher="resnet20",
    student="dreamstill.nets.resnet_cifar:resnet20_half",
    rows={
        **floors(SCHEDULE, STRUCTURED),
        "structured noise (mined)": Row(
            method="structured_noise", synthesis=replace(STRUCTURED, mine=True), distill=SCHEDULE
        ),
        "unrelated": Row(method="unrelated", synthesis="fashion_mnist", distill=SCHEDULE),
        "deepinversion": Row(method="deepinversion", synthesis=INVERSION, distill=OPTIMIZED),
        "deepinversion from structured noise": Row(
            method="deepinversion", synthesis=replace(INVERSION, **SHAPES), distill=OPTIMIZED
        ),
        "dafl": Row(
            method="dafl",
            synthesis=replace(dafl.CIFAR10, batch_size=128, widths=WIDTHS),
            distill=replace(SCHEDULE, fresh_every=2, augment=SHAKE),
        ),
        "dfad": Row(
            method="dfad",
            synthesis=replace(dfad.CIFAR10, batch_size=64, widths=WIDTHS),
            distill=replace(SCHEDULE, transfer=(Transfer.L1,)),
        ),
        "dfad after structured noise": Row(
            method="dfad",
            synthesis=replace(dfad.CIFAR10, batch_size=64, widths=WIDTHS),
            distill=replace(SCHEDULE, transfer=(Transfer.L1,)),
            after=500,
        ),
        "zskt": Row(
            method="zskt",
            synthesis=zskt.ZsktSettings(batch_size=64, widths=WIDTHS),
            distill=replace(
                SCHEDULE,
                transfer=(Transfer.KL, Transfer.ATTENTION),
                temperature=1.0,
                clip_gradient=5.0,
            ),
        ),
        "zskd": Row(
            method="zskd", synthesis=ZskdSettings(steps=100, batch_size=128), distill=OPTIMIZED
        ),
        "zskd from structured noise": Row(
            method="zskd",
            synthesis=ZskdSettings(
                batch_size=64,
                steps=10,
                lr=0.1,
                temperature=4.0,
                start=Start.STRUCTURED,
                drawing=THINGS,
            ),
            distill=replace(SCHEDULE, prefill=0, fresh_every=4, augment=SHAKE),
        ),
    },
)

if __name__ == "__main__":
    main(BENCHMARK)
