"""The defined answer to each fault: the exit code, what is said, and how many steps are done again after it.

A life is a run that meets several faults, one a start, and is then left in peace: each fault has its answer, and the
run ends in the bits of one that met none.
"""

from __future__ import annotations

import errno
import os
import shutil
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import damage
import places
from runs import EVERY

KILLED, TERMINATED = -signal.SIGKILL, 75
_STAGE = "operator"
_FILE_LIMIT = 16_000


def _nothing(_: Path) -> None:
    return None


@dataclass(frozen=True, kw_only=True)
class Fault:
    """A fault and its answer.

    `damage` is done to the run directory ahead of the start, `inject` are the faults inside of it (`sitecustomize`),
    `code` is its exit code, `says` a pattern of its output, `again` how many steps it costs at most: those that the
    start goes back because of the damage, and those done again after its end.
    """

    name: str
    code: int
    says: str = ""
    again: int = EVERY
    # What orbax's thread prints ahead of the answer, a traceback, is not ours to keep quiet.
    noisy: bool = False
    damage: Callable[[Path], None] = _nothing
    inject: Callable[[Path], list[dict[str, Any]]] = lambda _: []
    overrides: tuple[str, ...] = ()


def at(where: str, do: str, call: int = 1, **more: Any) -> Callable[[Path], list[dict[str, Any]]]:
    """One fault inside of the script."""
    return lambda _: [{"at": where, "do": do, "call": call, **more}]


def kill(where: str, call: int = 1) -> Callable[[Path], list[dict[str, Any]]]:
    return at(where, "signal", call, signal=signal.SIGKILL)


def _signalled(where: str, number: int, call: int = 1, **more: Any) -> Callable[[Path], list[dict[str, Any]]]:
    return at(where, "signal", call, signal=number, **more)


def _at_newest(change: Callable[[Path], None], name: str | None = None) -> Callable[[Path], None]:
    def damaged(run: Path) -> None:
        folder = damage.newest(run, _STAGE)
        change(damage.largest(folder) if name is None else folder / name)

    return damaged


_STOPS = r"stopped.*step \d+"
_FULL, _READ_ONLY = os.strerror(errno.ENOSPC), os.strerror(errno.EROFS)
_DAMAGED = r"damaged.*checkpoints/operator/\d+"
# A start that is to show what it does with damaged files is killed a few steps on.
_ON = kill(places.RECORD, 7)

