"""Run a script on a fuzz case in this process, and check that the result is one of the defined answers."""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.util
import io
import os
import re
import resource
import signal
import sys
import traceback
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import places

from fuzz.case import Case

_ROOT = Path(__file__).resolve().parents[3]
# Bounds of one input: seconds of the processor and of the clock, bytes more than at its start, characters of a line.
_CPU_SECONDS, _SECONDS, _MEMORY, _LINE = 15.0, 300.0, 4 << 30, 2000
# A library that does not come back to Python by then is killed, with the process.
_HARD_SECONDS = 30
# What may stay after an error: a lock file, and a folder that was made for it.
_MAY_STAY = re.compile(r"(^|/)\.([^/]*\.)?lock$")


class Hang(BaseException):
    """The input took more than its time."""


class Accepted(BaseException):
    """The script came to the end of what is fuzzed."""


@dataclass(frozen=True, kw_only=True)
class Answer:
    """`raised` is what escaped, by type, message and the project's line that it came from; `changed` are the files
    that were not there before or are others now."""

    code: int | None
    out: str
    err: str
    raised: str | None
    changed: tuple[str, ...]


def answer(case: Case, folder: Path, bases: Mapping[str, Path]) -> Answer:
    """Start the script in the folder, which is empty."""
    case.lay(folder, bases)
    before = _files(folder)
    # As strict as the streams of a process are.
    out = io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True)
    err = io.TextIOWrapper(io.BytesIO(), encoding="utf-8", errors="backslashreplace", write_through=True)
    code, raised = None, None
    with contextlib.chdir(folder), _bounded(), _captured(out, err), _stopped_at(case.stop):
        try:
            arguments = [str(_ROOT / text) if text.startswith("configs/") else text for text in case.arguments]
            code = _script(case.script).main(arguments)
        except Accepted:
            code = 0
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 1
        except BaseException as error:
            raised = _told(error)
    after = _files(folder)
    changed = tuple(sorted(name for name, state in after.items() if before.get(name) != state))
    return Answer(code=code, out=_text(out), err=_text(err), raised=raised, changed=changed)


def fault(case: Case, result: Answer) -> str | None:
    """Return the fault of an answer, or None if the answer is one of the defined ones."""
    if result.raised is not None:
        return result.raised
    if result.code not in case.codes:
        return f"exit code {result.code}, not one of {case.codes}: {result.err[-500:]}"
    lines = [line for line in result.err.split("\n") if line and not line.startswith("warning: ")]
    if "Traceback (most recent call last)" in result.err:
        return f"a traceback: {result.err[-800:]}"
    if result.code == 0:
        left = [name for name in result.changed if name.endswith(".tmp")]
        return f"left {left}" if left else (f"said {lines[:3]} and ended well" if lines else None)
    if lines and lines[0].startswith("usage: "):
        return None
    if not lines or not all(line.startswith("error: ") for line in lines):
        return f"exit code {result.code} without one line for each error: {result.err[-800:]!r}"
    if len(lines) > 2 and case.script not in ("validate.py", "inspect_data.py"):
        return f"{len(lines)} lines: {result.err[-800:]}"
    if max(map(len, lines)) > _LINE:
        return f"a line too long: {len(max(lines, key=len))} characters: {max(lines, key=len)[:300]}"
    left = [name for name in result.changed if not _MAY_STAY.search(name)]
    return f"exit code {result.code} and left {left}: {lines[0][:300]}" if left else None


@functools.cache
def _script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"fuzzed_{Path(name).stem}", _ROOT / "scripts" / name)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _files(folder: Path) -> dict[str, tuple[int, int]]:
    """Size and time of change of every file."""
    files = {}
    for path in folder.rglob("*"):
        if path.is_file():
            state = path.stat()
            files[str(path.relative_to(folder))] = (state.st_size, state.st_mtime_ns)
    return files


def _text(stream: io.TextIOWrapper) -> str:
    buffer = stream.buffer
    assert isinstance(buffer, io.BytesIO)
    return buffer.getvalue().decode()


def _told(error: BaseException) -> str:
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "ups_jax" in frame.filename]
    where = f"{Path(frames[-1].filename).name}:{frames[-1].lineno} {frames[-1].name}" if frames else "nowhere"
    return f"{type(error).__name__} at {where}: {' '.join(str(error).split())[:300]}"


@contextlib.contextmanager
def _bounded() -> Iterator[None]:
    """Within time and memory."""

    def late(number: int, frame: Any) -> None:
        raise Hang(f"more than {_CPU_SECONDS:g} s of the processor or {_SECONDS:g} s")

    numbers = ((signal.SIGPROF, signal.ITIMER_PROF, _CPU_SECONDS), (signal.SIGALRM, signal.ITIMER_REAL, _SECONDS))
    handlers = {number: signal.signal(number, late) for number, _, _ in numbers}
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    cpu_soft, cpu_hard = resource.getrlimit(resource.RLIMIT_CPU)
    used = resource.getrusage(resource.RUSAGE_SELF)
    resource.setrlimit(resource.RLIMIT_CPU, (int(used.ru_utime + used.ru_stime) + _HARD_SECONDS, cpu_hard))
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * os.sysconf("SC_PAGE_SIZE") + _MEMORY, hard))
    try:
        for _, timer, seconds in numbers:
            signal.setitimer(timer, seconds)
        yield
    finally:
        for number, timer, _ in numbers:
            signal.setitimer(timer, 0.0)
            signal.signal(number, handlers[number])
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
        resource.setrlimit(resource.RLIMIT_CPU, (cpu_soft, cpu_hard))


@contextlib.contextmanager
def _captured(out: io.TextIOWrapper, err: io.TextIOWrapper) -> Iterator[None]:
    """Warnings are told on stderr, as outside of tests."""

    def show(message: Any, category: type[Warning], filename: str, line: int, *_: Any) -> None:
        sys.stderr.write(warnings.formatwarning(message, category, filename, line))

    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), warnings.catch_warnings():
        warnings.simplefilter("default")
        warnings.showwarning = show
        yield


@contextlib.contextmanager
def _stopped_at(stop: str | None) -> Iterator[None]:
    """A function that says `Accepted` instead of working."""
    if stop is None:
        yield
        return
    name, function = places.STOPS[stop].split(":")
    module = importlib.import_module(name)

    def accept(*_: Any, **__: Any) -> None:
        raise Accepted

    kept = getattr(module, function)
    setattr(module, function, accept)
    try:
        yield
    finally:
        setattr(module, function, kept)
