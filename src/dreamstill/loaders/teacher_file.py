"""Open a teacher from its weights, factory and card."""

from pathlib import Path

import torch

from dreamstill.config import Precision
from dreamstill.errors import ConfigError, TeacherError, first_line
from dreamstill.files.reading import check_file
from dreamstill.loaders.card import CARD, class_names_from_card, read_card, spec_from_card
from dreamstill.loaders.config import TeacherFile
from dreamstill.loaders.state_dict import load_module
from dreamstill.output_spec import OutputSpec
from dreamstill.teacher import Teacher

__all__ = ["TeacherFile", "open_from"]


def open_from(
    file: TeacherFile, *, device: str = "cpu", precision: Precision = Precision.AUTO
) -> Teacher:
    """Open the teacher that a TeacherFile describes; its fields override the card.

    Raises:
        ConfigError: the factory is missing, a value has the wrong type, or the device is not
            available.
        TeacherError: the card, the factory or the weights are wrong, or the network does not run.

    """
    check_file(file.weights, TeacherError, "weights")
    weights = Path(file.weights)
    card_path = Path(file.card) if file.card else None
    if card_path is None:
        beside = [weights.with_suffix(s) for s in (".json", ".toml")]
        card_path = next((p for p in beside if p.is_file()), None)
    card = read_card(card_path) if card_path else {}
    given = {k: v for k in CARD if (v := getattr(file, k)) is not None}
    if "range" in given:
        card = {k: v for k, v in card.items() if k not in ("mean", "std")}
    if "mean" in given or "std" in given:
        card.pop("range", None)
    card |= given
    if "factory" not in card:
        raise ConfigError(
            f"no factory for {weights}: give one as module:function, or a card beside the weights"
        )
    for name, kind in (("factory", str), ("num_classes", int)):
        if not isinstance(card.get(name, kind()), kind):
            raise ConfigError(f"{name} must be of type {kind.__name__}; got {card[name]!r}")
    module = load_module(card["factory"], weights, allow_pickle=file.allow_pickle)
    spec = spec_from_card(card)
    teacher = Teacher(
        module,
        spec,
        num_classes=card.get("num_classes"),
        device=_device(device),
        precision=precision,
        factory=card["factory"],
    )
    teacher.output_spec = OutputSpec(teacher.num_classes, class_names_from_card(card))
    return teacher


def _device(name: str) -> str:
    try:
        torch.empty(1, device=name).item()
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(f"device {name!r} is not available: {first_line(error)}") from error
    return name
