"""Writing files whole or not at all, reading JSON, names of files within a folder, and versions of packages."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import glob
import itertools
import json
import os
import tempfile
import zlib
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

from ups_jax.core.errors import StorageError, UserError

JsonObject = dict[str, Any]
_SUFFIX = ".tmp"
# Bytes of a part of a path, on all file systems that matter.
_LONGEST_NAME = 255
# The packages whose versions may change the numbers of a run; run records and the pipeline's reuse keys hold them.
RECORDED_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy", "exponax")


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write under the final name only what is whole and on the disk; makes the directory. Raises `StorageError`."""
    with whole_file(path) as temporary:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)


def read_json(path: Path) -> Any:
    """What a JSON file holds. Raises OSError, or ValueError where it is no JSON, or nested deeper than can be read."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """An empty file beside `path` that takes its place at the end, once it is on the disk; makes the directory.

    Whatever ends the block early leaves `path` as it was. An `OSError` in it is one of writing: `StorageError`. What
    processes that were killed left of theirs for `path` is taken away; a live one's is not.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _sweep(path)
        temporary, lock = _own_temporary(path)
        try:
            yield temporary
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
            os.chmod(temporary, 0o666 & ~_umask())
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        finally:
            os.close(lock)
    except OSError as error:
        raise storage_error(path, error) from None


def free_name(path: Path) -> Path:
    """The path, or the first of those with a number behind that nothing has."""
    each = (path if count == 1 else path.with_name(f"{path.name}-{count}") for count in itertools.count(1))
    return next(item for item in each if not item.exists())


def inside(file: Path, entry: str, name: object, kind: type[UserError]) -> Path:
    """The path that `entry` of `file` names, in the file's own folder or below. Raises `kind` for one that leads out.

    It is the name that is compared, before links are followed: a name comes with the file, from whoever wrote it, a
    link lies on the user's own disk, as a data folder that is a link does, or every file of a download's cache.
    """
    text = os.path.normpath(str(name))
    if os.path.isabs(text) or text.split(os.sep)[0] == os.pardir or "\0" in text:
        raise kind(
            f"{file}: `{entry}` names {str(name)!r:.200}, which is not in the folder of this file; move it there, or "
            "put a link to it there"
        )
    if any(len(os.fsencode(part)) > _LONGEST_NAME for part in text.split(os.sep)):
        raise kind(f"{file}: `{entry}` names {text!r:.60}.., which is too long for the name of a file; shorten it")
    return file.parent / text


def folder_size(path: Path) -> int:
    """Bytes of all files below a folder; one that goes away meanwhile counts nothing."""
    total = 0
    for item in path.rglob("*"):
        with contextlib.suppress(OSError):
            total += item.stat().st_size if item.is_file() else 0
    return total


def crc32(path: Path) -> int:
    """CRC-32 of a file's bytes."""
    value = 0
    with path.open("rb") as handle:
        while block := handle.read(2**22):
            value = zlib.crc32(block, value)
    return value


def storage_error(path: Path, error: OSError) -> StorageError:
    """What could not be written, why, and the mend that fits the reason."""
    full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    mend = "free space, then start the same command again" if full else "give a directory that can be written"
    return StorageError(f"{path}: cannot be written ({error.strerror or error}); {mend}")


def version(package: str) -> str:
    """That of an installed package. `ups_jax` runs from its folder too, and is then "not installed"."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def _own_temporary(path: Path) -> tuple[Path, int]:
    """A new file beside `path`, and the handle whose shared lock says that its process lives: readers may share it."""
    while True:
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=_SUFFIX)
        # Where a file system knows no locks, nobody takes a file for left behind.
        with contextlib.suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_SH)
        if os.fstat(handle).st_nlink:
            return Path(name), handle
        # Taken away as left behind, in the moment before it was locked.
        os.close(handle)


def _sweep(path: Path) -> None:
    """Take away the temporary files of `path` that no process holds."""
    for left in path.parent.glob(f".{glob.escape(path.name)}.????????{_SUFFIX}"):
        with contextlib.suppress(OSError), left.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            left.unlink()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
