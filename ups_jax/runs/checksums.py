"""Sizes and checksums of a checkpoint's files, in the file checksums.json, from which damage is detected."""

from __future__ import annotations

import hashlib
import json
import zlib
from pathlib import Path
from typing import Any

from ups_jax.core.files import read_json, write_atomically

_CHECKSUM_FILE = "checksums.json"
# Files that the commit of orbax writes, after the other files are complete and their checksums are written.
_COMMIT_FILES = ("_CHECKPOINT_METADATA", "commit_success.txt")
_CHUNK = 1 << 24


def write_checksums(directory: Path) -> None:
    """Write the checksums of a checkpoint whose files are complete but not committed.

    The commit adds files, whose checksums `complete_checksums` adds. A checkpoint that is committed already is ignored.

    Args:
        directory: Temporary folder of the checkpoint.
    """
    if not directory.is_dir():
        return
    measured = {
        name: size_and_crc for name, size_and_crc in _measure_files(directory).items() if name not in _COMMIT_FILES
    }
    _write_checksum_file(directory, measured)


def complete_checksums(directory: Path) -> None:
    """Write the missing checksums of a committed checkpoint; existing ones stay unchanged."""
    if not has_checksums(directory):
        _write_checksum_file(directory, _measure_files(directory))
        return
    recorded = _read_checksums(directory)
    if isinstance(recorded, dict):
        missing = [name for name in _COMMIT_FILES if name not in recorded and (directory / name).is_file()]
        if missing:
            _write_checksum_file(directory, recorded | {name: _size_and_crc(directory / name) for name in missing})


def has_checksums(directory: Path) -> bool:
    """Return whether a checkpoint has checksums."""
    return (directory / _CHECKSUM_FILE).exists()


def find_damage(directory: Path) -> str | None:
    """Return a description of what is wrong with a checkpoint, None if it is intact.

    A checkpoint without checksums, from an earlier version of ups_jax, counts as intact.

    Args:
        directory: Folder of the checkpoint.
    """
    if not has_checksums(directory):
        return None
    recorded = _read_checksums(directory)
    if recorded is None:
        return f"{_CHECKSUM_FILE} is not valid JSON"
    if not isinstance(recorded, dict):
        return f"{_CHECKSUM_FILE} is not a JSON object"
    measured = _measure_files(directory)
    for name in sorted(recorded.keys() | measured.keys()):
        if name not in measured:
            return f"{name} is missing"
        # A process that is killed right after the commit does not add the checksums of the commit's files.
        unrecorded = name in _COMMIT_FILES and name not in recorded
        if not unrecorded and recorded.get(name) != measured[name]:
            return f"{name} differs from its checksum"
    return None


def is_listed(directory: Path, name: str) -> bool:
    """Return whether the checksums of a checkpoint include a file, which may be missing."""
    recorded = _read_checksums(directory)
    return isinstance(recorded, dict) and name in recorded


def matches_checksum(directory: Path, name: str) -> bool:
    """Return whether a file of a checkpoint matches its checksum; without checksums this is assumed."""
    if not has_checksums(directory):
        return True
    recorded, file = _read_checksums(directory), directory / name
    return isinstance(recorded, dict) and file.is_file() and recorded.get(name) == _size_and_crc(file)


def is_committed(directory: Path) -> bool:
    """Return whether the commit metadata of a checkpoint is readable or absent; orbax refuses the folder otherwise."""
    try:
        return isinstance(read_json(directory / _COMMIT_FILES[0]), dict)
    except FileNotFoundError:
        return True
    except (OSError, ValueError):
        return False


def content_digest(directory: Path) -> str:
    """Return a digest of the names, sizes and checksums of a checkpoint's files, 12 hexadecimal digits."""
    return hashlib.sha256(json.dumps(_measure_files(directory), sort_keys=True).encode()).hexdigest()[:12]


def _read_checksums(directory: Path) -> Any:
    """Return the recorded checksums, None if the file is not JSON."""
    try:
        return read_json(directory / _CHECKSUM_FILE)
    except (OSError, ValueError):
        return None


def _write_checksum_file(directory: Path, measured: dict[str, Any]) -> None:
    write_atomically(directory / _CHECKSUM_FILE, json.dumps(measured, indent=1))


def _measure_files(directory: Path) -> dict[str, list[int]]:
    """Return size and CRC-32 of every file, except the checksums and their temporary files."""
    excluded = (_CHECKSUM_FILE, f".{_CHECKSUM_FILE}.")
    files = sorted(path for path in directory.rglob("*") if path.is_file() and not path.name.startswith(excluded))
    return {str(path.relative_to(directory)): _size_and_crc(path) for path in files}


def _size_and_crc(path: Path) -> list[int]:
    size = crc = 0
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            size, crc = size + len(chunk), zlib.crc32(chunk, crc)
    return [size, crc]
