"""The README's figures are the records', all of the default images."""

import pytest
from benchmarks.front import (
    DEFAULT,
    FRONT,
    PICTURE,
    README,
    Front,
    figures_of,
    page,
    read_record,
)

from dreamstill.synthesis.registry import DEFAULT_METHOD


@pytest.mark.parametrize("front", FRONT, ids=lambda front: front.title)
def test_every_headline_row_is_of_the_default_method_with_nothing_set(front: Front) -> None:
    assert DEFAULT == DEFAULT_METHOD
    settings = read_record(front.record)["settings"]
    assert settings["sources"][DEFAULT] == {"method": DEFAULT_METHOD}


def test_the_front_page_shows_what_the_records_say() -> None:
    text = README.read_text()
    assert page(text) == text
    drawn = PICTURE.read_text()
    assert all(f"<!-- {row['accuracy_mean']:.1f} -->" in drawn for row in figures_of(FRONT[0])[1])
