"""Figures of a run: arrays in, matplotlib figures out, and those as SVG or PNG; no torch.

An SVG has no ground of its own, and its colors follow the reader's light or dark scheme.
"""

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dreamstill.report.fonts import keep_fonts_out_of_home

keep_fonts_out_of_home()
from matplotlib import rc_context  # noqa: E402
from matplotlib.figure import Figure as Plot  # noqa: E402
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator  # noqa: E402

__all__ = [
    "Array",
    "Plot",
    "agreement_curve",
    "bars",
    "before_after",
    "class_rows",
    "filters",
    "histograms",
    "loss_curve",
    "matrix",
    "png",
    "ranges",
    "saliency_curves",
    "svg",
    "tradeoff",
]

Array = NDArray[Any]
Range = tuple[float, float]
Counts = tuple[float, float, Sequence[int]]
"""Least and largest value, and how many there are in equal bins between."""
INK, BEFORE, TEACHER, STUDENT = "#000000", "#d6d9dd", "#b8632b", "#24668f"
SCHEMES = {
    INK: ("#333333", "#d8dade"),
    BEFORE: ("#d6d9dd", "#4c525b"),
    TEACHER: ("#b8632b", "#e39a63"),
    STUDENT: ("#24668f", "#5fa8d6"),
}
"""Colors on a light and on a dark ground, by the color of a figure."""
WIDTH = 4.6
"""Inches of a chart: two side by side on a wide page, and legible on a phone."""
MOST_PIXELS = 96
"""Along a side of an image in a row of many."""
NAMED = 20
"""Classes that have room for their names beside an axis."""


def svg(figure: Plot) -> bytes:
    """Return a figure as SVG with a transparent ground, for an <img>; the same every time."""
    buffer = io.StringIO()
    with rc_context({"svg.hashsalt": "dreamstill", "svg.fonttype": "path"}):
        figure.savefig(
            buffer, format="svg", bbox_inches="tight", transparent=True, metadata={"Date": None}
        )
    text, light, dark = buffer.getvalue(), "", ""
    for number, (color, schemes) in enumerate(SCHEMES.items()):
        text = text.replace(color, f"var(--c{number})")
        light, dark = (f"{s}--c{number}:{c};" for s, c in zip((light, dark), schemes, strict=True))
    style = f"svg{{{light}fill:var(--c0)}}@media(prefers-color-scheme:dark){{svg{{{dark}}}}}"
    return text.replace('<style type="text/css">', f'<style type="text/css">{style}', 1).encode()


