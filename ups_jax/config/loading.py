"""Reading YAML files and dotted overrides into a `Config`; an error names the wrong key and the closest valid one."""

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

from ups_jax.config import yaml
from ups_jax.config.legacy_keys import hint_for
from ups_jax.config.packaged import config_file, included_file
from ups_jax.config.renamed_keys import override_with_current_names, with_current_names
from ups_jax.config.schema import ADAPTER, Config, StageDefaults
from ups_jax.core.errors import ConfigError
from ups_jax.core.stage_names import STAGE_ALIASES

# Sections that a stage inherits key by key. It inherits the keys of `StageDefaults` from `training`.
_STAGE_SECTIONS = ("optimizer", "scheduler")


def load(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Return the configuration of a YAML file with its includes and with overrides applied.

    Args:
        path: YAML file, or the name of a packaged configuration.
        overrides: Texts of the form `a.b=value`. Paths of data files are relative to the working directory.

    Raises:
        ConfigError: The file or a key is wrong.
    """
    return from_dict(merge(_read(config_file(path), ()), overrides), str(path))


def problems(path: str | Path, overrides: Sequence[str] = ()) -> list[str]:
    """Return one line for every unknown key and wrong value of a YAML file and its overrides."""
    try:
        values = _canonical_stages(merge(_read(config_file(path), ()), overrides), str(path))
    except ConfigError as error:
        return [str(error)]
    lines = [f"{path}: {text}" for text in _unknown_keys(values, Config, "")]
    try:
        ADAPTER.validate_python(_inherit(_without_unknown_keys(values, Config)))
    except ValidationError as error:
        lines += [f"{path}: {text}" for text in _describe_all(error)]
    return lines


def merge(values: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """Return plain values with `a.b=value` overrides applied."""
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
    """Return the configuration of plain values, whose stages inherit from `training`, `optimizer` and `scheduler`.

    Args:
        values: Plain values as of a YAML file; former names of keys are accepted.
        origin: File or flag that an error names.

    Raises:
        ConfigError: A key is unknown or a value is not valid.
    """
    # A recorded configuration has the names of the version that wrote it.
    values = with_current_names(_canonical_stages(values, origin), origin, warn=False)
    problems = list(_unknown_keys(values, Config, ""))
    if problems:
        raise ConfigError(f"{origin}: " + "; ".join(problems))
    try:
        return ADAPTER.validate_python(_inherit(values))
    except ValidationError as error:
        raise ConfigError(f"{origin}: " + "; ".join(_describe_all(error))) from None


def _parse(text: str, origin: str) -> Any:
    try:
        return yaml.parse(text)
    except ValueError as error:
        raise ConfigError(f"{origin}: not valid YAML: {error}") from None


def _read(path: Path, parents: tuple[Path, ...]) -> dict[str, Any]:
    if path.resolve() in parents:
        raise ConfigError(f"{path}: includes itself through {parents[-1]}; remove one of the two includes")
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
        raise ConfigError(f"{path}: contains a {type(values).__name__}; write `key: value` lines")
    values = with_current_names(_canonical_stages(values, str(path)), str(path), warn=True)
    includes = values.pop("include", None)
    names = includes if isinstance(includes, list) else [] if includes is None else [includes]
    result: dict[str, Any] = {}
    for name in names:
        if not isinstance(name, str):
            raise ConfigError(f"{path}: include takes a file name or a list of them, not {_short(name)}")
        result = _merge(result, _read(included_file(name, path), (*parents, path.resolve())))
    return _merge(result, values)


def _canonical_stages(values: dict[str, Any], origin: str) -> dict[str, Any]:
    """Return the values with aliases of stages replaced by the stages' names."""
    try:
        return values | {"stages": _without_aliases(values["stages"])} if "stages" in values else values
    except ValueError as error:
        raise ConfigError(f"{origin}: {error}") from None


def _without_aliases(stages: Any) -> Any:
    """Return the section `stages` with aliases replaced; ValueError if a stage is there under both names."""
    if not isinstance(stages, dict):
        return stages
    for alias, name in STAGE_ALIASES.items():
        if alias in stages and name in stages:
            raise ValueError(f"stages.{alias} and stages.{name} are the same stage; keep one of them")
    return {STAGE_ALIASES.get(name, name): section for name, section in stages.items()}


def _merge(base: Any, update: Any) -> Any:
    """Return `update` merged over `base`: mappings key by key, lists of named entries entry by entry."""
    if isinstance(base, dict) and isinstance(update, dict):
        return base | {key: _merge(base[key], value) if key in base else value for key, value in update.items()}
    if _has_named_entries(base) and _has_named_entries(update):
        entries = {item["name"]: item for item in base}
        return [entries.get(item["name"], {}) | item for item in update]
    return update


def _has_named_entries(value: Any) -> bool:
    """Return whether a value is a list of mappings with names, such as `data.tasks`."""
    return isinstance(value, list) and all(
        isinstance(item, dict) and isinstance(item.get("name"), str) for item in value
    )


def _assign(values: dict[str, Any], key: str, value: Any) -> None:
    """Set the value of a dotted key; an entry of a list is named by its position or by its name."""
    *parents, last = key.split(".")
    node: Any = values
    for depth, part in enumerate(parents):
        node = _child(node, part, ".".join(parents[: depth + 1]))
    if isinstance(node, list):
        node[_position(node, last, key)] = value
    else:
        # A mapping replaces the former value, so that entries can be removed; a list of named entries is merged.
        node[last] = _merge(node[last], value) if _has_named_entries(value) and last in node else value


def _child(node: Any, part: str, where: str) -> Any:
    """Return the section or list below a node, which is created if needed."""
    if isinstance(node, list):
        child = node[_position(node, part, where)]
    else:
        child = node.setdefault(part, {})
        if child is None:
            child = node[part] = {}
    if not isinstance(child, dict | list):
        raise ConfigError(f"override {where}: is the value {_short(child)}, not a section; set the key itself")
    return child


def _position(node: list[Any], part: str, where: str) -> int:
    """Return the position of a list's entry that is named by its name or number."""
    names = [item["name"] if isinstance(item, dict) and "name" in item else None for item in node]
    if part in names:
        return names.index(part)
    if part.isdigit() and int(part) < len(node):
        return int(part)
    raise ConfigError(f"override {where}: no entry {part!r}; there are {', '.join(map(str, names)) or 'none'}")


def _unknown_keys(values: Any, schema: Any, where: str) -> Iterator[str]:
    """Yield a message for each unknown key, and for each key of the original system that is a section here."""
    kinds = typing.get_args(schema)
    if typing.get_origin(schema) is tuple and isinstance(values, list):
        for index, item in enumerate(values):
            yield from _unknown_keys(item, kinds[0], f"{where}.{index}")
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
        path = f"{where}.{key}".lstrip(".")
        if key in hints and not isinstance(value, dict | None) and (hint := hint_for(path)) is not None:
            yield f"key `{path}` is {_short(value)} (of the original system): {hint}"
        elif key in hints:
            yield from _unknown_keys(value, hints[key], path)
        else:
            yield f"unknown key `{path}`{_suggestion(path, list(hints), where)}"


def _without_unknown_keys(values: Any, schema: Any) -> Any:
    """Return the values without the keys that the schema does not have."""
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
    """Return the types of a section's keys."""
    return typing.get_type_hints(schema)


def _suggestion(path: str, siblings: list[str], where: str) -> str:
    """Return the end of a message about an unknown key: what to write instead."""
    if (hint := hint_for(path)) is not None:
        return f" (of the original system): {hint}"
    prefix = f"{where}." if where else ""
    key = path.removeprefix(prefix)
    near = difflib.get_close_matches(key, siblings, n=1, cutoff=0.6)
    if near:
        return f", did you mean `{prefix}{near[0]}`?"
    paths = list(key_paths(Config))
    by_key = [candidate for candidate in paths if candidate.rsplit(".", 1)[-1] == key]
    near = by_key[:1] or difflib.get_close_matches(path, paths, n=1, cutoff=0.0)
    return f", did you mean `{near[0]}`?"


def key_paths(schema: type, where: str = "") -> Iterator[str]:
    """Yield the path of every key and section of a schema class, below the path `where`."""
    for key, hint in _type_hints(schema).items():
        path = f"{where}.{key}".lstrip(".")
        yield path
        for kind in (hint, *typing.get_args(hint)):
            if dataclasses.is_dataclass(kind):
                yield from key_paths(typing.cast(type, kind), path)


def _inherit(values: dict[str, Any]) -> dict[str, Any]:
    """Return the values with the missing keys of every stage filled from the general sections."""
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
        filled[name] = _without_default_warmup(_merge(_without_other_unit(base, section), section))
    return _without_default_warmup(values) | {"stages": (stages or {}) | filled}


def _without_default_warmup(section: dict[str, Any]) -> dict[str, Any]:
    """Return the section with `warmup: 0` if its `scheduler` sets `name` without `warmup`.

    The default warm-up belongs to the default curve, `cosineannealinglr`.
    """
    scheduler = section.get("scheduler")
    if not isinstance(scheduler, dict) or "name" not in scheduler or "warmup" in scheduler:
        return section
    return section | {"scheduler": scheduler | {"warmup": 0.0}}


def _without_other_unit(base: dict[str, Any], section: dict[str, Any]) -> dict[str, Any]:
    """Return the inherited values without lengths in epochs that the section sets in steps, and the reverse."""
    other_unit = {key.removesuffix("_steps") if key.endswith("_steps") else f"{key}_steps" for key in section}
    other_unit -= section.keys()
    return {
        key: _without_other_unit(value, section[key])
        if isinstance(value, dict) and isinstance(section.get(key), dict)
        else value
        for key, value in base.items()
        if key not in other_unit
    }


def _describe_all(error: ValidationError) -> list[str]:
    """Return one text for each wrong value; one that stages inherit is reported once, at the key that sets it."""
    texts = {(item["msg"], _value(item)): _describe(item) for item in reversed(error.errors())}
    return list(reversed(texts.values()))


def _value(error: Any) -> str:
    """Return the wrong value as a text, empty for a section."""
    return "" if error["type"] == "value_error" else _short(error["input"])


def _short(value: Any) -> str:
    """Return the `repr` of a value, shortened if it is long."""
    shown = reprlib.Repr()
    shown.maxlist = shown.maxdict = shown.maxtuple = 12
    shown.maxstring = shown.maxother = 120
    return shown.repr(value)


def _describe(error: Any) -> str:
    """Return the key and the reason of one error of pydantic."""
    # The alternatives of a union are parts of pydantic's location but no keys.
    path = ".".join(str(part) for part in error["loc"] if part not in ("str", "FilePair", "tuple[str, ...]"))
    if error["type"] in ("missing", "missing_keyword_only_argument"):
        return f"key `{path}` is missing"
    if error["type"] == "value_error":
        return f"key `{path}`: {error['ctx']['error']}"
    return f"key `{path}`: {error['msg'][0].lower()}{error['msg'][1:]}, got {_short(error['input'])}"
