"""Keys that had another name in earlier versions. Both names are read, and the current one is written."""

from __future__ import annotations

import warnings
from typing import Any

from ups_jax.core.errors import ConfigError

# Path of the former key, with `*` for an entry of a list -> the current name of its last part.
RENAMED = {
    ("data", "tasks", "*", "settled"): "steady_tolerance",
    ("diffusion", "own_steps"): "model_rollout_steps",
    ("diffusion", "held_noise"): "fixed_noise",
}
_FORMER = {current: path[-1] for path, current in RENAMED.items()}


def with_current_names(values: Any, origin: str, *, warn: bool, path: tuple[str, ...] = ()) -> Any:
    """Return plain values with every former key under its current name.

    Args:
        values: Values of the section at `path`, or of the whole configuration.
        origin: File or override that messages name.
        warn: Whether to warn about each former key; the stored configuration of a run is read without warnings.
        path: Keys of the section that contains `values`.

    Raises:
        ConfigError: A key is given under both names.
    """
    if isinstance(values, list):
        return [with_current_names(item, origin, warn=warn, path=(*path, "*")) for item in values]
    if not isinstance(values, dict):
        return values
    result = {}
    for key, value in values.items():
        name = _current_name(path, key)
        if name != key:
            section = ".".join(path)
            if name in values:
                raise ConfigError(f"{origin}: `{section}.{key}` and `{section}.{name}` are the same key; keep `{name}`")
            if warn:
                _warn(origin, section, key, name)
        result[name] = with_current_names(value, origin, warn=warn, path=(*path, str(name)))
    return result


def override_with_current_names(parts: list[str], value: Any, origin: str) -> tuple[str, Any]:
    """Return the dotted key and the value of an override with former keys replaced, and warn about each of them."""
    path = tuple("*" if parts[:position] == ["data", "tasks"] else part for position, part in enumerate(parts))
    *above, last = parts
    name = _current_name(path[:-1], path[-1])
    if name != path[-1]:
        _warn(origin, ".".join(above), last, name)
        last = name
    return ".".join([*above, last]), with_current_names(value, origin, warn=True, path=path)


def with_former_names(values: Any) -> Any:
    """Return plain values with keys under their former names. Digests use them, so a renamed key keeps its digest."""
    if isinstance(values, list):
        return [with_former_names(item) for item in values]
    if not isinstance(values, dict):
        return values
    return {_FORMER.get(key, key): with_former_names(value) for key, value in values.items()}


def _current_name(path: tuple[str, ...], key: Any) -> Any:
    return RENAMED.get((*path, key), key)


def _warn(origin: str, section: str, former: str, current: str) -> None:
    warnings.warn(
        f"{origin}: key `{section}.{former}` is now called `{current}`; write the new name", FutureWarning, stacklevel=2
    )
