"""A chain's page: what each link cost and kept, and what it did to layers."""

import base64
from collections.abc import Callable, Mapping, Sized
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from dreamstill.errors import RunError
from dreamstill.report import figures, flatten, read_table, write_page

__all__ = ["write_chain_report"]


def write_chain_report(folder: Path) -> Path:
    """Write FOLDER/report.html from a chain's summary.json; RunError where there is none."""
    summary = read_table(folder / "summary.json")
    if "links" not in summary:
        raise RunError(f"{folder} holds no finished chain: summary.json has no links")
    networks = [summary["teacher"] | {"task": "teacher"}, *summary["links"]]
    pictures = [("Size against what is kept", figures.tradeoff(networks))]
    weights = read_table(folder / "weights.json")
    before = weights.get("teacher", {})
    for number, link in enumerate(summary["links"], 1):
        name = f"{number}-{link['task']}"
        after = weights.get(name, {})
        found = layer_figures(link, before, after)
        pictures += [(f"{number}. {link['task']}: {title}", picture) for title, picture in found]
        before = after
    environment = Environment(
        loader=PackageLoader("dreamstill.report", "."), autoescape=True, undefined=StrictUndefined
    )
    page = environment.get_template("chain.html").render(
        networks=networks,
        whole=networks[0],
        images=summary.get("images"),
        files=[file for link in summary["links"] for file in link.get("files", [])],
        figures=[(title, base64.b64encode(png).decode()) for title, png in pictures],
        settings=flatten(chain_settings(folder)),
        environment=flatten(read_table(folder / "environment.json")),
    )
    return write_page(folder / "report.html", page)


def chain_settings(folder: Path) -> dict[str, Any]:
    """Settings with the links numbered, so that they flatten to rows."""
    settings = read_table(folder / "settings.json")
    for number, link in enumerate(settings.pop("links", []), 1):
        settings[f"{number}-{link['task']}"] = link["settings"]
    return settings


Weights = dict[str, dict[str, Any]]


def layer_figures(link: dict[str, Any], before: Weights, after: Weights) -> list[tuple[str, bytes]]:
    """What a link did to each layer, as (title, PNG): neurons, ranks, bits, zeros, values."""
    layers = link.get("layers") or {}
    both = [name for name in before if name in after]
    if link["task"] == "prune" and both:
        outputs = [[w[name]["outputs"] for name in both] for w in (before, after)]
        return [("channels and neurons kept", figures.before_after(both, *outputs))]
    if link["task"] == "merge" and layers:
        names = [layer["layer"] for layer in layers]
        sizes = [[layer[when] for layer in layers] for when in ("before", "after")]
        return [("neurons kept", figures.before_after(names, *sizes))]
    if link["task"] == "factorize" and layers:
        names, full, ranks = [], [], []
        for layer in layers:
            sides = ("",) if len(layer["ranks"]) == 1 else (" in", " out")
            names += [layer["layer"] + side for side in sides]
            full += layer["full"]
            ranks += layer["ranks"]
        return [("ranks", figures.before_after(names, full, ranks))]
    drawn = []
    if link["task"] == "quantize" and layers:
        bits = [layer["weight_bits"] for layer in layers.values()]
        drawn += [("bits of weights", figures.before_after(list(layers), [32] * len(bits), bits))]
    if link["task"] == "pack" and both:
        kept = [[100 * (1 - w[name]["zeros"]) for name in both] for w in (before, after)]
        drawn += [("weights that are not zero, %", figures.before_after(both, *kept))]
    if link["task"] in ("quantize", "pack") and both:
        shown = largest({name: before[name] for name in both}, lambda w: sum(w["histogram"]))
        pairs = {name: (values_of(before[name]), values_of(after[name])) for name in shown}
        title = "values of the weights before (grey) and after" + share_of(shown, both)
        drawn += [(title, figures.histograms(pairs))]
    entering = {name: layer["inputs"] for name, layer in after.items() if "inputs" in layer}
    if link["task"] == "quantize" and entering:
        ranges = [[layer[what] for layer in entering.values()] for what in ("seen", "kept")]
        drawn += [
            (
                "range of what enters, seen (grey) and kept",
                figures.ranges(list(entering), *ranges),
            )
        ]
        shown = largest(entering, lambda layer: sum(layer["before"]))
        pairs = {name: inputs_of(entering[name]) for name in shown}
        title = "values that enter, before (grey) and after rounding" + share_of(shown, entering)
        drawn += [(title, figures.histograms(pairs))]
    return drawn


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