KILLS = (
    Fault(name="kill -9 before the record of the run", code=KILLED, inject=kill(places.FLUSH), again=0),
    Fault(name="kill -9 before the first save", code=KILLED, inject=kill(places.VALIDATION), again=EVERY),
    Fault(
        name="kill -9 in the middle of a save",
        code=KILLED,
        inject=at(places.SAVE, "signal_later", 2, signal=signal.SIGKILL, seconds=0.02),
        again=2 * EVERY,
    ),
    Fault(
        name="kill -9 when a save is written, before its checksums",
        code=KILLED,
        inject=kill(places.CHECKSUMS),
        again=2 * EVERY,
    ),
    Fault(name="kill -9 in a validation", code=KILLED, inject=kill(places.VALIDATION, 2), again=EVERY + 1),
    Fault(name="kill -9 between two steps", code=KILLED, inject=kill(places.RECORD, 10), again=2 * EVERY),
    Fault(
        name="the clock jumps back by a day, then kill -9",
        code=KILLED,
        inject=lambda run: [*at(places.RECORD, "jump", 2, seconds=86_400)(run), *kill(places.RECORD, 9)(run)],
        again=2 * EVERY,
    ),
)
STOPS = (
    Fault(
        name="SIGTERM between two steps",
        code=TERMINATED,
        says=_STOPS,
        inject=_signalled(places.RECORD, signal.SIGTERM, 6),
        again=0,
    ),
    Fault(name="Ctrl-C", code=TERMINATED, says=_STOPS, inject=_signalled(places.RECORD, signal.SIGINT, 3), again=0),
    Fault(
        name="SIGTERM in a validation",
        code=TERMINATED,
        says=_STOPS,
        inject=_signalled(places.VALIDATION, signal.SIGTERM),
        again=0,
    ),
    Fault(
        name="SIGTERM while it compiles",
        code=TERMINATED,
        says=_STOPS,
        inject=_signalled(places.COMPILATION, signal.SIGTERM),
        again=0,
    ),
    Fault(
        name="SIGTERM twice, the second while the stop is saved",
        code=TERMINATED,
        says=_STOPS,
        inject=lambda run: [
            *_signalled(places.RECORD, signal.SIGTERM, 2)(run),
            *at(places.WAIT_FOR_SAVE, "signal_later", 3, signal=signal.SIGTERM, seconds=0.01)(run),
        ],
        again=0,
    ),
    Fault(
        name="hang-up of the terminal",
        code=TERMINATED,
        says=_STOPS,
        inject=_signalled(places.RECORD, signal.SIGHUP, 3),
        again=0,
    ),
    Fault(
        name="SIGTERM after the last step",
        code=TERMINATED,
        says="stopped",
        inject=_signalled(places.STAGE_END, signal.SIGTERM),
        again=0,
    ),
)
STORAGE = (
    Fault(
        name="disk full in a save (limit of a file's size)",
        code=7,
        says=f"checkpoints/operator.*{os.strerror(errno.EFBIG)}",
        inject=at(places.SAVE, "limit_files", bytes=_FILE_LIMIT),
        noisy=True,
        # It is heard of at the next one.
        again=2 * EVERY,
    ),
    Fault(
        name="disk full in a record",
        code=7,
        says=rf"metrics\.jsonl.*{_FULL}",
        inject=at(places.RECORD, "full_file", 7),
        again=2 * EVERY,
    ),
    Fault(
        name="disk full in run.json",
        code=7,
        says=rf"run\.json.*{_FULL}",
        inject=at(places.FLUSH, "os_error", 2, errno="ENOSPC"),
        again=0,
    ),
    Fault(
        name="file system turned read-only",
        code=7,
        says=_READ_ONLY,
        inject=lambda run: [{"do": "read_only", "folder": str(run)}],
        again=0,
    ),
)
FILES = (
    Fault(name="first steps", code=KILLED, inject=kill(places.RECORD, 14), again=2 * EVERY),
    Fault(
        name="newest checkpoint truncated",
        code=KILLED,
        says=_DAMAGED,
        damage=_at_newest(damage.truncate),
        inject=_ON,
        again=3 * EVERY,
    ),
    Fault(
        name="a bit of the newest checkpoint flipped",
        code=KILLED,
        says=_DAMAGED,
        damage=_at_newest(damage.flip),
        inject=_ON,
        again=3 * EVERY,
    ),
    Fault(
        name="a bit of its metadata flipped",
        code=KILLED,
        says=_DAMAGED,
        damage=_at_newest(damage.flip, "meta/metadata"),
        inject=_ON,
        again=3 * EVERY,
    ),
    Fault(
        name="a bit of its validation metric flipped",
        code=KILLED,
        says=_DAMAGED,
        damage=_at_newest(damage.flip, "metrics/metrics"),
        inject=_ON,
        again=3 * EVERY,
    ),
    Fault(
        name="a file of the newest checkpoint missing",
        code=KILLED,
        says=_DAMAGED,
        damage=_at_newest(Path.unlink),
        inject=_ON,
        again=3 * EVERY,
    ),
    Fault(
        name="half a line at the end of the curve",
        code=KILLED,
        damage=lambda run: damage.tear(run / "metrics.jsonl"),
        inject=_ON,
        again=2 * EVERY,
    ),
    Fault(name="all files are of tomorrow", code=KILLED, damage=damage.in_the_future, inject=_ON, again=2 * EVERY),
)


def filled(share: float | None) -> Callable[[Path], None]:
    """Leave that share of what a save takes of a run's file system, which is its own; all of it for None."""

    def fill(run: Path) -> None:
        filler = run.parent / "filler"
        filler.unlink(missing_ok=True)
        if share is None:
            return
        # What the next start would sweep away makes room that is not meant here.
        for half in (run / "checkpoints").glob("*/*.orbax-checkpoint-tmp"):
            shutil.rmtree(half)
        left = os.statvfs(run.parent)
        room = int(share * damage.room(damage.newest(run, _STAGE)))
        filler.write_bytes(bytes(max(0, left.f_bavail * left.f_frsize - room)))

    return fill


# On a small file system: Python, orbax and tensorstore come to the end of it, each in its own way.
FULL = (
    Fault(name="first steps, room enough", code=KILLED, inject=kill(places.RECORD, 10), again=2 * EVERY),
    *(
        Fault(
            name=f"disk full, {share:.0%} of a save's room left",
            code=7,
            says=_FULL,
            damage=filled(share),
            again=3 * EVERY,
            noisy=True,
        )
        for share in (0.0, 0.1, 0.25, 0.4, 0.6, 0.8, 0.95)
    ),
    Fault(name="room again", code=KILLED, damage=filled(None), inject=_ON, again=2 * EVERY),
)
LIVES = {"kills": KILLS, "stops": STOPS, "storage": STORAGE, "files": FILES}
