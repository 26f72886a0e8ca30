"""A YAML parser and writer with the core schema of version 1.2: `1e-3` is a number, `on` and `no` are strings.

Values are mappings, lists, texts, numbers, booleans and null. A repeated key is an error."""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable
from typing import Any

import yaml
from yaml.constructor import ConstructorError


def parse(text: str) -> Any:
    """Return the value of a YAML text. Raises ValueError with a one-line message if the text is not valid."""
    try:
        loader = _Loader(text)
        try:
            return loader.get_single_data()
        finally:
            loader.dispose()
    except yaml.YAMLError as error:
        raise ValueError(" ".join(str(error).split())) from None
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def dump(value: Any, *, flow: bool | None = False) -> str:
    """Return a value as YAML text, from which `parse` returns the same value; keys keep their order.

    Strings that `parse` or a parser of YAML 1.1 would read as another type, such as `1e-3`, `on` and `2026-12-01`, are
    quoted.

    Args:
        flow: Write mappings and lists as `{key: value}` and `[value]`, on one line; None does so only for those that
            contain nothing but scalars.
    """
    return str(yaml.dump(value, Dumper=_Dumper, sort_keys=False, default_flow_style=flow, width=10**9))


class _Loader(yaml.SafeLoader):
    """A YAML loader; this module sets its scalar types and its constructors."""


_Loader.yaml_implicit_resolvers = {}
for _tag, _pattern, _first in (
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("int", r"[-+]?[0-9]+", "-+0123456789"),
    (
        "float",
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        "-+.0123456789",
    ),
    ("null", r"~|null|Null|NULL|", "~nN\0"),
):
    _Loader.add_implicit_resolver(
        f"tag:yaml.org,2002:{_tag}", re.compile(f"^(?:{_pattern})$"), [*_first, ""] if _tag == "null" else list(_first)
    )


class _Dumper(getattr(yaml, "CSafeDumper", yaml.SafeDumper)):  # type: ignore[misc]
    """A YAML dumper with the scalar types of versions 1.1 and 1.2; libyaml's if PyYAML was built with it."""


_Dumper.yaml_implicit_resolvers = {
    first: [*_Loader.yaml_implicit_resolvers.get(first, ()), *yaml.SafeDumper.yaml_implicit_resolvers.get(first, ())]
    for first in {*_Loader.yaml_implicit_resolvers, *yaml.SafeDumper.yaml_implicit_resolvers}
}


def _scalar_constructor(kind: str, convert: Callable[[yaml.SafeLoader, yaml.ScalarNode], Any]) -> Callable[..., Any]:
    """Return a constructor for scalars that raises `ConstructorError` if the text does not fit an explicit tag."""

    def construct(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> Any:
        try:
            return convert(loader, node)
        except (ValueError, KeyError, IndexError):
            raise ConstructorError(None, None, f"{str(node.value)[:40]!r} is not a {kind}", node.start_mark) from None

    return construct


def _construct_mapping(loader: yaml.SafeLoader, node: yaml.MappingNode) -> dict[Any, Any]:
    """Return the mapping of a node. Raises `ConstructorError` for a repeated or unhashable key."""
    mapping: dict[Any, Any] = {}
    if not isinstance(node, yaml.MappingNode):
        raise ConstructorError(None, None, "this is not a mapping", node.start_mark)
    for key_node, value_node in node.value:
        key = loader.construct_object(key_node, deep=True)
        if not isinstance(key, Hashable):
            raise ConstructorError(None, None, "a key must be a word or a number", key_node.start_mark)
        if key in mapping:
            raise ConstructorError(None, None, f"key {key!r} is there twice", node.start_mark)
        mapping[key] = loader.construct_object(value_node, deep=True)
    return mapping


def _construct_list(loader: yaml.SafeLoader, node: yaml.SequenceNode) -> list[Any]:
    """Return the list of a node, constructed eagerly so that a list that contains itself is refused."""
    return loader.construct_sequence(node, deep=True)


def _refuse_include(loader: yaml.SafeLoader, node: yaml.Node) -> Any:
    """Raise `ConstructorError` for the tag `!include`, with what to write instead."""
    raise ConstructorError(
        None, None, "write `include: FILE` as a key of the file instead of the tag !include", node.start_mark
    )


# Dates, sets, binary data and other types of YAML are refused.
_Loader.yaml_constructors = {
    "tag:yaml.org,2002:null": yaml.SafeLoader.construct_yaml_null,
    "tag:yaml.org,2002:bool": _scalar_constructor("boolean", yaml.SafeLoader.construct_yaml_bool),
    "tag:yaml.org,2002:int": _scalar_constructor(
        "whole number", lambda loader, node: int(loader.construct_scalar(node))
    ),
    "tag:yaml.org,2002:float": _scalar_constructor("number", yaml.SafeLoader.construct_yaml_float),
    "tag:yaml.org,2002:str": yaml.SafeLoader.construct_yaml_str,
    "tag:yaml.org,2002:seq": _construct_list,
    "tag:yaml.org,2002:map": _construct_mapping,
    "!include": _refuse_include,
    None: yaml.SafeLoader.construct_undefined,
}
