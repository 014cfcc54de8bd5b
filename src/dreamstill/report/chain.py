"""A chain's page: what each link cost and kept, and what it did to layers."""

import base64
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from dreamstill.errors import RunError
from dreamstill.report import figures, flatten, read_json, write_page

__all__ = ["write_chain_report"]


def write_chain_report(folder: Path) -> Path:
    """Write FOLDER/report.html from a chain's summary.json; RunError where there is none."""
    summary = read_json(folder / "summary.json")
    if summary is None or "links" not in summary:
        raise RunError(f"{folder} holds no finished chain: summary.json cannot be read")
    networks = [summary["teacher"] | {"task": "teacher"}, *summary["links"]]
    pictures = [("Size against what is kept", figures.tradeoff(networks))]
    for number, link in enumerate(summary["links"], 1):
        title, picture = layer_figure(link)
        if picture:
            pictures.append((f"{number}. {link['task']}: {title}", picture))
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
        environment=flatten(read_json(folder / "environment.json") or {}),
    )
    return write_page(folder / "report.html", page)


def chain_settings(folder: Path) -> dict[str, Any]:
    """Settings with the links numbered, so that they flatten to rows."""
    settings = dict(read_json(folder / "settings.json") or {})
    for number, link in enumerate(settings.pop("links", []), 1):
        settings[f"{number}-{link['task']}"] = link["settings"]
    return settings


def layer_figure(link: dict[str, Any]) -> tuple[str, bytes | None]:
    """What a link did to each layer: neurons, ranks or bits, as (title, PNG)."""
    layers = link.get("layers") or {}
    if link["task"] == "merge" and layers:
        return "neurons kept", figures.before_after(
            [layer["layer"] for layer in layers],
            [layer["before"] for layer in layers],
            [layer["after"] for layer in layers],
        )
    if link["task"] == "factorize" and layers:
        names, before, after = [], [], []
        for layer in layers:
            sides = ("",) if len(layer["ranks"]) == 1 else (" in", " out")
            names += [layer["layer"] + side for side in sides]
            before += layer["full"]
            after += layer["ranks"]
        return "ranks", figures.before_after(names, before, after)
    if link["task"] == "quantize" and layers:
        return "bits of weights", figures.before_after(
            list(layers), [32] * len(layers), [layer["weight_bits"] for layer in layers.values()]
        )
    return "", None
