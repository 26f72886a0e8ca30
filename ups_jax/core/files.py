"""Atomic writing of files, reading of JSON, checks of file names, and versions of packages."""

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
# Most bytes of one part of a path on common file systems.
_LONGEST_NAME = 255
# Packages whose versions can change the numbers of a run. Run records and the pipeline's reuse keys contain them.
RECORDED_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy", "exponax")


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write the file `path`, which never contains incomplete content; the parent directory is created if needed.

    Raises:
        StorageError: The file cannot be written.
    """
    with atomic_file(path) as temporary:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)


def read_json(path: Path) -> Any:
    """Return the content of a JSON file.

    Raises:
        OSError: The file cannot be read.
        ValueError: The file is not JSON or is nested too deeply.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


@contextlib.contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yield an empty temporary file that replaces `path` when the block ends without an error.

    An error in the block leaves `path` unchanged. The parent directory is created if needed. Temporary files that
    killed processes have left for `path` are deleted.

    Raises:
        StorageError: An `OSError` occurred in the block or while the file was moved.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _delete_abandoned_temporaries(path)
        temporary, lock = _create_temporary(path)
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


def unused_path(path: Path) -> Path:
    """Return the first of `path`, `path-2`, `path-3` and so on that does not exist."""
    candidates = (path if count == 1 else path.with_name(f"{path.name}-{count}") for count in itertools.count(1))
    return next(candidate for candidate in candidates if not candidate.exists())


def path_inside(file: Path, entry: str, name: object, error_class: type[UserError]) -> Path:
    """Return the path of the file `name`, which `file` refers to and which must be in the folder of `file` or below.

    The name is checked before links are followed: it may come from a stranger's file, whereas links were made on this
    disk, for instance to a data folder or to the cache of a download.

    Args:
        entry: Key or attribute of `file` that contains the name, for the message.
        error_class: Class of the error that is raised if the name leads out of the folder or is too long.
    """
    text = os.path.normpath(str(name))
    if os.path.isabs(text) or text.split(os.sep)[0] == os.pardir or "\0" in text:
        raise error_class(
            f"{file}: `{entry}` names {str(name)!r:.200}, which is not in the folder of this file; move the named "
            "file there, or put a link there"
        )
    if any(len(os.fsencode(part)) > _LONGEST_NAME for part in text.split(os.sep)):
        raise error_class(f"{file}: `{entry}` names {text!r:.60}.., which is too long for a file name; shorten it")
    return file.parent / text


def cache_folder(name: str) -> Path:
    """Return the folder `name` of this package in the user's cache directory, which may not exist yet."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ups_jax" / name


def folder_size(path: Path) -> int:
    """Return the total size in bytes of all files below a folder, except files that are deleted meanwhile."""
    total = 0
    for item in path.rglob("*"):
        with contextlib.suppress(OSError):
            total += item.stat().st_size if item.is_file() else 0
    return total


def crc32(path: Path) -> int:
    """Return the CRC-32 checksum of a file."""
    value = 0
    with path.open("rb") as handle:
        while block := handle.read(2**22):
            value = zlib.crc32(block, value)
    return value


def storage_error(path: Path, error: OSError) -> StorageError:
    """Return a `StorageError` for a file that cannot be written, with the reason and a remedy."""
    full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    hint = "free space, then start the same command again" if full else "give a directory that can be written"
    return StorageError(f"{path}: cannot be written ({error.strerror or error}); {hint}")


def version(package: str) -> str:
    """Return the version of an installed package, or "not installed"."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def _create_temporary(path: Path) -> tuple[Path, int]:
    """Return a new file beside `path` and its descriptor, whose lock shows that the file is in use."""
    while True:
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=_SUFFIX)
        # A file system without locks refuses the exclusive lock of `_delete_abandoned_temporaries` as well.
        with contextlib.suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_SH)
        if os.fstat(handle).st_nlink:
            return Path(name), handle
        # Another process deleted the file before it was locked.
        os.close(handle)


def _delete_abandoned_temporaries(path: Path) -> None:
    """Delete the temporary files for `path` that no process has locked."""
    for temporary in path.parent.glob(f".{glob.escape(path.name)}.????????{_SUFFIX}"):
        with contextlib.suppress(OSError), temporary.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            temporary.unlink()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
