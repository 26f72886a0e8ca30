"""Sealing a finished checkpoint with the sizes and checksums of its files, so that damage is seen before it is read."""

from __future__ import annotations

import hashlib
import json
import zlib
from pathlib import Path

from ups_jax.files import write_atomically

_SEAL = "checksums.json"


def seal(directory: Path) -> None:
    """Write the seal of a checkpoint that is complete; one that has a seal keeps it."""
    if not is_sealed(directory):
        write_atomically(directory / _SEAL, json.dumps(_measure(directory), indent=1))


def is_sealed(directory: Path) -> bool:
    """Whether a checkpoint has a seal."""
    return (directory / _SEAL).exists()


def fault(directory: Path) -> str | None:
    """What is wrong with a sealed checkpoint, None where nothing is or where a killed run left no seal."""
    try:
        sealed = json.loads((directory / _SEAL).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError:
        return f"{_SEAL} is not JSON"
    if not isinstance(sealed, dict):
        return f"{_SEAL} is not what was written"
    found = _measure(directory)
    for name in sorted(sealed.keys() | found.keys()):
        if name not in found:
            return f"{name} is missing"
        if name not in sealed or sealed[name] != found[name]:
            return f"{name} is not what was written"
    return None


def content_digest(directory: Path) -> str:
    """Twelve hex digits over names, sizes and checksums of a checkpoint's files."""
    return hashlib.sha256(json.dumps(_measure(directory), sort_keys=True).encode()).hexdigest()[:12]


def _measure(directory: Path) -> dict[str, list[int]]:
    """Size and CRC-32 of every file but the seal."""
    files = sorted(path for path in directory.rglob("*") if path.is_file() and path.name != _SEAL)
    return {str(path.relative_to(directory)): _size_and_crc(path) for path in files}


def _size_and_crc(path: Path) -> list[int]:
    content = path.read_bytes()
    return [len(content), zlib.crc32(content)]
