"""Figures of a run as SVG or PNG for embedding in a page; arrays in, bytes out; no torch."""

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dreamstill.report.fonts import keep_fonts_out_of_home

keep_fonts_out_of_home()
from matplotlib.figure import Figure  # noqa: E402
from matplotlib.ticker import LogLocator, NullLocator  # noqa: E402

__all__ = [
    "Array",
    "bars",
    "before_after",
    "class_rows",
    "curves",
    "filters",
    "histograms",
    "matrix",
    "prices",
    "ranges",
    "tradeoff",
]

Array = NDArray[Any]
Range = tuple[float, float]
Counts = tuple[float, float, Sequence[int]]
"""Least and largest value, and how many there are in equal bins between."""
INK, TEACHER, STUDENT = "#333333", "#b8632b", "#24668f"


def _png(figure: Figure, dots: int = 110) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dots, bbox_inches="tight")
    return buffer.getvalue()


def to_picture(image: Array) -> Array:
    """(C, H, W) in [0, 1] -> (H, W, 3): color as it is, any other number of channels as a mean."""
    if image.shape[0] != 3:
        image = image.mean(0, keepdims=True).repeat(3, 0)
    return np.clip(image.transpose(1, 2, 0), 0, 1)


def tile(rows: Sequence[Sequence[Array]], *, gap: int = 2) -> Array:
    """Rows of (H, W, 3) pictures -> one picture with white gaps; short rows are filled white."""
    height, width = rows[0][0].shape[:2]
    columns = max(len(row) for row in rows)
    shape = (len(rows) * (height + gap) - gap, columns * (width + gap) - gap, 3)
    canvas = np.ones(shape)
    for i, row in enumerate(rows):
        for j, picture in enumerate(row):
            top, left = i * (height + gap), j * (width + gap)
            canvas[top : top + height, left : left + width] = picture
    return canvas


def class_rows(rows: Sequence[Sequence[Array]], names: Sequence[str]) -> bytes:
    """A PNG of images (C, H, W) in [0, 1], a named row each."""
    canvas = tile([[to_picture(image) for image in row] for row in rows])
    height, width = canvas.shape[:2]
    inches = min(9.0, max(3.0, width / 40))
    figure = Figure(figsize=(inches, inches * height / width))
    axes = figure.subplots()
    axes.imshow(canvas, interpolation="nearest")
    step = height / len(rows)
    axes.set_yticks([step * (i + 0.5) for i in range(len(rows))], names, fontsize=8)
    axes.set_xticks([])
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    return _png(figure, 130)


def filters(groups: dict[str, Array]) -> bytes:
    """A PNG of first-layer filters (O, I, h, w), a block for each network; grey is zero."""
    figure = Figure(figsize=(8, 1.6 * len(groups)))
    all_axes = figure.subplots(len(groups), 1, squeeze=False)[:, 0]
    for axes, (name, weights) in zip(all_axes, groups.items(), strict=True):
        shown = weights[:32]
        largest = np.abs(shown).max() or 1.0
        scaled = shown / (2 * largest) + 0.5
        columns = min(16, len(scaled))
        rows = [scaled[i : i + columns] for i in range(0, len(scaled), columns)]
        axes.imshow(tile([[to_picture(f) for f in row] for row in rows], gap=1))
        axes.set_anchor("W")
        axes.set_title(name, fontsize=9, loc="left")
        axes.axis("off")
    return _png(figure)


