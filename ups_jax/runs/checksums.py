"""The file checksums.json of a checkpoint, with size and checksum of each of its files, to detect damage."""

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
    """Write the checksums of a checkpoint before its commit; do nothing if it is already committed.

    The commit writes more files; `complete_checksums` adds their checksums.

    Args:
        directory: Temporary folder of the checkpoint, which the commit renames.
    """
    if not directory.is_dir():
        return
    measured = {
        name: size_and_crc for name, size_and_crc in _sizes_and_crcs(directory).items() if name not in _COMMIT_FILES
    }
    _write_checksum_file(directory, measured)


def complete_checksums(directory: Path) -> None:
    """Add the missing checksums of a committed checkpoint, and leave the existing ones unchanged."""
    if not has_checksums(directory):
        _write_checksum_file(directory, _sizes_and_crcs(directory))
        return
    recorded = _read_checksums(directory)
    if isinstance(recorded, dict):
        missing = [name for name in _COMMIT_FILES if name not in recorded and (directory / name).is_file()]
        if missing:
            _write_checksum_file(directory, recorded | {name: _size_and_crc(directory / name) for name in missing})


def has_checksums(directory: Path) -> bool:
    """Return whether the checkpoint in a folder has a file of checksums."""
    return (directory / _CHECKSUM_FILE).exists()


def find_damage(directory: Path) -> str | None:
    """Return a description of the first damage in the checkpoint in a folder, None if it is intact.

    A checkpoint without checksums, from an earlier version of ups_jax, counts as intact.
    """
    if not has_checksums(directory):
        return None
    recorded = _read_checksums(directory)
    if recorded is None:
        return f"{_CHECKSUM_FILE} is not valid JSON"
    if not isinstance(recorded, dict):
        return f"{_CHECKSUM_FILE} is not a JSON object"
    measured = _sizes_and_crcs(directory)
    for name in sorted(recorded.keys() | measured.keys()):
        if name not in measured:
            return f"{name} is missing"
        # A process that is killed right after the commit does not add the checksums of the commit's files.
        unrecorded = name in _COMMIT_FILES and name not in recorded
        if not unrecorded and recorded.get(name) != measured[name]:
            return f"{name} differs from its checksum"
    return None


def has_recorded_checksum(directory: Path, name: str) -> bool:
    """Return whether the checksums of a checkpoint include the file `name`, even if the file itself is missing."""
    recorded = _read_checksums(directory)
    return isinstance(recorded, dict) and name in recorded


def matches_checksum(directory: Path, name: str) -> bool:
    """Return whether a checkpoint's file `name` matches its checksum; True if the checkpoint has no checksums."""
    if not has_checksums(directory):
        return True
    recorded, file = _read_checksums(directory), directory / name
    return isinstance(recorded, dict) and file.is_file() and recorded.get(name) == _size_and_crc(file)


def has_unreadable_commit_metadata(directory: Path) -> bool:
    """Return whether a checkpoint has commit metadata that cannot be read, with which orbax cannot open it."""
    try:
        return not isinstance(read_json(directory / _COMMIT_FILES[0]), dict)
    except FileNotFoundError:
        return False
    except (OSError, ValueError):
        return True


def content_digest(directory: Path) -> str:
    """Return a digest of the names and contents of a checkpoint's files, 12 hexadecimal digits."""
    return hashlib.sha256(json.dumps(_sizes_and_crcs(directory), sort_keys=True).encode()).hexdigest()[:12]


def _read_checksums(directory: Path) -> Any:
    """Return the content of the file of checksums, None if it is missing or not JSON."""
    try:
        return read_json(directory / _CHECKSUM_FILE)
    except (OSError, ValueError):
        return None


def _write_checksum_file(directory: Path, sizes_and_crcs: dict[str, Any]) -> None:
    write_atomically(directory / _CHECKSUM_FILE, json.dumps(sizes_and_crcs, indent=1))


def _sizes_and_crcs(directory: Path) -> dict[str, list[int]]:
    """Return size and CRC-32 of every file of a checkpoint by name, except for the file of checksums."""
    excluded = (_CHECKSUM_FILE, f".{_CHECKSUM_FILE}.")
    files = sorted(path for path in directory.rglob("*") if path.is_file() and not path.name.startswith(excluded))
    return {str(path.relative_to(directory)): _size_and_crc(path) for path in files}


def _size_and_crc(path: Path) -> list[int]:
    size = crc = 0
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            size, crc = size + len(chunk), zlib.crc32(chunk, crc)
    return [size, crc]
