"""Damage to the files of a run, as disks, copies and people make it."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

from ups_jax.runs.checksums import complete_checksums


def newest(run: Path, stage: str) -> Path:
    """The folder of the newest checkpoint."""
    return max(_steps(run, stage), key=lambda path: int(path.name))


def newest_step(run: Path, stage: str) -> int:
    """The newest step that is saved, 0 where none is."""
    return max((int(path.name) for path in _steps(run, stage)), default=0)


def largest(folder: Path) -> Path:
    """The file that holds most of a checkpoint."""
    return max((path for path in folder.rglob("*") if path.is_file()), key=lambda path: (path.stat().st_size, path))


def room(folder: Path) -> int:
    """Bytes that the files of a folder take of their file system."""
    return sum(path.stat().st_blocks * 512 for path in folder.rglob("*") if path.is_file())


def truncate(path: Path) -> None:
    """The second half is gone."""
    os.truncate(path, path.stat().st_size // 2)


def flip(path: Path, bit: int | None = None) -> None:
    """One bit is another, by default the one in the middle."""
    content = bytearray(path.read_bytes())
    place = len(content) * 4 if bit is None else bit
    content[place // 8] ^= 1 << place % 8
    path.write_bytes(content)


def validated(folder: Path, value: float) -> None:
    """A checkpoint that is sound and was validated with another metric."""
    (folder / "metrics" / "metrics").write_text(json.dumps({"validation": value}))
    (folder / "checksums.json").unlink()
    complete_checksums(folder)


def tear(path: Path) -> None:
    """The last line is written to its half only."""
    with path.open("rb+") as file:
        lines = file.read().splitlines(keepends=True)
        file.truncate(sum(map(len, lines[:-1])) + len(lines[-1]) // 2)


def in_the_future(run: Path, seconds: float = 86_400.0) -> None:
    """All files are of tomorrow, as after a clock that was ahead."""
    moment = time.time() + seconds
    for path in [run, *run.rglob("*")]:
        os.utime(path, (moment, moment))


def _steps(run: Path, stage: str) -> list[Path]:
    return [path for path in (run / "checkpoints" / stage).glob("*") if path.name.isdecimal()]
