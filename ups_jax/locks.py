"""Locks on files, which die with the process that holds them."""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
from collections.abc import Iterator
from pathlib import Path

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
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            handle.seek(0)
            raise ConfigError(f"{folder}: is held by {handle.read().strip() or 'another process'}; {mend}") from None
        handle.truncate(0)
        handle.write(f"process {os.getpid()} on {socket.gethostname()}")
        handle.flush()
        yield


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
