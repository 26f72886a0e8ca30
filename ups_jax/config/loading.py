"""Reading YAML files and `key=value` overrides into a `Config`; an error names the wrong and the closest valid key."""

from __future__ import annotations

import copy
import dataclasses
import difflib
import functools
import reprlib
import typing
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from ups_jax.config import yaml
from ups_jax.config.legacy_keys import legacy_key_hint
from ups_jax.config.packaged import config_file, included_file
from ups_jax.config.renamed_keys import override_with_current_names, with_current_names
from ups_jax.config.schema import ADAPTER, Config, StageDefaults
from ups_jax.core.errors import ConfigError
from ups_jax.core.stage_names import STAGE_ALIASES

# Sections that a stage inherits key by key. It inherits the keys of `StageDefaults` from `training`.
_STAGE_SECTIONS = ("optimizer", "scheduler")


def load(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Return the configuration of a YAML file and the files that it includes, with overrides applied.

    Args:
        path: YAML file, or the name of a packaged configuration.
        overrides: Texts of the form `a.b=value`. Paths of data files are relative to the working directory.

    Raises:
        ConfigError: The file cannot be read, or a key or value is wrong.
    """
    return from_dict(apply_overrides(_read_with_includes(config_file(path), ()), overrides), str(path))


def find_problems(path: str | Path, overrides: Sequence[str] = ()) -> list[str]:
    """Return one line for every unknown key and wrong value of a YAML file and its overrides."""
    try:
        values = _canonical_stages(apply_overrides(_read_with_includes(config_file(path), ()), overrides), str(path))
    except ConfigError as error:
        return [str(error)]
    lines = [f"{path}: {text}" for text in _unknown_keys(values, Config, "")]
    try:
        ADAPTER.validate_python(_fill_stages(_without_unknown_keys(values, Config)))
    except ValidationError as error:
        lines += [f"{path}: {text}" for text in _describe_errors(error)]
    return lines


def apply_overrides(values: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """Return plain values with overrides of the form `a.b=value` applied."""
    result = copy.deepcopy(values)
    for override in overrides:
        key, separator, text = override.partition("=")
        if not separator or not key:
            raise ConfigError(f"override {override!r} is not of the form key=value, such as optimizer.lr=1e-3")
        if not key.isprintable():
            raise ConfigError(f"override {override!r}: its key has characters that cannot be printed; leave them out")
        value = _parse(text, f"override {key}")
        first, *rest = key.strip().split(".")
        if first == "stages" and rest:
            rest[0] = STAGE_ALIASES.get(rest[0], rest[0])
        if key.strip() == "stages":
            value = _canonical_stages({"stages": value}, f"override {key}")["stages"]
        _assign(result, *override_with_current_names([first, *rest], value, f"override {key}"))
    return result


def from_dict(values: dict[str, Any], origin: str = "configuration") -> Config:
    """Return the configuration that plain values describe. Stages inherit from `training`, `optimizer` and `scheduler`.

    Args:
        values: Plain values, such as those of a YAML file; former names of keys are accepted.
        origin: File or option that an error message names.

    Raises:
        ConfigError: A key is unknown or a value is not valid.
    """
    # A recorded configuration has the names of the version that wrote it.
    values = with_current_names(_canonical_stages(values, origin), origin, warn=False)
    problems = list(_unknown_keys(values, Config, ""))
    if problems:
        raise ConfigError(f"{origin}: " + "; ".join(problems))
    try:
        return ADAPTER.validate_python(_fill_stages(values))
    except ValidationError as error:
        raise ConfigError(f"{origin}: " + "; ".join(_describe_errors(error))) from None


def _parse(text: str, origin: str) -> Any:
    try:
        return yaml.parse(text)
    except ValueError as error:
        raise ConfigError(f"{origin}: not valid YAML: {error}") from None


def _read_with_includes(path: Path, including: tuple[Path, ...]) -> dict[str, Any]:
    if path.resolve() in including:
        raise ConfigError(f"{path}: includes itself through {including[-1]}; remove one of the two includes")
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(
            f"{path}: cannot be read ({error.strerror}); give a YAML file, or a packaged name such as burgers1d"
        ) from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: is not a text file; give a YAML file") from None
    values = _parse(text, str(path))
    if values is None:
        values = {}
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: contains a {type(values).__name__} instead of keys; write `key: value` lines")
    values = with_current_names(_canonical_stages(values, str(path)), str(path), warn=True)
    includes = values.pop("include", None)
    names = includes if isinstance(includes, list) else [] if includes is None else [includes]
    result: dict[str, Any] = {}
    for name in names:
        if not isinstance(name, str):
            raise ConfigError(f"{path}: `include` takes a file name or a list of file names, not {_short_repr(name)}")
        result = _merge(result, _read_with_includes(included_file(name, path), (*including, path.resolve())))
    return _merge(result, values)


def _canonical_stages(values: dict[str, Any], origin: str) -> dict[str, Any]:
    """Return the values with aliases of stage names replaced in the section `stages`."""
    if not isinstance(values.get("stages"), dict):
        return values
    try:
        return values | {"stages": _replace_stage_aliases(values["stages"])}
    except ValueError as error:
        raise ConfigError(f"{origin}: {error}") from None


def _replace_stage_aliases(stages: dict[str, Any]) -> dict[str, Any]:
    """Return the section `stages` with aliases replaced. Raises ValueError if a stage is given under both names."""
    for alias, name in STAGE_ALIASES.items():
        if alias in stages and name in stages:
            raise ValueError(f"`stages.{alias}` and `stages.{name}` are the same stage; keep one of them")
    return {STAGE_ALIASES.get(name, name): section for name, section in stages.items()}


def _merge(base: Any, update: Any) -> Any:
    """Return `base` updated with `update`, mappings key by key.

    A list of named entries becomes the list in `update`, whose entries inherit from those of the same name in `base`.
    """
    if isinstance(base, dict) and isinstance(update, dict):
        return base | {key: _merge(base[key], value) if key in base else value for key, value in update.items()}
    if _has_named_entries(base) and _has_named_entries(update):
        entries = {item["name"]: item for item in base}
        return [entries.get(item["name"], {}) | item for item in update]
    return update


def _has_named_entries(value: Any) -> bool:
    """Return whether a value is a list of mappings with the key `name`, such as `data.tasks`."""
    return isinstance(value, list) and all(
        isinstance(item, dict) and isinstance(item.get("name"), str) for item in value
    )


def _assign(values: dict[str, Any], key: str, value: Any) -> None:
    """Set the value of a dotted key, in which a list entry is given by its position or its name."""
    *parents, last = key.split(".")
    node: Any = values
    for depth, part in enumerate(parents):
        node = _child_section(node, part, ".".join(parents[: depth + 1]))
    if isinstance(node, list):
        node[_entry_position(node, last, key)] = value
    else:
        # A mapping replaces the former value, so that entries can be removed; a list of named entries is merged.
        node[last] = _merge(node[last], value) if _has_named_entries(value) and last in node else value


def _child_section(node: Any, part: str, key_path: str) -> dict[str, Any] | list[Any]:
    """Return the section or list with the key `part` in `node`; a missing section is created."""
    if isinstance(node, list):
        child = node[_entry_position(node, part, key_path)]
    else:
        child = node.setdefault(part, {})
        if child is None:
            child = node[part] = {}
    if not isinstance(child, dict | list):
        raise ConfigError(f"override {key_path}: its value is {_short_repr(child)}, not a section; set the key itself")
    return child


def _entry_position(node: list[Any], part: str, key_path: str) -> int:
    """Return the position of the list entry whose name or position is `part`."""
    names = [item["name"] if isinstance(item, dict) and "name" in item else None for item in node]
    if part in names:
        return names.index(part)
    if part.isdigit() and int(part) < len(node):
        return int(part)
    raise ConfigError(
        f"override {key_path}: the list has no entry {part!r}; choose from {', '.join(map(str, names)) or 'none'}"
    )


def _unknown_keys(values: Any, schema: Any, section: str) -> Iterator[str]:
    """Yield a message for each unknown key, and for each section that is a plain value as in the original system."""
    kinds = typing.get_args(schema)
    if typing.get_origin(schema) is tuple and isinstance(values, list):
        for index, item in enumerate(values):
            yield from _unknown_keys(item, kinds[0], f"{section}.{index}")
        return
    if not dataclasses.is_dataclass(schema):
        nested = [kind for kind in kinds if dataclasses.is_dataclass(kind)]
        if len(nested) != 1:
            return
        schema = nested[0]
    if not isinstance(values, dict):
        return
    hints = _type_hints(schema)
    for key, value in values.items():
        path = f"{section}.{key}".lstrip(".")
        if key in hints and not isinstance(value, dict | None) and (hint := legacy_key_hint(path)) is not None:
            yield f"key `{path}` is {_short_repr(value)} (of the original system): {hint}"
        elif key in hints:
            yield from _unknown_keys(value, hints[key], path)
        else:
            yield f"unknown key `{path}`{_suggestion(path, list(hints), section)}"


def _without_unknown_keys(values: Any, schema: Any) -> Any:
    """Return the values without keys that are not in the schema."""
    kinds = typing.get_args(schema)
    if typing.get_origin(schema) is tuple and isinstance(values, list):
        return [_without_unknown_keys(item, kinds[0]) for item in values]
    if not dataclasses.is_dataclass(schema):
        nested = [kind for kind in kinds if dataclasses.is_dataclass(kind)]
        return _without_unknown_keys(values, nested[0]) if len(nested) == 1 else values
    if not isinstance(values, dict):
        return values
    hints = _type_hints(typing.cast(type, schema))
    return {key: _without_unknown_keys(value, hints[key]) for key, value in values.items() if key in hints}


@functools.cache
def _type_hints(schema: type) -> dict[str, Any]:
    """Return the types of the keys in the section with the class `schema`."""
    return typing.get_type_hints(schema)


def _suggestion(path: str, siblings: list[str], section: str) -> str:
    """Return what to write instead of the unknown key `path` in `section`, as the end of a message."""
    if (hint := legacy_key_hint(path)) is not None:
        return f" (of the original system): {hint}"
    prefix = f"{section}." if section else ""
    key = path.removeprefix(prefix)
    near = difflib.get_close_matches(key, siblings, n=1, cutoff=0.6)
    if near:
        return f", did you mean `{prefix}{near[0]}`?"
    paths = list(key_paths(Config))
    by_key = [candidate for candidate in paths if candidate.rsplit(".", 1)[-1] == key]
    near = by_key[:1] or difflib.get_close_matches(path, paths, n=1, cutoff=0.0)
    return f", did you mean `{near[0]}`?"


def key_paths(schema: type, where: str = "") -> Iterator[str]:
    """Yield the dotted path of every key and section in the section `where`, whose class is `schema`."""
    for key, hint in _type_hints(schema).items():
        path = f"{where}.{key}".lstrip(".")
        yield path
        for kind in (hint, *typing.get_args(hint)):
            if dataclasses.is_dataclass(kind):
                yield from key_paths(typing.cast(type, kind), path)


def _fill_stages(values: dict[str, Any]) -> dict[str, Any]:
    """Return the values with missing keys of every stage taken from `training`, `optimizer` and `scheduler`."""
    stages = values.get("stages")
    hints = _type_hints(_type_hints(Config)["stages"])
    if not isinstance(stages, dict | None):
        return values
    training = values.get("training") or {}
    inherited = [field.name for field in dataclasses.fields(StageDefaults)]
    filled = {}
    for name in hints:
        section = (stages or {}).get(name) or {}
        if not isinstance(section, dict) or not isinstance(training, dict):
            return values
        base = {key: training[key] for key in inherited if key in training}
        base |= {key: values[key] for key in _STAGE_SECTIONS if isinstance(values.get(key), dict)}
        filled[name] = _without_default_warmup(_merge(_without_lengths_of_other_unit(base, section), section))
    return _without_default_warmup(values) | {"stages": (stages or {}) | filled}


def _without_default_warmup(section: dict[str, Any]) -> dict[str, Any]:
    """Return a section, with `warmup: 0` added to its key `scheduler` if this sets `name` but not `warmup`.

    The default warm-up is meant for the default curve, `cosineannealinglr`, not for a curve that a user names.
    """
    scheduler = section.get("scheduler")
    if not isinstance(scheduler, dict) or "name" not in scheduler or "warmup" in scheduler:
        return section
    return section | {"scheduler": scheduler | {"warmup": 0.0}}


def _without_lengths_of_other_unit(base: dict[str, Any], section: dict[str, Any]) -> dict[str, Any]:
    """Return the inherited values `base` without each length that `section` sets in the other unit, epochs or steps."""
    other_unit = {key.removesuffix("_steps") if key.endswith("_steps") else f"{key}_steps" for key in section}
    other_unit -= section.keys()
    return {
        key: _without_lengths_of_other_unit(value, section[key])
        if isinstance(value, dict) and isinstance(section.get(key), dict)
        else value
        for key, value in base.items()
        if key not in other_unit
    }


def _describe_errors(error: ValidationError) -> list[str]:
    """Return one text for each wrong value. A value that stages inherit is reported once, at the key that sets it."""
    texts = {(item["msg"], _wrong_value(item)): _describe_error(item) for item in reversed(error.errors())}
    return list(reversed(texts.values()))


def _wrong_value(error: ErrorDetails) -> str:
    """Return the wrong value of an error as text, or an empty text if it is a section."""
    return "" if error["type"] == "value_error" else _short_repr(error["input"])


def _short_repr(value: Any) -> str:
    """Return the `repr` of a value, abbreviated if it is long."""
    shown = reprlib.Repr()
    shown.maxlist = shown.maxdict = shown.maxtuple = 12
    shown.maxstring = shown.maxother = 120
    return shown.repr(value)


def _describe_error(error: ErrorDetails) -> str:
    """Return the key and the reason of a validation error."""
    # The alternatives of a union are parts of pydantic's location but no keys.
    path = ".".join(str(part) for part in error["loc"] if part not in ("str", "FilePair", "tuple[str, ...]"))
    if error["type"] in ("missing", "missing_keyword_only_argument"):
        return f"key `{path}` is missing"
    if error["type"] == "value_error":
        return f"key `{path}`: {error['ctx']['error']}"
    return f"key `{path}`: {error['msg'][0].lower()}{error['msg'][1:]}, got {_short_repr(error['input'])}"
