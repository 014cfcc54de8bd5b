"""Open a teacher from its file and card."""

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from dreamstill.black_box.black_box import BlackBox
from dreamstill.config import OutputKind, Precision, Text, from_plain
from dreamstill.errors import ConfigError, TeacherError
from dreamstill.input_spec import InputSpec
from dreamstill.loaders.card import (
    CARD,
    class_names_from_card,
    laid_upon,
    read_card,
    spec_from_card,
)
from dreamstill.loaders.config import TeacherFile
from dreamstill.loaders.loaded import Loaded
from dreamstill.loaders.narrower import load_narrower
from dreamstill.loaders.registry import loader_of
from dreamstill.teacher import Teacher, check_device

__all__ = ["TeacherFile", "open_from"]

log = logging.getLogger(__name__)


def open_from(
    file: TeacherFile, *, device: str = "cpu", precision: Precision = Precision.AUTO
) -> Teacher:
    """Open the teacher that a TeacherFile describes.

    Its fields win over the card, and the card over what the file says of itself.

    Raises:
        ConfigError: the factory is missing, a value has the wrong type, or the device is not
            available.
        TeacherError: the card, the factory or the weights are wrong, or the network does not run.

    """
    card = laid_upon(_card_of(file), {k: v for k in CARD if (v := getattr(file, k)) is not None})
    for name, kind in (("factory", str), ("num_classes", int)):
        if not isinstance(card.get(name, kind()), kind):
            raise ConfigError(f"{name} must be of type {kind.__name__}; got {card[name]!r}")
    if "student" in card and "factory" not in card:
        loaded = _load_student(file, card)
    else:
        loaded = loader_of(file.weights).load(file, card)
    card = laid_upon(loaded.card, card)
    spec = spec_from_card(card)
    teacher = _opened(
        *(loaded, spec, file),
        num_classes=card.get("num_classes"),
        outputs=from_plain(OutputKind | None, card.get("outputs"), "outputs"),
        device=check_device(device),
        precision=precision,
    )
    for note in loaded.notes:
        log.info(note)
    teacher.output_spec = replace(teacher.output_spec, class_names=class_names_from_card(card))
    return teacher


def _opened(loaded: Loaded, spec: InputSpec, file: TeacherFile, **options: Any) -> Teacher:
    network, name = loaded.network, loaded.factory
    if not isinstance(network, nn.Module):
        if options.pop("outputs") not in (None, OutputKind.CLASSES):
            raise ConfigError("a black box answers with classes: leave outputs out")
        return BlackBox(network, spec, file.black_box, name=name, **options)
    if file.black_box is not None:
        raise ConfigError(f"black_box has no effect on {file.weights}, which opens: leave it out")
    return Teacher(network, spec, factory=name, **options)


def _load_student(file: TeacherFile, card: dict[str, Any]) -> Loaded:
    """Open a student auto:SHARE, which is built from the teacher that its card names."""
    source = from_plain(TeacherFile, card.get("teacher"), "the card's teacher")
    if source.weights == file.weights:
        raise TeacherError(f"the card of {file.weights} names the file itself as its teacher")
    student = from_plain(Text, card["student"], "the card's student")
    return Loaded(load_narrower(open_from(source), student, file.weights), factory=student)


def _card_of(file: TeacherFile) -> dict[str, Any]:
    """Read the card of a teacher: the one that is named, or the one beside its file."""
    if file.card:
        return read_card(Path(file.card))
    if not Path(file.weights).is_file():  # a name such as timm:NAME, or a loader says what is wrong
        return {}
    beside = (Path(file.weights).with_suffix(suffix) for suffix in (".json", ".toml"))
    found = next((path for path in beside if path.is_file()), None)
    return read_card(found) if found else {}
