"""One step of the pipeline: a command in a process of its own, its output in a log, its cost and its exit code."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ups_jax.core.commands import command_line
from ups_jax.core.errors import Stopped, UserError
from ups_jax.core.files import storage_error

_PACKAGES = Path(__file__).resolve().parents[2]
_POLL_SECONDS = 0.1
_TELL_AGAIN_SECONDS = 10.0
_SET_PARENT_DEATH_SIGNAL = 1


@dataclass(frozen=True, kw_only=True)
class Step:
    """A command of the project with its arguments, and what its environment has beside the pipeline's own. `outputs`
    are files that the step leaves when it has succeeded."""

    name: str
    command: str
    arguments: Sequence[str]
    environment: Mapping[str, str] = field(default_factory=dict)
    outputs: Sequence[Path] = ()

    @property
    def argv(self) -> list[str]:
        return [*command_line(self.command), *map(str, self.arguments)]


@dataclass(frozen=True, kw_only=True)
class StepResult:
    """How a step ended; `peak_memory_mib` is the largest resident size of its processes."""

    exit_code: int
    seconds: float
    peak_memory_mib: float | None = None
    error: str | None = None


# Runs a step: its log, the lock that it inherits, and who gets what it prints.
Runner = Callable[[Step, Path, int, Callable[[str], None]], StepResult]


class StepFailed(UserError):
    """A step ended with an error; the exit code is the step's own."""

    def __init__(self, name: str, ended: StepResult, log: Path) -> None:
        # A process that a signal has ended has no code of its own.
        self.exit_code = ended.exit_code if 0 < ended.exit_code < 128 else 1
        said = ended.error or f"it ended with code {ended.exit_code}"
        super().__init__(f"step {name}: {said} (all of it: {log})")


def run_step(step: Step, log: Path, lock: int, show: Callable[[str], None]) -> StepResult:
    """Run a step to its end. `Stopped` where this process is told to stop, once the step has saved and ended; told a
    second time it does not wait for that.

    The step writes into its log itself, so that it can still save what it has when this process is gone.
    """
    try:
        log.parent.mkdir(parents=True, exist_ok=True)
        output = log.open("ab")
    except OSError as error:
        raise storage_error(log, error) from None
    begin = time.monotonic()
    start = log.stat().st_size
    with output, log.open("rb") as reader:
        reader.seek(start)
        process = subprocess.Popen(
            step.argv,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=_environment(step),
            start_new_session=True,
            pass_fds=(lock,),
            preexec_fn=_end_with_parent,
        )
        told: float | None = None
        while True:
            try:
                code, usage = _ended(process)
                _show(reader, show)
                if code is not None:
                    break
                if told is not None and time.monotonic() - told > _TELL_AGAIN_SECONDS:
                    # A signal that came while the step's interpreter could not take it is lost.
                    told = time.monotonic()
                    process.send_signal(signal.SIGTERM)
                time.sleep(_POLL_SECONDS)
            except KeyboardInterrupt:
                # Who interrupts twice does not want to wait; what was saved before is kept.
                process.send_signal(signal.SIGTERM if told is None else signal.SIGKILL)
                told = time.monotonic()
    if told is not None:
        raise Stopped("stopped: the same command goes on where this one was")
    said = None if code == 0 else _last_error(log, start)
    peak = None if usage is None else usage / 1024
    return StepResult(exit_code=code, seconds=time.monotonic() - begin, peak_memory_mib=peak, error=said)


def _environment(step: Step) -> dict[str, str]:
    """The pipeline's own, with the step's; the step imports the code that the keys were made of."""
    known = os.environ.get("PYTHONPATH")
    path = os.pathsep.join([str(_PACKAGES), *([known] if known else [])])
    return os.environ | {"PYTHONUNBUFFERED": "1", "PYTHONPATH": path} | dict(step.environment)


def _ended(process: subprocess.Popen[bytes]) -> tuple[int | None, float | None]:
    """Exit code (None while it runs; of a signal 128 and its number) and largest resident size in KiB."""
    number, status, usage = os.wait4(process.pid, os.WNOHANG)
    if number == 0:
        return None, None
    code = os.waitstatus_to_exitcode(status)
    process.returncode = code
    return (128 - code if code < 0 else code), float(usage.ru_maxrss)


def _show(reader: object, show: Callable[[str], None]) -> None:
    text = reader.read().decode(errors="replace")  # type: ignore[attr-defined]
    if text:
        show(text)


def _last_error(log: Path, start: int) -> str | None:
    """The last line of this start that is an error of ours, else the last line at all."""
    with log.open("rb") as file:
        file.seek(start)
        lines = [line.strip() for line in file.read().decode(errors="replace").splitlines() if line.strip()]
    errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    told = errors or lines
    return told[-1] if told else None


def _end_with_parent() -> None:
    """In the child: a pipeline that is killed takes its step with it, which then saves its state (Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_SET_PARENT_DEATH_SIGNAL, signal.SIGTERM)
