"""docs/config.md says what the schema and the errors say: each key with its default, each former key with its mend."""

from __future__ import annotations

import dataclasses
import json
import typing
from collections.abc import Iterator
from typing import Any

import pytest
from commands import ROOT

from ups_jax.config import Config, from_dict, loading, merge
from ups_jax.config.legacy_keys import FORMER
from ups_jax.config.schema import StagesConfig
from ups_jax.core.errors import ConfigError

TEXT = (ROOT / "docs" / "config.md").read_text()
TODAY, ORIGINAL = TEXT.split("\n# 2. ")
# What stands in a path for the entries of a list and the sections of one class.
PLACES = {"data.tasks": "<task>", "data.tasks.<task>.symmetries": "<n>"}
STAGES = [field.name for field in dataclasses.fields(StagesConfig)]


def rows(text: str) -> list[list[str]]:
    """The cells of every row of every table."""
    lines = [line for line in text.splitlines() if line.startswith("| `")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


DOCUMENTED = {key.strip("`"): (default, meaning) for key, default, meaning in rows(TODAY)}
FATES = {key.strip("`"): (state, default, mend) for key, state, default, mend in rows(ORIGINAL)}


def schema_keys(kind: type, where: str = "", seen: tuple[type, ...] = ()) -> Iterator[tuple[str, Any, Any]]:
    """Path, type and default of every key; a section is none, but for one whose entries are told apart by name."""
    hints = typing.get_type_hints(kind)
    for field in dataclasses.fields(kind):
        path, hint = f"{where}.{field.name}".lstrip("."), hints[field.name]
        if hint is StagesConfig:
            own = typing.get_type_hints(hint)
            shared = dict(schema_keys_of(own[STAGES[0]], (*seen, *hints.values())))
            yield from ((f"stages.<stage>.{name}", *rest) for name, rest in shared.items())
            # What some stages have beyond that.
            for stage in STAGES[1:]:
                further = schema_keys_of(own[stage], (*seen, *hints.values()))
                yield from ((f"stages.{stage}.{name}", *rest) for name, rest in further if name not in shared)
        elif dataclasses.is_dataclass(hint):
            # A stage's optimizer has the keys of the general one.
            if hint not in seen:
                yield from schema_keys(typing.cast(type, hint), path)
        else:
            yield path, hint, _default(field)
            for nested in typing.get_args(hint):
                if dataclasses.is_dataclass(nested):
                    entry = f"{path}.{PLACES[path]}" if path in PLACES else path
                    yield from schema_keys(typing.cast(type, nested), entry)


def schema_keys_of(kind: type, seen: tuple[type, ...]) -> Iterator[tuple[str, tuple[Any, Any]]]:
    yield from ((name, (hint, default)) for name, hint, default in schema_keys(kind, "", seen))


def _default(field: dataclasses.Field[Any]) -> Any:
    return field.default if field.default_factory is dataclasses.MISSING else field.default_factory()


KEYS = {path: (hint, default) for path, hint, default in schema_keys(Config)}


def same(text: str, default: Any) -> bool:
    """Whether a cell is a default, as text of YAML; `required` where there is none."""
    if default is dataclasses.MISSING:
        return text == "required"
    return text == f"`{text.strip('`')}`" and json.dumps(loading._parse(text.strip("`"), "docs")) == json.dumps(default)


def choices(hint: Any) -> Iterator[str]:
    if typing.get_origin(hint) is typing.Literal:
        yield from typing.get_args(hint)
    for nested in typing.get_args(hint):
        if not isinstance(nested, str):
            yield from choices(nested)


def test_every_key_of_the_schema_has_a_row_and_every_row_is_a_key() -> None:
    assert list(DOCUMENTED) == sorted(DOCUMENTED, key=list(KEYS).index)
    assert DOCUMENTED.keys() == KEYS.keys()
    assert len(rows(TODAY)) == len(DOCUMENTED) and len(rows(ORIGINAL)) == len(FATES)


@pytest.mark.parametrize("path", KEYS)
def test_a_row_has_the_key_s_default_and_names_its_choices(path: str) -> None:
    default, meaning = DOCUMENTED[path]
    assert same(default, KEYS[path][1]), f"{default} is not {KEYS[path][1]!r}"
    hints = typing.get_type_hints(_section(path), include_extras=True)
    assert all(f"`{choice}`" in meaning for choice in choices(hints[path.rsplit(".", 1)[-1]]))
    assert meaning.endswith(".")


def _section(path: str) -> type:
    """The class of the section that a key stands in."""
    kind: Any = Config
    for part in path.replace("<stage>", STAGES[0]).split(".")[:-1]:
        if not part.startswith("<"):
            hint = typing.get_type_hints(kind)[part]
            kind = next(item for item in (hint, *typing.get_args(hint)) if dataclasses.is_dataclass(item))
    return kind


def test_what_a_stage_takes_over_has_the_default_of_where_it_comes_from() -> None:
    for key in loading._STAGE_KEYS:
        assert DOCUMENTED[f"stages.<stage>.{key}"] == (DOCUMENTED[f"training.{key}"][0], f"As `training.{key}`.")


def values(path: str) -> dict[str, Any]:
    """A configuration with one key set: to its default where it has one, else to 1."""
    default = KEYS[path][1] if path in KEYS else 1
    value: Any = json.loads(json.dumps(default))
    for key in reversed(path.replace("<stage>", STAGES[0]).split(".")):
        value = {key: value}
    return value


def with_state(*states: str) -> list[str]:
    return [path for path, (state, *_) in FATES.items() if state in states]


@pytest.mark.parametrize("path", [path for path in with_state("kept") if path in KEYS])
def test_a_kept_key_loads_and_has_the_default_of_today(path: str) -> None:
    assert FATES[path][1] == DOCUMENTED[path][0]
    from_dict(merge(values(path), ["data.tasks=[{name: a}]"]))


def test_what_else_is_kept_is_a_section() -> None:
    sections = {path.rpartition(".")[0] for path in loading._paths(Config, "")}
    others = [path for path in with_state("kept") if path not in KEYS]
    assert {path.replace("<stage>", STAGES[0]) for path in others} <= {"include", *sections}


@pytest.mark.parametrize("path", with_state("renamed", "dropped", "not yet"))
def test_a_former_key_is_refused_in_the_words_of_its_row(path: str) -> None:
    state, default, mend = FATES[path]
    assert default == "-" and mend
    with pytest.raises(ConfigError, match="of the original system") as caught:
        from_dict(values(path))
    assert str(caught.value).endswith(f": {mend}") and "\n" not in str(caught.value)
    assert (state == "not yet") == mend.startswith("not yet")


def test_every_former_key_has_a_row() -> None:
    assert FORMER.keys() <= set(with_state("renamed", "dropped", "not yet"))
    assert {state for state, *_ in FATES.values()} == {"kept", "renamed", "dropped", "not yet"}
