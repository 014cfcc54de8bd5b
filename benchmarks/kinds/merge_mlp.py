"""Merging against cutting on an MLP: accuracy against the share of neurons that is removed.

`cut` and `merged` look at no image; then the layers of the merged network are reconstructed on
images of each source. A row has a share of neurons; its runs are of the draws of images.
"""

from functools import cache, cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.kinds.fitting import fit
from benchmarks.runner import Cell, Kind, mean_and_std
from dreamstill.compression.config import MergeConfig
from dreamstill.compression.merge import merge
from dreamstill.config import from_plain
from dreamstill.evaluation import accuracy, predict
from dreamstill.input_spec import InputSpec
from dreamstill.nn.mlp import HintonNet
from dreamstill.nn.seeded import seeded
from dreamstill.teacher import Teacher

__all__ = ["MergeMlp"]

RECONSTRUCTED = "merged and reconstructed, {}"


class MergeMlp(Kind):
    """Hinton's MLP, trained here."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.spec = from_plain(InputSpec, self.config["input"], "input")
        self.without_images = cache(self._without_images)

    def described(self) -> dict[str, Any]:
        return {
            "data": self.config["data"],
            "network": "784-1200-1200-10",
            "num_images": self.num_images,
        }

    def cells(self) -> list[Cell]:
        return [Cell(name) for name in self.config["rows"]]

    def num_runs(self, made: dict[str, Any]) -> int:
        return len(made[RECONSTRUCTED.format("real")]["runs"])

    @cached_property
    def network(self) -> Teacher:
        """The MLP: five epochs of batches of 128, seed 0."""
        rng = torch.Generator().manual_seed(0)
        with np.load(self.data) as archive:
            x, y = torch.from_numpy(archive["x_train"]), torch.from_numpy(archive["y_train"]).long()
        with seeded(rng):
            model = HintonNet(64 if self.tiny else 1200)
        steps = 4 if self.tiny else self.config["epochs"] * (len(x) // 128)
        fit(model, self.spec, x, y, steps, rng, batch_size=128, weight_decay=1e-5)
        return Teacher(model.eval().requires_grad_(False), self.spec)

    @cached_property
    def tested(self) -> tuple[Tensor, Tensor]:
        """Test images and labels."""
        return self.test_set(self.spec)

    def percent(self, model: nn.Module) -> float:
        """Return the accuracy on the test set in percent."""
        x, y = self.tested
        return round(100 * accuracy(predict(model, self.spec, x), y), 2)

    def merged(self, row: str, images: Tensor | None = None, **changes: Any) -> nn.Module:
        """Return the network with a row's share of neurons merged away."""
        config = from_plain(MergeConfig, self.config["rows"][row] | changes, row)
        return merge(self.network.module, self.spec, config, images)[0]

    def measure(self, cell: Cell, seed: int) -> dict[str, Any]:
        figures = dict(self.without_images(cell.row))
        for source in ("real", *self.sources):
            images = self.source_images(source, self.network, seed)
            figures[RECONSTRUCTED.format(source)] = self.percent(self.merged(cell.row, images))
        return figures

    def _without_images(self, row: str) -> dict[str, float]:
        """Return what merging and cutting leave, with no image seen."""
        small = self.merged(row)
        left, whole = (sum(p.numel() for p in m.parameters()) for m in (small, self.network.module))
        return {
            "parameters_removed": round(100 * (1 - left / whole), 1),
            "cut": self.percent(self.merged(row, compensate=False)),
            "merged": self.percent(small),
        }

    def row(self, cell: Cell, made: dict[str, Any] | None, run: dict[str, Any]) -> dict[str, Any]:
        row = {key: run[key] for key in ("parameters_removed", "cut", "merged")}
        for name in (RECONSTRUCTED.format(source) for source in ("real", *self.sources)):
            runs = [*(made[name]["runs"] if made else []), run[name]]
            row[name] = {**mean_and_std(runs), "runs": runs}
        return row

    def closing(self) -> dict[str, Any]:
        """Return where the curve of saliencies turns: the neurons that stay, and the accuracy."""
        small, records = merge(self.network.module, self.spec, MergeConfig())
        neurons = {record.layer: [record.before, record.after] for record in records}
        return {"where_the_curve_turns": {"neurons": neurons, "accuracy": self.percent(small)}}
