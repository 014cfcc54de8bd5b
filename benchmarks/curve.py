"""Draw the curves of two records: zskd_curve, and accuracy against minutes.

python -m benchmarks curve
"""

import json
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

PICTURES = Path("docs/pictures")
OURS, OTHERS, BASELINES = "#24668f", "#b8632b", "#777777"
APART = {"fastdfkd": 1.2, "image_programs": -2.2, "nayer": 2.0}
"""How far labels are moved up, which would lie over one another."""


def rows_of(name: str) -> dict[str, Any]:
    """Return the rows of a record."""
    rows: dict[str, Any] = json.loads(Path(f"benchmarks/records/{name}.json").read_text())["rows"]
    return rows


def save(figure: Figure, name: str) -> None:
    """Write a picture of the documentation."""
    figure.savefig(PICTURES / f"{name}.png", dpi=110, bbox_inches="tight")


def impressions() -> None:
    """Draw the student over the number of Data Impressions."""
    rows = rows_of("zskd_curve")
    sizes = {int(n.split()[0]): r for n, r in rows.items() if n.endswith("impressions")}
    figure = Figure(figsize=(6.5, 3.6))
    axes = figure.subplots()
    for row in range(len(next(iter(sizes.values()))["runs"])):
        points = [r["runs"][row]["accuracy"] for r in sizes.values()]
        axes.scatter(list(sizes), points, color=OURS, s=12, alpha=0.6)
    axes.plot(list(sizes), [r["accuracy_mean"] for r in sizes.values()], color=OURS)
    for name, label in (("structured_noise", "structured noise"), ("noise", "clipped noise")):
        axes.axhline(rows[name]["accuracy_mean"], color=OTHERS, linestyle=":")
        axes.annotate(label, (min(sizes), rows[name]["accuracy_mean"]), va="bottom", fontsize=8)
    axes.set(xscale="log", xlabel="Data Impressions", ylabel="student, %")
    axes.set_xticks(list(sizes), [str(size) for size in sizes])
    axes.minorticks_off()
    axes.spines[["top", "right"]].set_visible(False)
    save(figure, "zskd_curve")


def minutes() -> None:
    """Draw students over the minutes that images and training took, a line for each method."""
    lines: dict[str, list[tuple[float, float]]] = {}
    for name, row in rows_of("minutes_cifar10_cnn").items():
        point = row["seconds_mean"] / 60, row["accuracy_mean"]
        lines.setdefault(name.partition(",")[0], []).append(point)
    colors = {"image_programs": OURS, "fastdfkd": OURS, "real": BASELINES, "noise": BASELINES}
    figure = Figure(figsize=(6.5, 3.6))
    axes = figure.subplots()
    for name, points in lines.items():
        color = colors.get(name, OTHERS)
        along, up = zip(*sorted(points), strict=True)
        axes.plot(along, up, color=color, marker="o", markersize=4)
        label = name.replace("_", " ") + " images" * (name == "real")
        where = (1.04 * along[-1], up[-1] + APART.get(name, 0))
        axes.annotate(label, where, va="center", fontsize=8, color=color)
    axes.set(xscale="log", xlabel="minutes of one core, with its images")
    axes.set(ylabel="test accuracy, %", ylim=(0, 90), xlim=(3, 110))
    axes.set_xticks(ticks := [3, 5, 10, 20, 60], map(str, ticks))
    axes.minorticks_off()
    axes.margins(x=0.15)
    axes.spines[["top", "right"]].set_visible(False)
    save(figure, "minutes")


if __name__ == "__main__":
    impressions()
    minutes()
