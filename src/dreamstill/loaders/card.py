"""Read the card of a teacher: a .json or .toml file next to its weights."""

import difflib
from pathlib import Path
from typing import Any

from dreamstill.config import Float, Int, from_plain
from dreamstill.errors import ConfigError, TeacherError, quoted
from dreamstill.files.reading import StrPath, read_json, read_toml
from dreamstill.input_spec import InputSpec

__all__ = ["CARD", "class_names_from_card", "laid_upon", "read_card", "spec_from_card"]

CARD = ("factory", "shape", "mean", "std", "range", "outputs", "num_classes", "class_names")
"""Keys of a card that describe a teacher; other keys are allowed."""


def read_card(path: StrPath) -> dict[str, Any]:
    """Read a card (.json or .toml); raise TeacherError if a key of CARD is misspelled."""
    if (path := Path(path)).suffix == ".toml":
        card = read_toml(path, TeacherError)
    else:
        card = read_json(path, TeacherError, "is not valid json")
    if not isinstance(card, dict):
        raise TeacherError(f"the card {path} must hold a table of names; got {type(card).__name__}")
    for name in card.keys() - {*CARD}:
        if meant := difflib.get_close_matches(name, CARD, 1, 0.7):
            raise TeacherError(f"the card {path} has {name!r}: did you mean {meant[0]!r}?")
    return card


def laid_upon(card: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
    """Return a card with the values of another laid upon it; a range replaces mean and std."""
    replaced = {"range": ("mean", "std"), "mean": ("range",), "std": ("range",)}
    dropped = {name for winner in given for name in replaced.get(winner, ())}
    return {k: v for k, v in card.items() if k not in dropped} | given


def spec_from_card(card: dict[str, Any]) -> InputSpec:
    """Return the input spec of a card: `shape`, and either `mean` and `std` or `range`."""
    if "shape" not in card:
        raise TeacherError("the input's shape is missing: give shape = [C, H, W]")
    if "range" in card and ("mean" in card or "std" in card):
        raise TeacherError("give either range or mean and std, not both")
    if "range" not in card and not ("mean" in card and "std" in card):
        raise TeacherError("the input's normalization is missing: give mean and std, or range")
    lists: dict[str, Any] = {"shape": tuple[Int, ...], "range": tuple[Float, Float]}
    lists |= dict.fromkeys(("mean", "std"), tuple[Float, ...])
    try:
        found = {n: from_plain(kind, card[n], n) for n, kind in lists.items() if n in card}
    except ConfigError as error:
        raise TeacherError(
            f"shape, mean, std and range must be lists of numbers: {error}"
        ) from error
    if "range" in found:
        return InputSpec.from_range(found["shape"], *found["range"])
    return InputSpec(**found)


def class_names_from_card(card: dict[str, Any]) -> tuple[str, ...]:
    """Return the `class_names` of a card, or (); raise TeacherError if their type is wrong."""
    names = card.get("class_names", ())
    if not isinstance(names, list | tuple) or not all(isinstance(name, str) for name in names):
        raise TeacherError(f"class_names must be a list of strings; got {quoted(names)}")
    return tuple(names)
