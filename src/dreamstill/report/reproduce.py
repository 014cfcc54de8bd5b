"""Write a run's configuration as TOML, so that the command line takes it again."""

import json
from collections.abc import Mapping
from typing import Any

__all__ = ["as_toml", "flatten", "stated"]


def stated(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the configuration in config.json without the fields that were not given.

    The stages of a pipeline become the tables [[stage]].

    >>> stated({"teacher": {"weights": "t.pt", "card": None}, "images": None, "seed": 0})
    {'teacher': {'weights': 't.pt'}, 'seed': 0}
    """
    given = _without_none(config)
    if "teacher" in given:
        given["teacher"] = _without_none(given["teacher"])
    if "stages" in given:
        stages = given.pop("stages")
        given["stage"] = [{"task": stage["task"], **stage["config"]} for stage in stages]
    return given


def _without_none(table: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in table.items() if value is not None}


def as_toml(table: Mapping[str, Any], prefix: str = "") -> str:
    """Return plain values as TOML; None is "none", which is read as None.

    >>> print(as_toml({"seed": 0, "distill": {"lr": 1e-05, "drops": [0.5], "noise": None}}))
    seed = 0
    <BLANKLINE>
    [distill]
    lr = 1e-05
    drops = [0.5]
    noise = "none"
    >>> print(as_toml({"stage": [{"task": "prune", "finetune": {"steps": 5}}]}).strip())
    [[stage]]
    task = "prune"
    <BLANKLINE>
    [stage.finetune]
    steps = 5
    """
    lines, tables = [], []
    for name, value in table.items():
        if isinstance(value, Mapping):
            tables.append(f"\n[{prefix}{name}]\n{as_toml(value, f'{prefix}{name}.')}")
        elif isinstance(value, list) and any(isinstance(item, Mapping) for item in value):
            heading, inner = f"\n[[{prefix}{name}]]\n", f"{prefix}{name}."
            tables += [heading + as_toml(item, inner) for item in value]
        else:
            plain = "none" if value is None else value
            lines.append(f"{name} = {json.dumps(plain, ensure_ascii=False)}")
    return "\n".join([*lines, *tables])


def flatten(config: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Return nested values as (dotted name, value) rows, for a table.

    >>> flatten({"seed": 0, "distill": {"steps": 5, "drops": [0.5, 0.75]}, "size": None})
    [('seed', '0'), ('distill.steps', '5'), ('distill.drops', '0.5,0.75'), ('size', 'none')]
    """
    rows = []
    for name, value in config.items():
        if isinstance(value, Mapping):
            rows += flatten(value, f"{prefix}{name}.")
        else:
            values = value if isinstance(value, list) else [value]
            rows.append((prefix + name, ",".join(map(_typed, values))))
    return rows


def _typed(value: Any) -> str:
    """Return a plain value as a configuration file has it."""
    return str(value).lower() if value is None or isinstance(value, bool) else str(value)
