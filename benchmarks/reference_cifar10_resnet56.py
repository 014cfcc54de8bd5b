"""Methods on CIFAR-10: an independent ResNet-56 to a ResNet-20.

    python -m benchmarks.independent --data FOLDER --weights FILE.th --depth 56 --out TEACHERS
    python -m benchmarks.reference_cifar10_resnet56 --data FOLDER --teachers TEACHERS --seeds 1

Data, schedule and settings are those of `reference_cifar10_resnet`; the student starts at random.
"""

from dataclasses import replace

from benchmarks import reference_cifar10_resnet
from benchmarks.protocol import main

ROWS = (
    *("structured_noise", "noise", "real", "unrelated", "structured noise (mined)"),
    *("deepinversion", "deepinversion from structured noise", "adaptive deepinversion"),
    *("dafl", "dafl after structured noise", "dfad", "zskt", "zskd", "rdskd"),
    *("knowledge within (bns+i)", "metadata (all)"),
)
RESNET20 = reference_cifar10_resnet.BENCHMARK
BENCHMARK = replace(
    RESNET20,
    name="reference_cifar10_resnet56",
    teacher="resnet56",
    student="dreamstill.nn.resnet_cifar:resnet20",
    rows={name: RESNET20.rows[name] for name in ROWS},
)

if __name__ == "__main__":
    main(BENCHMARK)
