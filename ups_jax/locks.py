"""Locks on files, which die with the process that holds them."""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from ups_jax.errors import ConfigError
from ups_jax.files import storage_error

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
