"""A chain's page: what each stage cost and kept, and what it did to layers."""

from collections.abc import Callable, Iterator, Mapping, Sized
from pathlib import Path
from typing import Any

from dreamstill.errors import RunError
from dreamstill.report import figures
from dreamstill.report.page import Figure, from_records, read_table, write_page

__all__ = ["write_chain_report"]


@from_records
def write_chain_report(folder: Path) -> Path:
    """Write FOLDER/report.html from a chain's summary.json; RunError where there is none."""
    summary = read_table(folder / "summary.json")
    if "stages" not in summary:
        raise RunError(f"{folder} holds no finished chain: summary.json has no stages")
    config = chain_settings(folder)
    networks = [summary["teacher"] | {"task": "teacher"}, *summary["stages"]]
    drawn = []
    if any("accuracy" in network or "agreement" in network for network in networks):
        drawn = [Figure("Size against what is kept", figures.tradeoff(networks))]
    weights = read_table(folder / "weights.json")
    before = weights.get("teacher", {})
    for number, stage in enumerate(summary["stages"], 1):
        name = f"{number}-{stage['task']}"
        after = weights.get(name, {})
        drawn += [
            Figure(f"{number}. {stage['task']}: {figure.title}", figure.png)
            for figure in layer_figures(stage, before, after)
        ]
        before = after
    return write_page(
        folder,
        "chain.html",
        config=config,
        figures=drawn,
        networks=networks,
        runtime=summary.get("runtime", ""),
        warnings=warnings_of(summary),
        images=summary.get("images"),
        not_exported=summary.get("not_exported"),
        files=[file for stage in summary["stages"] for file in stage.get("files", [])],
    )


def warnings_of(summary: dict[str, Any]) -> list[str]:
    """Of the images, then of each stage."""
    of_links = [
        f"{number}. {stage['task']}: {text}"
        for number, stage in enumerate(summary["stages"], 1)
        for text in stage.get("warnings", [])
    ]
    return [*summary.get("warnings", []), *of_links]


def chain_settings(folder: Path) -> dict[str, Any]:
    """Settings with the stages numbered, so that they flatten to rows."""
    config = read_table(folder / "config.json")
    for number, stage in enumerate(config.pop("stages", []), 1):
        config[f"{number}-{stage['task']}"] = stage["config"]
    return config


Weights = dict[str, dict[str, Any]]


def layer_figures(stage: dict[str, Any], before: Weights, after: Weights) -> Iterator[Figure]:
    """What a stage did to each layer: neurons, ranks, bits, zeros, values."""
    task, layers = stage["task"], stage.get("layers") or {}
    both = [name for name in before if name in after]
    if task == "prune" and both:
        outputs = [[w[name]["outputs"] for name in both] for w in (before, after)]
        yield Figure("channels and neurons kept", figures.before_after(both, *outputs))
    if task == "merge" and layers:
        names = [layer["layer"] for layer in layers]
        sizes = [[layer[when] for layer in layers] for when in ("before", "after")]
        yield Figure("neurons kept", figures.before_after(names, *sizes))
        curves = {
            layer["layer"]: (layer["saliency"], layer["before"] - layer["after"])
            for layer in layers
            if layer["saliency"]
        }
        if curves:
            yield Figure("what each removal costs", figures.prices(curves))
    if task == "factorize" and layers:
        yield ranks(layers)
    if task == "quantize" and layers:
        bits = [layer["weight_bits"] for layer in layers.values()]
        picture = figures.before_after(list(layers), [32] * len(bits), bits)
        yield Figure("bits of weights", picture)
    if task == "pack" and both:
        kept = [[100 * (1 - w[name]["zeros"]) for name in both] for w in (before, after)]
        yield Figure("weights that are not zero, %", figures.before_after(both, *kept))
    if task in ("quantize", "pack") and both:
        shown = largest({name: before[name] for name in both}, lambda w: sum(w["histogram"]))
        pairs = {name: (values_of(before[name]), values_of(after[name])) for name in shown}
        title = "values of the weights before (grey) and after" + share_of(shown, both)
        yield Figure(title, figures.histograms(pairs))
    entering = {name: layer["inputs"] for name, layer in after.items() if "inputs" in layer}
    if task == "quantize" and entering:
        yield from input_figures(entering)


def ranks(layers: Any) -> Figure:
    """Of each side of the layers that were factorized."""
    names, full, kept = [], [], []
    for layer in layers:
        sides = ("",) if len(layer["ranks"]) == 1 else (" in", " out")
        names += [layer["layer"] + side for side in sides]
        full += layer["full"]
        kept += layer["ranks"]
    return Figure("ranks", figures.before_after(names, full, kept))


def input_figures(entering: Weights) -> Iterator[Figure]:
    """What enters quantized layers: ranges and values."""
    limits = [[layer[what] for layer in entering.values()] for what in ("seen", "kept")]
    picture = figures.ranges(list(entering), *limits)
    yield Figure("range of what enters, seen (grey) and kept", picture)
    shown = largest(entering, lambda layer: sum(layer["before"]))
    pairs = {name: inputs_of(entering[name]) for name in shown}
    title = "values that enter, before (grey) and after rounding" + share_of(shown, entering)
    yield Figure(title, figures.histograms(pairs))


SHOWN = 8
"""Layers whose values are drawn."""


def largest(layers: Mapping[str, Any], size: Callable[[Any], float]) -> list[str]:
    """The layers to draw: the largest, in the network's order."""
    names = sorted(layers, key=lambda name: -size(layers[name]))[:SHOWN]
    return [name for name in layers if name in names]


def share_of(shown: Sized, layers: Sized) -> str:
    """For a title: which layers were left out, if any."""
    return f", the {len(shown)} largest of {len(layers)} layers" * (len(shown) < len(layers))


def inputs_of(values: dict[str, Any]) -> tuple[figures.Counts, figures.Counts]:
    """The histograms of what enters a layer, before and after rounding."""
    low, high = values["limits"]
    return (low, high, values["before"]), (low, high, values["after"])


def values_of(weights: dict[str, Any]) -> figures.Counts:
    """The histogram of a layer's weights."""
    return -weights["limit"], weights["limit"], weights["histogram"]
