"""Sealing a checkpoint with the sizes and checksums of its files, so that damage is seen before it is read."""

from __future__ import annotations

import hashlib
import json
import zlib
from pathlib import Path
from typing import Any

from ups_jax.core.files import read_json, write_atomically

_SEAL = "checksums.json"
# What orbax's commit itself writes, after the files of the state are whole and sealed.
_OF_THE_COMMIT = ("_CHECKPOINT_METADATA", "commit_success.txt")
_CHUNK = 1 << 24


def seal_before_commit(directory: Path) -> None:
    """Write the seal of a checkpoint whose files are whole, ahead of its commit, which adds the last of them; one that
    is committed already is sealed by `seal`."""
    if not directory.is_dir():
        return
    found = {name: own for name, own in _measure(directory).items() if name not in _OF_THE_COMMIT}
    _write(directory, found)


def seal(directory: Path) -> None:
    """Complete the seal of a checkpoint that is committed; what it says by now, it keeps saying."""
    if not is_sealed(directory):
        _write(directory, _measure(directory))
        return
    sealed = _read(directory)
    if isinstance(sealed, dict):
        late = [name for name in _OF_THE_COMMIT if name not in sealed and (directory / name).is_file()]
        if late:
            _write(directory, sealed | {name: _size_and_crc(directory / name) for name in late})


def is_sealed(directory: Path) -> bool:
    """Whether a checkpoint has a seal."""
    return (directory / _SEAL).exists()


def find_damage(directory: Path) -> str | None:
    """What is wrong with a sealed checkpoint, None where nothing is or where it has no seal (of an earlier version)."""
    if not is_sealed(directory):
        return None
    sealed = _read(directory)
    if sealed is None:
        return f"{_SEAL} is not JSON"
    if not isinstance(sealed, dict):
        return f"{_SEAL} is not what was written"
    found = _measure(directory)
    for name in sorted(sealed.keys() | found.keys()):
        if name not in found:
            return f"{name} is missing"
        # A process that was killed at once after the commit did not come to add these.
        unsealed = name in _OF_THE_COMMIT and name not in sealed
        if not unsealed and sealed.get(name) != found[name]:
            return f"{name} is not what was written"
    return None


def is_listed(directory: Path, name: str) -> bool:
    """Whether a file belongs to a sealed checkpoint, there or not."""
    sealed = _read(directory)
    return isinstance(sealed, dict) and name in sealed


def matches_checksum(directory: Path, name: str) -> bool:
    """Whether one file of a checkpoint is what the seal says; of one without a seal it is taken for that."""
    if not is_sealed(directory):
        return True
    sealed, file = _read(directory), directory / name
    return isinstance(sealed, dict) and file.is_file() and sealed.get(name) == _size_and_crc(file)


def is_committed(directory: Path) -> bool:
    """Whether what the commit wrote of the checkpoint can be read; orbax opens no folder that holds another."""
    try:
        return isinstance(read_json(directory / _OF_THE_COMMIT[0]), dict)
    except FileNotFoundError:
        return True
    except (OSError, ValueError):
        return False


def content_digest(directory: Path) -> str:
    """Twelve hex digits over names, sizes and checksums of a checkpoint's files."""
    return hashlib.sha256(json.dumps(_measure(directory), sort_keys=True).encode()).hexdigest()[:12]


def _read(directory: Path) -> Any:
    """What a seal says, None where it is not JSON."""
    try:
        return read_json(directory / _SEAL)
    except (OSError, ValueError):
        return None


def _write(directory: Path, measured: dict[str, Any]) -> None:
    write_atomically(directory / _SEAL, json.dumps(measured, indent=1))


def _measure(directory: Path) -> dict[str, list[int]]:
    """Size and CRC-32 of every file but the seal, and what a killed process left of one."""
    own = (_SEAL, f".{_SEAL}.")
    files = sorted(path for path in directory.rglob("*") if path.is_file() and not path.name.startswith(own))
    return {str(path.relative_to(directory)): _size_and_crc(path) for path in files}


def _size_and_crc(path: Path) -> list[int]:
    size = crc = 0
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            size, crc = size + len(chunk), zlib.crc32(chunk, crc)
    return [size, crc]
