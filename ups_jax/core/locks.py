"""Locks on files, which die with the process that holds them."""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from ups_jax.core.errors import ConfigError
from ups_jax.core.files import storage_error

NAME = ".lock"


@contextlib.contextmanager
def held(folder: Path, mend: str) -> Iterator[None]:
    """Hold a folder, which is made where it is not there, for this process. `ConfigError` that names who holds it
    otherwise, with the `mend`."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = (folder / NAME).open("a+", encoding="utf-8")
    except OSError as error:
        raise storage_error(folder, error) from None
    with handle:
        _take(handle, folder, mend)
        yield


@contextlib.contextmanager
def alone(path: Path, mend: str) -> Iterator[None]:
    """Be the only one that writes a file, whose folder is made where it is not there; errors as of `held`. The lock's
    own file, beside it, goes with the lock."""
    lock = path.with_name(f".{path.name}.lock")
    while True:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            handle = lock.open("a+", encoding="utf-8")
        except OSError as error:
            raise storage_error(path, error) from None
        with handle:
            _take(handle, path, mend)
            # Else whoever held it before has taken it away between the two lines above.
            if os.fstat(handle.fileno()).st_nlink:
                try:
                    yield
                finally:
                    lock.unlink(missing_ok=True)
                return


@contextlib.contextmanager
def in_turn(path: Path) -> Iterator[None]:
    """Hold a lock file, which is made where it is not there, once whoever holds it has done. Raises `StorageError`."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = path.open("a")
    except OSError as error:
        raise storage_error(path, error) from None
    with handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def _take(handle: TextIO, what: Path, mend: str) -> None:
    """Lock an open file and write into it who holds it; `ConfigError` with what it says where another process does."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        handle.seek(0)
        raise ConfigError(f"{what}: is held by {handle.read().strip() or 'another process'}; {mend}") from None
    handle.truncate(0)
    handle.write(f"process {os.getpid()} on {socket.gethostname()}")
    handle.flush()


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
