"""Ours: LeNet-5-Half cut out of LeNet-5 and distilled on structured noise. Fashion-MNIST.

    python -m recipes.inherit_fashion_mnist --data FOLDER_WITH_FASHION_MNIST_NPZ [--tiny]

As `inherit_mnist`, with the same default noise. Noise that was made for this data set stands beside
it: `clothes` is drawn as clothes are, `clothes, mined` also prefers what the student gets wrong.
"""

from benchmarks.protocol import Benchmark, floors, main

from dreamstill.synthesis.config import CLOTHES, StructuredNoiseConfig
from recipes import zskd_fashion_mnist
from recipes.inherit_mnist import SCHEDULE, drawn, inheriting, with_inherited

BENCHMARK = Benchmark(
    name="inherit_fashion_mnist",
    data="fashion_mnist",
    teacher="lenet5_fashion_mnist",
    student="dreamstill.nn.lenet:lenet5_half",
    rows=with_inherited(
        floors(SCHEDULE, StructuredNoiseConfig())
        | {
            "clothes": drawn(StructuredNoiseConfig(shapes=CLOTHES)),
            "clothes, mined": drawn(StructuredNoiseConfig(oversample=3, mine=True, shapes=CLOTHES)),
        }
    )
    | {
        "zskd, inherited": inheriting(
            zskd_fashion_mnist.BENCHMARK.rows["zskd from structured noise"]
        ),
    },
    published={"ZSKD": 79.62},
)

if __name__ == "__main__":
    main(BENCHMARK)
