"""YAML files and dotted overrides become a `Config`, or one line that names the wrong key and the nearest right one."""

from __future__ import annotations

import copy
import dataclasses
import difflib
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

# Sections that a stage inherits key by key, beside the keys of `StageDefaults`, which it inherits from `training`.
_STAGE_SECTIONS = ("optimizer", "scheduler")


def load(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Return the configuration of a YAML file, or of a packaged name, with its includes and `a.b=value` overrides.

    Raises `ConfigError` naming file or key, and the fix. Paths of data files are relative to the working directory.
    """
    return from_dict(merge(_read(config_file(path), ()), overrides), str(path))


def problems(path: str | Path, overrides: Sequence[str] = ()) -> list[str]:
    """All that is wrong with a YAML file and its overrides, a line each: unknown keys and wrong values together."""
    try:
        values = _whole(merge(_read(config_file(path), ()), overrides), str(path))
    except ConfigError as error:
        return [str(error)]
    found = [f"{path}: {text}" for text in _unknown_keys(values, Config, "")]
    try:
        ADAPTER.validate_python(_inherit(_known(values, Config)))
    except ValidationError as error:
        told = {(item["msg"], _value(item)): _describe(item) for item in reversed(error.errors())}
        found += [f"{path}: {text}" for text in reversed(told.values())]
    return found


def merge(values: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """Plain values with `a.b=value` overrides applied."""
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
            value = _whole({"stages": value}, f"override {key}")["stages"]
        _assign(result, *override_with_current_names([first, *rest], value, f"override {key}"))
    return result


def from_dict(values: dict[str, Any], origin: str = "configuration") -> Config:
    """Check plain values against the schema; stages inherit from `training`, `optimizer` and `scheduler`."""
    # A recorded configuration has the names of the version that wrote it.
    values = with_current_names(_whole(values, origin), origin, warn=False)
    problems = list(_unknown_keys(values, Config, ""))
    if problems:
        raise ConfigError(f"{origin}: " + "; ".join(problems))
    try:
        return ADAPTER.validate_python(_inherit(values))
    except ValidationError as error:
        # A wrong value that the stages inherit is told once, where it stands.
        told = {(item["msg"], _value(item)): _describe(item) for item in reversed(error.errors())}
        raise ConfigError(f"{origin}: " + "; ".join(reversed(told.values()))) from None


def _parse(text: str, origin: str) -> Any:
    try:
        return yaml.parse(text)
    except ValueError as error:
        raise ConfigError(f"{origin}: not valid YAML: {error}") from None


def _read(path: Path, parents: tuple[Path, ...]) -> dict[str, Any]:
    if path.resolve() in parents:
        raise ConfigError(f"{path}: includes itself by way of {parents[-1]}; remove one of the two includes")
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
        raise ConfigError(f"{path}: holds a {type(values).__name__}; write `key: value` lines")
    values = with_current_names(_whole(values, str(path)), str(path), warn=True)
    includes = values.pop("include", None)
    names = includes if isinstance(includes, list) else [] if includes is None else [includes]
    result: dict[str, Any] = {}
    for name in names:
        if not isinstance(name, str):
            raise ConfigError(f"{path}: include takes a file name or a list of them, not {_short(name)}")
        result = _merge(result, _read(included_file(name, path), (*parents, path.resolve())))
    return _merge(result, values)


def _whole(values: dict[str, Any], origin: str) -> dict[str, Any]:
    """The values with every stage under its own name."""
    try:
        return values | {"stages": _named_stages(values["stages"])} if "stages" in values else values
    except ValueError as error:
        raise ConfigError(f"{origin}: {error}") from None


def _named_stages(stages: Any) -> Any:
    """A section of stages with former names replaced; ValueError where a stage has both of its names."""
    if not isinstance(stages, dict):
        return stages
    for former, name in STAGE_ALIASES.items():
        if former in stages and name in stages:
            raise ValueError(f"stages.{former} and stages.{name} are the same stage; keep one of them")
    return {STAGE_ALIASES.get(name, name): own for name, own in stages.items()}


def _merge(base: Any, update: Any) -> Any:
    """Mappings merge key by key; an entry of a list keeps what an entry of its name had and it does not say itself."""
    if isinstance(base, dict) and isinstance(update, dict):
        return base | {key: _merge(base[key], value) if key in base else value for key, value in update.items()}
    if _named(base) and _named(update):
        known = {item["name"]: item for item in base}
        return [known.get(item["name"], {}) | item for item in update]
    return update


def _named(value: Any) -> bool:
    return isinstance(value, list) and all(
        isinstance(item, dict) and isinstance(item.get("name"), str) for item in value
    )


def _assign(values: dict[str, Any], key: str, value: Any) -> None:
    """Set a dotted key; a list is entered by position or, where its entries have names, by name."""
    *parents, last = key.split(".")
    node: Any = values
    for depth, part in enumerate(parents):
        node = _child(node, part, ".".join(parents[: depth + 1]))
    if isinstance(node, list):
        node[_position(node, last, key)] = value
    else:
        # A mapping given as a value replaces, so that entries can be taken out; a list of named entries keeps theirs.
        node[last] = _merge(node[last], value) if _named(value) and last in node else value


def _child(node: Any, part: str, where: str) -> Any:
    if isinstance(node, list):
        child = node[_position(node, part, where)]
    else:
        child = node.setdefault(part, {})
        if child is None:
            child = node[part] = {}
    if not isinstance(child, dict | list):
        raise ConfigError(f"override {where}: is the value {_short(child)}, which has no keys")
    return child


def _position(node: list[Any], part: str, where: str) -> int:
    names = [item["name"] if isinstance(item, dict) and "name" in item else None for item in node]
    if part in names:
        return names.index(part)
    if part.isdigit() and int(part) < len(node):
        return int(part)
    raise ConfigError(f"override {where}: no entry {part!r}; there are {', '.join(map(str, names)) or 'none'}")


def _unknown_keys(values: Any, schema: Any, where: str) -> Iterator[str]:
    """One message for each key that the schema does not know, or knows as a section and the original as a value."""
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
    hints = typing.get_type_hints(schema)
    for key, value in values.items():
        path = f"{where}.{key}".lstrip(".")
        if key in hints and not isinstance(value, dict | None) and (hint := hint_for(path)) is not None:
            yield f"key `{path}` holds {_short(value)} (of the original system): {hint}"
        elif key in hints:
            yield from _unknown_keys(value, hints[key], path)
        else:
            yield f"unknown key `{path}`{_suggestion(path, list(hints), where)}"


def _known(values: Any, schema: Any) -> Any:
    """The values without the keys that the schema does not know."""
    kinds = typing.get_args(schema)
    if typing.get_origin(schema) is tuple and isinstance(values, list):
        return [_known(item, kinds[0]) for item in values]
    if not dataclasses.is_dataclass(schema):
        nested = [kind for kind in kinds if dataclasses.is_dataclass(kind)]
        return _known(values, nested[0]) if len(nested) == 1 else values
    if not isinstance(values, dict):
        return values
    hints = typing.get_type_hints(schema)
    return {key: _known(value, hints[key]) for key, value in values.items() if key in hints}


def _suggestion(path: str, siblings: list[str], where: str) -> str:
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
    for key, hint in typing.get_type_hints(schema).items():
        path = f"{where}.{key}".lstrip(".")
        yield path
        for kind in (hint, *typing.get_args(hint)):
            if dataclasses.is_dataclass(kind):
                yield from key_paths(typing.cast(type, kind), path)


def _inherit(values: dict[str, Any]) -> dict[str, Any]:
    """Fill each stage with what it does not say itself, so that the resolved configuration is complete."""
    stages = values.get("stages")
    hints = typing.get_type_hints(typing.get_type_hints(Config)["stages"])
    if not isinstance(stages, dict | None):
        return values
    training = values.get("training") or {}
    inherited = [field.name for field in dataclasses.fields(StageDefaults)]
    filled = {}
    for name in hints:
        own = (stages or {}).get(name) or {}
        if not isinstance(own, dict) or not isinstance(training, dict):
            return values
        base = {key: training[key] for key in inherited if key in training}
        base |= {key: values[key] for key in _STAGE_SECTIONS if isinstance(values.get(key), dict)}
        filled[name] = _curve_alone(_merge(_without_twins(base, own), own))
    return _curve_alone(values) | {"stages": (stages or {}) | filled}


def _curve_alone(section: dict[str, Any]) -> dict[str, Any]:
    """The section with no warm-up where its `scheduler` names a curve and says nothing of one: who names a curve gets
    that curve from the first step on. The default warm-up belongs to the default curve."""
    scheduler = section.get("scheduler")
    if not isinstance(scheduler, dict) or "name" not in scheduler or "warmup" in scheduler:
        return section
    return section | {"scheduler": scheduler | {"warmup": 0.0}}


def _without_twins(base: dict[str, Any], own: dict[str, Any]) -> dict[str, Any]:
    """What is inherited, less the lengths in epochs (steps) that a stage gives in steps (epochs) itself."""
    twins = {key.removesuffix("_steps") if key.endswith("_steps") else f"{key}_steps" for key in own} - own.keys()
    return {
        key: _without_twins(value, own[key]) if isinstance(value, dict) and isinstance(own.get(key), dict) else value
        for key, value in base.items()
        if key not in twins
    }


def _value(error: Any) -> str:
    """The wrong value, none where it is a whole section."""
    return "" if error["type"] == "value_error" else _short(error["input"])


def _short(value: Any) -> str:
    """The value as Python writes it, of a large one the beginning."""
    shown = reprlib.Repr()
    shown.maxlist = shown.maxdict = shown.maxtuple = 12
    shown.maxstring = shown.maxother = 120
    return shown.repr(value)


def _describe(error: Any) -> str:
    # Which alternative of a union was tried is no key of the file.
    path = ".".join(str(part) for part in error["loc"] if part not in ("str", "FilePair", "tuple[str, ...]"))
    if error["type"] in ("missing", "missing_keyword_only_argument"):
        return f"key `{path}` is missing"
    if error["type"] == "value_error":
        return f"key `{path}`: {error['ctx']['error']}"
    return f"key `{path}`: {error['msg'][0].lower()}{error['msg'][1:]}, got {_short(error['input'])}"