def curves(records: Sequence[dict[str, Any]]) -> bytes:
    """A PNG of loss and held-out agreement over steps, with the chosen step marked."""
    figure = Figure(figsize=(9, 3))
    left, right = figure.subplots(1, 2)
    steps = [r["step"] for r in records]
    losses = np.array([r["loss"] for r in records])
    left.plot(steps, losses, color=STUDENT, alpha=0.25, linewidth=0.8)
    window = max(1, len(losses) // 50)
    smooth = np.convolve(losses, np.ones(window) / window, mode="valid")
    left.plot(steps[window - 1 :], smooth, color=STUDENT)
    left.set(title="Training loss", xlabel="step", yscale="log")
    sittings = [r for r in records if "agreement" in r]
    right.plot(
        [r["step"] for r in sittings],
        [100 * r["agreement"] for r in sittings],
        color=STUDENT,
        marker=".",
    )
    best = [r for r in sittings if r.get("best")]
    if best:
        right.axvline(best[-1]["step"], color=TEACHER, linestyle=":", label="chosen")
        right.legend(frameon=False, fontsize=8)
    right.set(title="Agreement on held-out synthetic images, %", xlabel="step")
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
        axes.title.set_fontsize(10)
    return _png(figure)


def bars(counts: Array) -> bytes:
    """A PNG of counts per class."""
    figure = Figure(figsize=(9, 2.2))
    axes = figure.subplots()
    axes.bar(range(len(counts)), counts, color=STUDENT)
    if len(counts) <= 40:
        axes.set_xticks(range(len(counts)))
        axes.tick_params("x", rotation=0 if len(counts) <= 12 else 90)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_ylabel("images")
    return _png(figure)


def matrix(confusion: Array, *, whose: str = "student") -> bytes:
    """A PNG of a confusion matrix (K, K) of the answers of `whose`; numbers up to 20 classes."""
    share = confusion / np.maximum(confusion.sum(1, keepdims=True), 1)
    size = 4.6 if len(confusion) <= 20 else 6.0
    figure = Figure(figsize=(size, size))
    axes = figure.subplots()
    axes.imshow(np.sqrt(share), cmap="Blues", vmin=0, vmax=1)
    axes.set(xlabel=f"{whose}'s answer", ylabel="true class")
    if len(confusion) <= 20:
        ticks = range(len(confusion))
        axes.set_xticks(ticks)
        axes.set_yticks(ticks)
        axes.tick_params(labelsize=8)
        for (i, j), count in np.ndenumerate(confusion):
            if count:
                ink = "white" if share[i, j] > 0.4 else INK
                axes.text(j, i, str(int(count)), ha="center", va="center", fontsize=7, color=ink)
    return _png(figure, 130)


def tradeoff(networks: Sequence[dict[str, Any]]) -> bytes:
    """A PNG of accuracy (or agreement, where none was measured) against bytes, stage by stage."""
    key = "accuracy" if all("accuracy" in network for network in networks) else "agreement"
    sizes = [network["bytes"] / 1024 for network in networks]
    kept = [100 * network[key] for network in networks]
    figure = Figure(figsize=(6.5, 3.6))
    axes = figure.subplots()
    axes.plot(sizes, kept, color="#bbbbbb", zorder=1)
    axes.scatter(sizes, kept, color=[TEACHER] + [STUDENT] * (len(networks) - 1), zorder=2)
    for network, x, y in zip(networks, sizes, kept, strict=True):
        axes.annotate(
            network["task"], (x, y), xytext=(5, 5), textcoords="offset points", fontsize=8
        )
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel("size, KiB")
    axes.set_ylabel(f"{key}, %")
    axes.margins(x=0.15, y=0.2)
    axes.spines[["top", "right"]].set_visible(False)
    return _png(figure)


def _rows(names: Sequence[str]) -> tuple[Figure, Any, Array]:
    """A figure, its axes with a row for each name from the top, and where the rows are."""
    figure = Figure(figsize=(6.5, 0.8 + 0.28 * len(names)))
    axes = figure.subplots()
    places = np.arange(len(names))
    axes.set_yticks(places, names, fontsize=8)
    axes.invert_yaxis()
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes, places


def _with_legend(figure: Figure, axes: Any) -> bytes:
    axes.legend(fontsize=8, frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    return _png(figure)


def before_after(names: Sequence[str], before: Sequence[float], after: Sequence[float]) -> bytes:
    """A PNG of a number for each layer or class, before (grey) and after."""
    figure, axes, places = _rows(names)
    axes.barh(places, before, color="#dddddd", label="before")
    axes.barh(places, after, height=0.5, color=STUDENT, label="after")
    for place, value in zip(places, after, strict=True):
        axes.annotate(
            f"{value:.3g}" if value < 1000 else f"{value:.0f}",
            (value, place),
            xytext=(4, 0),
            textcoords="offset points",
            va="center",
            fontsize=8,
        )
    return _with_legend(figure, axes)


def prices(layers: Mapping[str, tuple[Sequence[float], int]]) -> bytes:
    """A PNG of what each removal of a neuron costs, in order, and where each layer stopped."""
    figure = Figure(figsize=(6.5, 3.2))
    axes = figure.subplots()
    for name, (costs, removed) in layers.items():
        (line,) = axes.plot(range(1, len(costs) + 1), costs, label=name)
        axes.axvline(removed, color=line.get_color(), linestyle=":")
    axes.set_yscale("log", nonpositive="clip")
    axes.set(xlabel="neurons removed (dotted: here it stopped)", ylabel="price")
    axes.spines[["top", "right"]].set_visible(False)
    return _with_legend(figure, axes)


def ranges(names: Sequence[str], seen: Sequence[Range], kept: Sequence[Range]) -> bytes:
    """A PNG of two ranges for each layer: that of its values (grey), and what is kept of it."""
    figure, axes, places = _rows(names)
    for pairs, height, color, label in (
        (seen, 0.8, "#dddddd", "seen"),
        (kept, 0.4, STUDENT, "kept"),
    ):
        low, high = np.array(pairs, dtype=float).T
        axes.barh(places, high - low, height, left=low, color=color, label=label)
    axes.axvline(0, color=INK, linewidth=0.6)
    return _with_legend(figure, axes)


def histograms(layers: Mapping[str, tuple[Counts, Counts]]) -> bytes:
    """A PNG of the values of layers before (grey) and after, each in its own range."""
    rows = -(-len(layers) // 4)
    figure = Figure(figsize=(9, 1.9 * rows), layout="constrained")
    grid = list(figure.subplots(rows, 4, squeeze=False).flat)
    for axes in grid:
        axes.set_visible(False)
    for axes, (name, pair) in zip(grid, layers.items(), strict=False):
        axes.set_visible(True)
        for values, color, width in zip(pair, ("#cccccc", STUDENT), (1.0, 0.5), strict=True):
            low, high, counts = values
            bin_width = (high - low) / len(counts)
            centers = low + bin_width * (np.arange(len(counts)) + 0.5)
            axes.bar(centers, counts, width=width * bin_width, color=color)
        axes.set_yscale("log")  # else the zeros of a pruned layer hide the rest
        axes.set_title(name, fontsize=8)
        axes.tick_params(labelsize=7)
        axes.spines[["top", "right"]].set_visible(False)
    return _png(figure)