def png(figure: Plot) -> bytes:
    """Return a figure as PNG on white, for a file."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=180, bbox_inches="tight")
    return buffer.getvalue()


def to_picture(image: Array) -> Array:
    """(C, H, W) in [0, 1] -> (H, W, 3): color as it is, any other number of channels as a mean."""
    if image.shape[0] != 3:
        image = image.mean(0, keepdims=True).repeat(3, 0)
    return np.clip(image.transpose(1, 2, 0), 0, 1)


def tile(rows: Sequence[Sequence[Array]], *, gap: int = 2, columns: int = 0) -> Array:
    """Rows of (H, W, 3) pictures -> one (H, W, 4) picture, transparent where there is none."""
    height, width = rows[0][0].shape[:2]
    columns = max(columns, *map(len, rows))
    canvas = np.zeros((len(rows) * (height + gap) - gap, columns * (width + gap) - gap, 4))
    for i, row in enumerate(rows):
        for j, picture in enumerate(row):
            top, left = i * (height + gap), j * (width + gap)
            canvas[top : top + height, left : left + width, :3] = picture
            canvas[top : top + height, left : left + width, 3] = 1
    return canvas


def class_rows(rows: Sequence[Sequence[Array]], names: Sequence[str]) -> Plot:
    """Draw images (C, H, W) in [0, 1], a named row each, large ones at every few pixels."""
    step = -(-max(rows[0][0].shape[1:]) // MOST_PIXELS)
    canvas = tile([[to_picture(image[:, ::step, ::step]) for image in row] for row in rows])
    height, width = canvas.shape[:2]
    inches = min(6.5, max(3.0, width / 40))
    figure = Plot(figsize=(inches, inches * height / width))
    axes = figure.subplots()
    axes.imshow(canvas, interpolation="none")
    ticks = [height / len(rows) * (i + 0.5) for i in range(len(rows))]
    axes.set_yticks(ticks, shortened(names), fontsize=11)
    axes.set_xticks([])
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    return figure


def filters(groups: dict[str, Array]) -> Plot:
    """Draw first-layer filters (O, I, h, w), a block for each network; grey is zero."""
    figure = Plot(figsize=(6.5, 1.3 * len(groups)))
    all_axes = figure.subplots(len(groups), 1, squeeze=False)[:, 0]
    columns = min(16, max(map(len, groups.values())))
    for axes, (name, weights) in zip(all_axes, groups.items(), strict=True):
        shown = weights[:32]
        largest = np.abs(shown).max() or 1.0
        scaled = shown / (2 * largest) + 0.5
        pictures = [to_picture(filter_) for filter_ in scaled]
        rows = [pictures[i : i + columns] for i in range(0, len(pictures), columns)]
        axes.imshow(tile(rows, gap=1, columns=columns), interpolation="none")
        axes.set_anchor("W")
        axes.set_title(name, fontsize=11, loc="left")
        axes.axis("off")
    return figure


def loss_curve(records: Sequence[dict[str, Any]]) -> Plot:
    """Draw the training loss over steps, each one (pale) and their moving average."""
    figure, axes = _chart(2.6)
    steps = [r["step"] for r in records]
    losses = np.array([r["loss"] for r in records])
    axes.plot(steps, losses, color=STUDENT, alpha=0.25, linewidth=0.8)
    window = max(1, len(losses) // 50)
    smooth = np.convolve(losses, np.ones(window) / window, mode="valid")
    axes.plot(steps[window - 1 :], smooth, color=STUDENT)
    axes.set(xlabel="step", ylabel="loss (log scale)", yscale="log")
    _log_ticks(axes.yaxis)
    return figure


def agreement_curve(records: Sequence[dict[str, Any]]) -> Plot:
    """Draw agreement on validation images over steps, with the selected step marked."""
    figure, axes = _chart(2.6)
    steps = [r["step"] for r in records]
    axes.plot(steps, [100 * r["agreement"] for r in records], color=STUDENT, marker="o", ms=3)
    if best := [r["step"] for r in records if r.get("best")]:
        axes.axvline(best[-1], color=TEACHER, linestyle=":", label="selected")
        axes.legend(frameon=False, fontsize=9)
    axes.set(xlabel="step")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    _percent_axis(axes, "agreement with the teacher")
    return figure


def bars(counts: Array, names: Sequence[str]) -> Plot:
    """Draw counts per class."""
    figure, axes = _chart(2.6)
    axes.bar(range(len(counts)), counts, color=STUDENT)
    if len(counts) <= NAMED:
        _class_ticks(axes, "x", names)
    axes.set(xlabel="class", ylabel="images")
    return figure


def matrix(confusion: Array, names: Sequence[str], *, whose: str = "student") -> Plot:
    """Draw a confusion matrix, rows true and columns by `whose`; counts up to NAMED classes."""
    share = confusion / np.maximum(confusion.sum(1, keepdims=True), 1)
    color = [int(STUDENT[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    ground = np.dstack([np.broadcast_to(color, (*share.shape, 3)), np.sqrt(share)])
    figure, axes = _chart(WIDTH)
    axes.imshow(ground, interpolation="none")
    axes.spines[:].set_visible(True)
    axes.set(xlabel=f"{whose}'s answer", ylabel="true class")
    if len(confusion) <= NAMED:
        _class_ticks(axes, "x", names)
        _class_ticks(axes, "y", names)
        for (i, j), count in np.ndenumerate(confusion):
            if count:
                ink = "white" if share[i, j] > 0.4 else INK
                axes.text(j, i, str(int(count)), ha="center", va="center", fontsize=7, color=ink)
    return figure


def tradeoff(
    networks: Sequence[dict[str, Any]], *, score: str = "accuracy", joined: bool = True
) -> Plot:
    """Draw accuracy (or agreement, where none was measured) against bytes.

    The first network is the teacher's; `joined` draws the others as the stages that led from it.
    `score` is what the accuracy is called.
    """
    key = "accuracy" if all("accuracy" in network for network in networks) else "agreement"
    sizes = [network["bytes"] / 1024 for network in networks]
    kept = [100 * network[key] for network in networks]
    figure, axes = _chart(3.0)
    if joined:
        axes.plot(sizes, kept, color=BEFORE, zorder=1)
    axes.scatter(sizes, kept, color=[TEACHER] + [STUDENT] * (len(networks) - 1), zorder=2)
    for number, (network, x, y) in enumerate(zip(networks, sizes, kept, strict=True)):
        # neighbors may be near each other: above on the left, then below on the right
        offset, side = ((2, 5), "right") if number % 2 == 0 else ((0, -12), "left")
        axes.annotate(
            network["task"], (x, y), xytext=offset, textcoords="offset points", fontsize=9, ha=side
        )
    axes.set(xlabel="size, KiB (log scale)", xscale="log")
    axes.margins(x=0.15, y=0.2)
    _log_ticks(axes.xaxis)
    _percent_axis(axes, score if key == "accuracy" else "agreement with the teacher")
    return figure


def before_after(
    names: Sequence[str], before: Sequence[float], after: Sequence[float], *, unit: str
) -> Plot:
    """Draw a number for each layer or class, before (grey) and after, in bars from 0."""
    figure, axes, places = _rows(names)
    axes.barh(places, before, color=BEFORE, label="before")
    axes.barh(places, after, height=0.5, color=STUDENT, label="after")
    for place, value in zip(places, after, strict=True):
        axes.annotate(
            f"{value:.3g}" if value < 1000 else f"{value:.0f}",
            (value, place),
            xytext=(4, 0),
            textcoords="offset points",
            va="center",
            fontsize=9,
        )
    axes.set_xlabel(unit)
    return _with_legend(figure, axes)


def saliency_curves(layers: Mapping[str, tuple[Sequence[float], int]]) -> Plot:
    """Draw the saliency of each neuron that is removed, in order, and where each layer stopped."""
    figure, axes = _chart(2.8)
    for name, (saliency, removed) in layers.items():
        (line,) = axes.plot(range(1, len(saliency) + 1), saliency, label=name)
        axes.axvline(removed, color=line.get_color(), linestyle=":")
    axes.set_yscale("log", nonpositive="clip")
    axes.set(xlabel="neurons removed", ylabel="saliency (log scale)")
    return _with_legend(figure, axes)


def ranges(names: Sequence[str], seen: Sequence[Range], kept: Sequence[Range]) -> Plot:
    """Draw two ranges for each layer: that of its inputs (grey), and what quantization keeps."""
    figure, axes, places = _rows(names)
    for pairs, height, color, label in ((seen, 0.8, BEFORE, "seen"), (kept, 0.4, STUDENT, "kept")):
        low, high = np.array(pairs, dtype=float).T
        axes.barh(places, high - low, height, left=low, color=color, label=label)
    axes.axvline(0, color=INK, linewidth=0.6)
    axes.set_xlabel("input value")
    return _with_legend(figure, axes)


def histograms(layers: Mapping[str, tuple[Counts, Counts]]) -> Plot:
    """Draw the values of layers before (grey) and after, each in its own range."""
    columns = min(2, len(layers))
    rows = -(-len(layers) // columns)
    figure = Plot(figsize=(WIDTH, 1.4 * rows), layout="constrained")
    grid = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axes in grid[len(layers) :]:
        axes.set_visible(False)
    for axes, (name, pair) in zip(grid, layers.items(), strict=False):
        for values, color, width in zip(pair, (BEFORE, STUDENT), (1.0, 0.5), strict=True):
            low, high, counts = values
            bin_width = (high - low) / len(counts)
            centers = low + bin_width * (np.arange(len(counts)) + 0.5)
            axes.bar(centers, counts, width=width * bin_width, color=color)
        axes.set_yscale("log")  # else the zeros of a pruned layer hide the rest
        axes.yaxis.set_minor_locator(NullLocator())
        axes.set_title(name, fontsize=9)
        axes.tick_params(labelsize=8)
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def shortened(names: Sequence[str], most: int = 16) -> list[str]:
    """Return names as they fit beside an axis.

    >>> shortened(["cat", "black-footed ferret"])
    ['cat', 'black-footed fe…']
    """
    return [name if len(name) <= most else name[: most - 1] + "…" for name in names]


def _chart(height: float, width: float = WIDTH) -> tuple[Plot, Any]:
    """Return a figure of so many inches and its axes."""
    figure = Plot(figsize=(width, height))
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=9)
    return figure, axes


def _percent_axis(axes: Any, what: str) -> None:
    """Label a y axis of percentages with its unit and, where it is cut, its start.

    It spans four points or more: less would make much of little.
    """
    low, high = axes.get_ylim()
    start = int(min(low, high - 4))
    low, high = start if low < 0 else max(start, 0), min(high, 100.5)  # R2 can be below 0
    axes.set_ylim(low, high)
    axes.set_ylabel(f"{what}, %" + (f"\n(axis begins at {low:.0f} %)" if low else ""))


def _log_ticks(axis: Any) -> None:
    """Label a logarithmic axis in plain numbers, more of them the less it spans."""
    low, high = axis.get_view_interval()
    subs = (1, 1.5, 2, 3, 5, 7) if high < 10 * low else (1, 2, 5) if high < 1000 * low else (1,)
    axis.set_major_locator(LogLocator(subs=subs))
    axis.set_major_formatter("{x:g}")
    axis.set_minor_locator(NullLocator())


def _class_ticks(axes: Any, which: str, names: Sequence[str]) -> None:
    """Put the names of classes on an axis, slanted below it where they are long."""
    names = shortened(names)
    slanted = which == "x" and max(map(len, names)) > 2
    slant: dict[str, Any] = {"rotation": 50, "ha": "right", "rotation_mode": "anchor"}
    setter = axes.set_xticks if which == "x" else axes.set_yticks
    setter(range(len(names)), names, fontsize=9, **slant if slanted else {})


def _rows(names: Sequence[str]) -> tuple[Plot, Any, Array]:
    """Return a figure, its axes with a row for each name from the top, and where the rows are."""
    figure, axes = _chart(0.9 + 0.28 * len(names), WIDTH - 1)
    places = np.arange(len(names))
    axes.set_yticks(places, shortened(names, 24), fontsize=9)
    axes.invert_yaxis()
    return figure, axes, places


def _with_legend(figure: Plot, axes: Any) -> Plot:
    """Put a legend above the axes, where it hides nothing."""
    axes.legend(fontsize=9, frameon=False, loc="lower right", bbox_to_anchor=(1, 1), ncols=2)
    return figure
