"""Advisory locks on files. A lock ends with the process that has it, which the lock file names."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from ups_jax.core.errors import ConfigError
from ups_jax.core.files import storage_error

_NAME = ".lock"
_POLL_SECONDS = 0.2


@contextlib.contextmanager
def lock_directory(directory: Path, hint: str, patience: float = 0.0) -> Iterator[int]:
    """Lock a directory, which is created if needed, and yield the lock's file descriptor.

    A child process that inherits the descriptor keeps the lock after this process has ended.

    Args:
        directory: The directory, locked by its file `.lock`.
        hint: How to resolve a conflict; the end of the error's message.
        patience: Seconds to wait if the process that the lock file names has ended but a child still has the lock.

    Raises:
        ConfigError: Another process has the lock; the message names it.
        StorageError: The directory cannot be written.
    """
    with _locked(directory / _NAME, directory, hint, patience) as handle:
        yield handle.fileno()


@contextlib.contextmanager
def lock_file(path: Path, hint: str) -> Iterator[None]:
    """Lock the path of a file while it is written, by a lock file beside it that is deleted at the end.

    Args:
        hint: How to resolve a conflict; the end of the error's message.

    Raises:
        ConfigError: Another process has the lock; the message names it.
        StorageError: The directory cannot be written.
    """
    lock = path.with_name(f".{path.name}.lock")
    while True:
        with _locked(lock, path, hint) as handle:
            # The previous process may have deleted the file after it was opened here and before it was locked.
            if os.fstat(handle.fileno()).st_nlink:
                try:
                    yield
                finally:
                    lock.unlink(missing_ok=True)
                return


@contextlib.contextmanager
def wait_for_lock(path: Path) -> Iterator[None]:
    """Wait until no other process has locked the lock file `path`, which is created if needed, and then lock it."""
    with _open(path, path) as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def is_unlocked(directory: Path) -> bool:
    """Return whether a directory is unlocked, or is locked only by a child process whose parent has ended."""
    try:
        with (directory / _NAME).open("r", encoding="utf-8") as handle:
            return _try_lock(handle) or not _is_alive(handle.read().strip())
    except FileNotFoundError:
        return True


@contextlib.contextmanager
def _locked(lock: Path, subject: Path, hint: str, patience: float = 0.0) -> Iterator[TextIO]:
    """Lock the file `lock`, write this process and host into it, and yield it open. Messages name `subject`."""
    with _open(lock, subject) as handle:
        deadline = time.monotonic() + patience
        while not _try_lock(handle):
            handle.seek(0)
            holder = handle.read().strip()
            if time.monotonic() >= deadline or _is_alive(holder):
                raise ConfigError(f"{subject}: is locked by {holder or 'another process'}; {hint}")
            time.sleep(_POLL_SECONDS)
        handle.truncate(0)
        handle.write(f"process {os.getpid()} on {socket.gethostname()}")
        handle.flush()
        yield handle


def _open(lock: Path, subject: Path) -> TextIO:
    try:
        lock.parent.mkdir(parents=True, exist_ok=True)
        return lock.open("a+", encoding="utf-8")
    except OSError as error:
        raise storage_error(subject, error) from None


def _try_lock(handle: TextIO) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _is_alive(holder: str) -> bool:
    """Return whether the process that the text of a lock file names may be running; True for another host's."""
    named = re.fullmatch(r"process (\d+) on (.*)", holder)
    if named is None or named[2] != socket.gethostname():
        return True
    try:
        os.kill(int(named[1]), 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True
