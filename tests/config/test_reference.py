"""docs/config.md is generated from the schema, and the meaning of a key names its choices."""

from __future__ import annotations

import typing
from collections.abc import Iterator

import pytest
from commands import ROOT

from ups_jax.config.reference import Key, page, sections


def choices(annotation: object) -> Iterator[str]:
    """Yield the values of every `Literal` in an annotation."""
    arguments = typing.get_args(annotation)
    if typing.get_origin(annotation) is typing.Literal:
        yield from arguments
    else:
        for argument in arguments:
            yield from choices(argument)


def test_the_page_is_the_generated_one() -> None:
    committed = (ROOT / "docs" / "config.md").read_text()
    assert committed == page(), "run `python -m ups_jax.config.reference > docs/config.md`"


@pytest.mark.parametrize("key", [key for section in sections() for key in section.keys], ids=lambda key: key.path)
def test_the_meaning_of_a_key_is_a_sentence_that_names_its_choices(key: Key) -> None:
    assert key.meaning.endswith(".")
    assert [choice for choice in choices(key.annotation) if f"`{choice}`" not in key.meaning] == []
