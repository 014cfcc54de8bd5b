"""Five tasks of two classes each, one after the other: what is kept of the old ones.

A network learns the first two classes on their real images, then two more at a time with none of
the old. A source's images, synthesized from every network before it learns more, stand in for those
of its old classes; the source `real` has the old classes' own images, which nobody has. The row
`joint` sees all real images at once and bounds the rest.
"""

import pkgutil
import statistics
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.kinds.fitting import fit
from benchmarks.runner import Cell, Kind, mean_and_std, shrunk
from dreamstill.config import from_plain, to_plain
from dreamstill.continual.config import LearnClassesConfig
from dreamstill.continual.learning import average_and_forgetting, learn
from dreamstill.evaluation import accuracy, predict
from dreamstill.input_spec import InputSpec
from dreamstill.nn.seeded import seeded
from dreamstill.teacher import Teacher

__all__ = ["Continual"]


class Continual(Kind):
    """Ways to keep the old classes, each with the images in place of theirs."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.spec = from_plain(InputSpec, self.config["input"], "input")
        self.learning = from_plain(LearnClassesConfig, self.config["learning"], "learning")
        if self.tiny:
            self.learning = shrunk(self.learning)

    def described(self) -> dict[str, Any]:
        shapes = to_plain(self.sources["ours"][1].shapes)
        settings = to_plain(self.learning) | {"dreams": self.num_images, "shapes": shapes}
        if self.config["batch_norm"]:
            settings["methods"] = {source: to_plain(made) for source, made in self.sources.items()}
        title = self.config.get("data_title", self.config["data"])
        return {"data": title, "settings": settings}

    def cells(self) -> list[Cell]:
        return [*map(Cell, self.config["rows"]), Cell("joint")]

    @cached_property
    def images(self) -> tuple[Tensor, Tensor]:
        """Training images and labels."""
        with np.load(self.data) as archive:
            x = torch.from_numpy(archive["x_train"])
            y = torch.from_numpy(archive["y_train"]).long()
        return x, y

    def network(self, num_classes: int, rng: torch.Generator) -> nn.Module:
        """Build a network with random weights."""
        architecture = pkgutil.resolve_name(self.config["architecture"])
        with seeded(rng):
            model: nn.Module = architecture(**self.config["arguments"], num_classes=num_classes)
        return model

    def fit(self, classes: int, x: Tensor, y: Tensor, steps: int, rng: torch.Generator) -> Teacher:
        """Train a network on real images: the first task, and the joint bound."""
        model = self.network(classes, rng)
        fit(model, self.spec, x, y, steps, rng)
        return Teacher(model, self.spec)

    def measure(self, cell: Cell, seed: int) -> dict[str, Any]:
        rng = torch.Generator().manual_seed(seed)
        accuracies = self.joint(rng) if cell.row == "joint" else self.tasks(cell.row, rng)
        average, forgetting = average_and_forgetting(accuracies)
        return {"average": round(100 * average, 2), "forgetting": round(100 * forgetting, 2)}

    def joint(self, rng: torch.Generator) -> list[list[float]]:
        """Return the accuracy of a network that saw all classes at once, as if of one task."""
        teacher = self.fit(10, *self.images, 5 * self.learning.steps, rng)
        x, y = self.test_set(self.spec)
        return [[accuracy(predict(teacher.module, self.spec, x), y)]]

    def tasks(self, row: str, rng: torch.Generator) -> list[list[float]]:
        """Return the accuracy on tasks 0 to i after each task i."""
        table = self.config["rows"][row]
        plain = to_plain(self.learning) | {"recipe": table["recipe"]}
        config = from_plain(LearnClassesConfig, plain, row)
        (x_train, y_train), (x_test, y_test) = self.images, self.test_set(self.spec)
        network, accuracies = None, []
        for task in range(5):
            new = y_train // 2 == task
            x, y = x_train[new], y_train[new]
            if network is None:
                network = self.fit(2, x, y, config.steps, rng)
            else:
                old = self.in_place_of(x_train[y_train // 2 < task], network, table, rng)
                network = learn(network, old, x, y, config, rng=rng)
            logits = predict(network.module, self.spec, x_test)
            own = [y_test // 2 == t for t in range(task + 1)]
            accuracies.append([accuracy(logits[of], y_test[of]) for of in own])
        return accuracies

    def in_place_of(
        self, old: Tensor, network: Teacher, table: dict[str, Any], rng: torch.Generator
    ) -> Tensor:
        """Return uint8 images in place of the old classes' own: a source's, or none."""
        source = table.get("source")
        if source is None:
            return old[:0]
        if source == "real":
            return old[torch.randperm(len(old), generator=rng)[: self.num_images]]
        seed = int(torch.randint(2**31, (), generator=rng))
        return self._source_images(source, network, seed)

    def row(self, cell: Cell, made: dict[str, Any] | None, run: dict[str, Any]) -> dict[str, Any]:
        runs = [*(made["runs"] if made else []), run["average"]]
        forgetting = [*(made["forgetting"] if made else []), run["forgetting"]]
        return {
            **mean_and_std(runs),
            "forgetting_mean": round(statistics.mean(forgetting), 2),
            "runs": runs,
            "forgetting": forgetting,
            "commit": run["commit"],
        }
