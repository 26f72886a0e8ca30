"""Which of a file's named channels are read."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

from ups_jax.errors import DataError


def selected(file: str, found: Sequence[str], wanted: Sequence[str] | None) -> tuple[str, ...]:
    """`wanted` as the file spells them, in their own order; all that were `found` without it. Raises `DataError`."""
    if not found:
        raise DataError(f"{file}: holds no fields that change in time; give another file")
    if wanted is None:
        return tuple(found)
    if not wanted or len(set(map(str.lower, wanted))) < len(wanted):
        raise DataError(f"{file}: `channels` are {', '.join(wanted) or 'none'}; name one or more, each once")
    spelled = {name.lower(): name for name in found}
    for name in wanted:
        if name.lower() not in spelled:
            near = difflib.get_close_matches(name.lower(), spelled, n=1, cutoff=0.6)
            hint = f", did you mean {spelled[near[0]]!r}?" if near else ""
            raise DataError(
                f"{file}: has no channel {name!r}{hint}; it has {', '.join(found)}: name those to use as `channels`"
            )
    return tuple(spelled[name.lower()] for name in wanted)
