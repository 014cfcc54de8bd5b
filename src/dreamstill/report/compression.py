"""Write the page of a compression: the network after each stage, and what it did to layers."""

from collections.abc import Callable, Iterator, Mapping, Sized
from pathlib import Path
from typing import Any

from dreamstill.errors import RunError
from dreamstill.formatting import capitalized, words_of
from dreamstill.report import figures
from dreamstill.report.continual import continual_figures
from dreamstill.report.page import Figure, from_records, read_arrays, read_table, write_page
from dreamstill.report.verdict import verdict_of_compression, verdict_of_continual

__all__ = ["write_compression_report"]


@from_records
def write_compression_report(folder: Path) -> Path:
    """Write FOLDER/report.html from the summary.json; RunError where there is none."""
    summary = read_table(folder / "summary.json")
    if "stages" not in summary:
        raise RunError(f"{folder} holds no finished compression: summary.json has no stages")
    learned = [stage for stage in summary["stages"] if "old_classes" in stage]
    networks = [summary["teacher"] | {"task": "teacher"}, *summary["stages"]]
    drawn = list[Figure]()
    if any("accuracy" in network or "agreement" in network for network in networks):
        drawn.append(
            Figure(
                "Size against quality",
                figures.tradeoff(networks, score=words_of(summary).score),
                "The teacher (orange) and the network after each stage: the best are small and "
                "right, on the left and high up.",
            )
        )
    weights = read_table(folder / "weights.json")
    before = weights.get("teacher", {})
    for number, stage in enumerate(summary["stages"], 1):
        name = f"{number}-{stage['task']}"
        after = weights.get(name, {})
        if "old_classes" in stage:
            pictures = read_arrays(folder / "stages" / f"{name}.npz")
            if "by_class" in stage:
                pictures |= read_arrays(folder / "confusion.npz")
            drawn += continual_figures(stage, pictures)
        drawn += [
            figure._replace(title=f"{number}. {stage['task']}: {figure.title}")
            for figure in layer_figures(stage, before, after)
        ]
        before = after
    return write_page(
        folder,
        "compression.html",
        config=read_table(folder / "config.json"),
        command="dreamstill compress run.toml --out runs/again",
        verdict=" ".join([*map(verdict_of_continual, learned), verdict_of_compression(summary)]),
        figures=drawn,
        networks=networks,
        score=capitalized(words_of(summary).score),
        runtime=summary.get("runtime", ""),
        warnings=warnings_of(summary),
        images=summary.get("images"),
        not_exported=summary.get("not_exported"),
        files=[file for stage in summary["stages"] for file in stage.get("files", [])],
    )


def warnings_of(summary: dict[str, Any]) -> list[str]:
    """Return the warnings about the images, then those of each stage."""
    of_stages = [
        f"{number}. {stage['task']}: {text}"
        for number, stage in enumerate(summary["stages"], 1)
        for text in stage.get("warnings", [])
    ]
    return [*summary.get("warnings", []), *of_stages]


Weights = dict[str, dict[str, Any]]


def layer_figures(stage: dict[str, Any], before: Weights, after: Weights) -> Iterator[Figure]:
    """Yield what a stage did to each layer: neurons, ranks, bits, zeros, values."""
    task, layers = stage["task"], stage.get("layers") or {}
    both = [name for name in before if name in after]
    if task == "prune" and both:
        outputs = [[w[name]["outputs"] for name in both] for w in (before, after)]
        plot = figures.before_after(both, *outputs, unit="channels or neurons")
        yield Figure("channels and neurons kept", plot)
    if task == "merge" and layers:
        yield from merge_figures(layers)
    if task == "factorize" and layers:
        yield ranks(layers)
    if task == "quantize" and layers:
        bits = [layer["weight_bits"] for layer in layers.values()]
        plot = figures.before_after(list(layers), [32] * len(bits), bits, unit="bits each")
        yield Figure("bits of weights", plot)
    if task == "pack" and both:
        kept = [[100 * (1 - w[name]["zeros"]) for name in both] for w in (before, after)]
        plot = figures.before_after(both, *kept, unit="share of the weights, %")
        yield Figure("weights that are not zero", plot)
    if task in ("quantize", "pack") and both:
        shown = largest({name: before[name] for name in both}, lambda w: sum(w["histogram"]))
        pairs = {name: (values_of(before[name]), values_of(after[name])) for name in shown}
        yield Figure("values of the weights", figures.histograms(pairs), counted(shown, both))
    entering = {name: layer["inputs"] for name, layer in after.items() if "inputs" in layer}
    if task == "quantize" and entering:
        yield from input_figures(entering)


def merge_figures(layers: Any) -> Iterator[Figure]:
    """Yield the neurons that are left, and the saliency of those that were removed."""
    names = [layer["layer"] for layer in layers]
    sizes = [[layer[when] for layer in layers] for when in ("before", "after")]
    yield Figure("neurons kept", figures.before_after(names, *sizes, unit="neurons"))
    curves = {
        layer["layer"]: (layer["saliency"], layer["before"] - layer["after"])
        for layer in layers
        if layer["saliency"]
    }
    if curves:
        yield Figure(
            "saliency of each removal",
            figures.saliency_curves(curves),
            "How much each removal changes the layer's output; a dotted line is where it stopped.",
        )


def ranks(layers: Any) -> Figure:
    """Return the ranks of each side of the layers that were factorized."""
    names, full, kept = [], [], []
    for layer in layers:
        sides = ("",) if len(layer["ranks"]) == 1 else (" in", " out")
        names += [layer["layer"] + side for side in sides]
        full += layer["full"]
        kept += layer["ranks"]
    return Figure("ranks", figures.before_after(names, full, kept, unit="rank"))


def input_figures(entering: Weights) -> Iterator[Figure]:
    """Yield the ranges and the values of the inputs of quantized layers."""
    limits = [[layer[what] for layer in entering.values()] for what in ("seen", "kept")]
    yield Figure(
        "ranges of the inputs",
        figures.ranges(list(entering), *limits),
        "The values that enter each layer, and those that quantization keeps; others are clipped.",
    )
    shown = largest(entering, lambda layer: sum(layer["before"]))
    pairs = {name: inputs_of(entering[name]) for name in shown}
    yield Figure("values of the inputs", figures.histograms(pairs), counted(shown, entering))


SHOWN = 8
"""Layers whose values are drawn."""


def largest(layers: Mapping[str, Any], size: Callable[[Any], float]) -> list[str]:
    """Return the names of the SHOWN largest layers, in the network's order."""
    names = sorted(layers, key=lambda name: -size(layers[name]))[:SHOWN]
    return [name for name in layers if name in names]


def counted(shown: Sized, layers: Sized) -> str:
    """Return the caption of histograms, which says whether layers were left out."""
    most = f", in the {len(shown)} largest of {len(layers)} layers" * (len(shown) < len(layers))
    return f"How often each value comes (log scale), before (grey) and after{most}."


def inputs_of(values: dict[str, Any]) -> tuple[figures.Counts, figures.Counts]:
    """Return the histograms of a layer's inputs, before and after rounding."""
    low, high = values["limits"]
    return (low, high, values["before"]), (low, high, values["after"])


def values_of(weights: dict[str, Any]) -> figures.Counts:
    """Return the histogram of a layer's weights."""
    return -weights["limit"], weights["limit"], weights["histogram"]
