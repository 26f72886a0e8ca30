"""Damage to the files of a run, as disks, copies and people make it."""

from __future__ import annotations

import os
import time
from pathlib import Path


def newest(run: Path, stage: str) -> Path:
    """The folder of the newest checkpoint."""
    steps = [path for path in (run / "checkpoints" / stage).iterdir() if path.name.isdecimal()]
    return max(steps, key=lambda path: int(path.name))


def largest(folder: Path) -> Path:
    """The file that holds most of a checkpoint."""
    return max((path for path in folder.rglob("*") if path.is_file()), key=lambda path: (path.stat().st_size, path))


def truncate(path: Path) -> None:
    """The second half is gone."""
    os.truncate(path, path.stat().st_size // 2)


def flip(path: Path, bit: int | None = None) -> None:
    """One bit is another, by default the one in the middle."""
    content = bytearray(path.read_bytes())
    place = len(content) * 4 if bit is None else bit
    content[place // 8] ^= 1 << place % 8
    path.write_bytes(content)


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
