"""Parameters in the YAML text that PDEBench stores beside its simulations, as the attribute `config`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import yaml

from ups_jax.errors import DataError

# libyaml's, where PyYAML has it: a file may hold ten thousand of these texts.
_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def numbers(text: str, where: str) -> dict[str, float]:
    """Every number in it by its key: the last part alone where no other has that one, else the whole dotted key.

    Also numbers that YAML takes for words, such as `1e-3` and `1.e-8`. Raises `DataError` naming `where`.
    """
    try:
        values = yaml.load(text, Loader=_LOADER)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        line = " ".join(str(error).split())
        raise DataError(f"{where}: its attribute `config` is no YAML ({line}); write the file again") from None
    found = dict(_leaves(values, ()))
    short = [path[-1] for path in found]
    return {path[-1] if short.count(path[-1]) == 1 else ".".join(path): value for path, value in found.items()}


def _leaves(value: Any, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], float]]:
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _leaves(item, (*path, str(key)))
    elif path and isinstance(value, int | float | str) and not isinstance(value, bool):
        try:
            yield path, float(value)
        except (ValueError, OverflowError):
            return
