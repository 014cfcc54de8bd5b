"""The README's figures are the records', all of one default source of images."""

import json
from dataclasses import replace
from typing import Any

import pytest
from benchmarks.front import (
    FRONT,
    PICTURE,
    README,
    Front,
    default_of,
    figures_of,
    page,
    read_record,
)

from dreamstill.config import to_plain
from dreamstill.synthesis.config import StructuredNoiseConfig


def made_with(front: Front) -> Any:
    """The method and the settings of a row's default images, as the record has them."""
    record, source = read_record(front.record), default_of(front.record)
    if "settings" in record:
        config = record["settings"]
        return config.get("methods", config.get("sources"))[source]
    row = record["rows"][front.row.format(source)]["settings"]
    return [row["method"], row["synthesis"]]


@pytest.mark.parametrize("front", FRONT, ids=lambda front: front.title)
def test_every_headline_row_is_of_structured_noise_with_nothing_set(front: Front) -> None:
    method, made = made_with(front)
    nothing = replace(StructuredNoiseConfig(), batch_size=made["batch_size"])
    assert method == "structured_noise"
    assert made == json.loads(json.dumps(to_plain(nothing)))


def test_the_front_page_shows_what_the_records_say() -> None:
    text = README.read_text()
    assert page(text) == text
    drawn = PICTURE.read_text()
    assert all(f"<!-- {row['accuracy_mean']:.1f} -->" in drawn for row in figures_of(FRONT[0])[1])
