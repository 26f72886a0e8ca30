"""One process a pipeline run: a lock that the steps inherit, so that it lives as long as any of them."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ups_jax.errors import ConfigError
from ups_jax.files import storage_error

_NAME = ".lock"
# How long a step may take to save and end after the process is gone that had started it.
_PATIENCE = 60.0


@contextmanager
def hold(directory: Path, patience: float = _PATIENCE) -> Iterator[int]:
    """Hold the run for this process; gives the file descriptor that steps inherit. ConfigError where it is held.

    A lock whose process is gone is that of a step which still saves its state: it is waited for.
    """
    path = directory / _NAME
    try:
        directory.mkdir(parents=True, exist_ok=True)
        handle = path.open("a+", encoding="utf-8")
    except OSError as error:
        raise storage_error(directory, error) from None
    with handle:
        deadline = time.monotonic() + patience
        while not _taken(handle.fileno()):
            handle.seek(0)
            owner = handle.read().strip()
            if _lives(owner) or time.monotonic() > deadline:
                raise ConfigError(
                    f"{directory}: is held by process {owner or 'unknown'}; wait for it or stop it, or give another "
                    "--run-id"
                )
            time.sleep(0.2)
        handle.truncate(0)
        handle.write(str(os.getpid()))
        handle.flush()
        yield handle.fileno()


def is_free(directory: Path) -> bool:
    """Whether no living pipeline works on the run; a step that outlives its pipeline does not count."""
    try:
        with (directory / _NAME).open("r", encoding="utf-8") as handle:
            if _taken(handle.fileno()):
                return True
            return not _lives(handle.read().strip())
    except FileNotFoundError:
        return True


def _taken(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _lives(owner: str) -> bool:
    if not owner.isdecimal():
        return True
    try:
        os.kill(int(owner), 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
