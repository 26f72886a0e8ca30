"""One step of the pipeline: a command in a separate process, with a log file, measured cost and exit code."""

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
_RESEND_SECONDS = 10.0
# PR_SET_PDEATHSIG of prctl(2).
_SET_PARENT_DEATH_SIGNAL = 1


@dataclass(frozen=True, kw_only=True)
class Step:
    """A command of this project to run as a process.

    Attributes:
        name: Name of the step, used in the summary and for its log file.
        command: Name of the command, such as `train`.
        arguments: Arguments of the command.
        environment: Variables to add to the environment of this process.
        outputs: Files that exist after the step has succeeded.
    """

    name: str
    command: str
    arguments: Sequence[str]
    environment: Mapping[str, str] = field(default_factory=dict)
    outputs: Sequence[Path] = ()

    @property
    def argv(self) -> list[str]:
        """The command line as a list of strings."""
        return [*command_line(self.command), *map(str, self.arguments)]


@dataclass(frozen=True, kw_only=True)
class StepResult:
    """The exit code and the cost of a step that has ended.

    Attributes:
        exit_code: Exit code of the process; 128 plus the number of the signal that killed it.
        seconds: Wall-clock time.
        peak_memory_mib: Largest resident set size of its processes, in MiB.
        error: Error message of a failed step.
    """

    exit_code: int
    seconds: float
    peak_memory_mib: float | None = None
    error: str | None = None


# runner(step, log file, descriptor of the lock that the step inherits, callback for its output) -> result
Runner = Callable[[Step, Path, int, Callable[[str], None]], StepResult]


class StepFailed(UserError):
    """Error of a failed step, with the exit code of the step.

    Args:
        name: Name of the step.
        result: How the step ended.
        log: Its log file.
    """

    def __init__(self, name: str, result: StepResult, log: Path) -> None:
        # A process that was killed by a signal has no exit code.
        self.exit_code = result.exit_code if 0 < result.exit_code < 128 else 1
        reason = result.error or f"it ended with exit code {result.exit_code}"
        super().__init__(f"step {name}: {reason} (log: {log})")


def run_step(step: Step, log: Path, lock: int, show: Callable[[str], None]) -> StepResult:
    """Run a step as a process and return its result.

    The process writes to the log file directly, so it can still save its state after this process has been killed. A
    first interrupt stops the step gracefully: it saves its state and ends. A second interrupt kills it.

    Args:
        step: The command to run.
        log: Log file, which is appended to.
        lock: File descriptor of the run's lock; the process inherits it.
        show: Called with new output of the step.

    Raises:
        Stopped: If this process is interrupted, after the step has ended.
        StorageError: If the log file cannot be written.
    """
    try:
        log.parent.mkdir(parents=True, exist_ok=True)
        output = log.open("ab")
    except OSError as error:
        raise storage_error(log, error) from None
    start_time = time.monotonic()
    log_start = log.stat().st_size
    with output, log.open("rb") as reader:
        reader.seek(log_start)
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
        signal_time: float | None = None
        while True:
            try:
                exit_code, peak_kib = _poll(process)
                _show(reader, show)
                if exit_code is not None:
                    break
                if signal_time is not None and time.monotonic() - signal_time > _RESEND_SECONDS:
                    # Send the signal again: the step loses one that arrives before its handler is installed.
                    signal_time = time.monotonic()
                    process.send_signal(signal.SIGTERM)
                time.sleep(_POLL_SECONDS)
            except KeyboardInterrupt:
                process.send_signal(signal.SIGTERM if signal_time is None else signal.SIGKILL)
                signal_time = time.monotonic()
    if signal_time is not None:
        raise Stopped("stopped: run the same command again to resume this run")
    message = None if exit_code == 0 else _last_error(log, log_start)
    peak_mib = None if peak_kib is None else peak_kib / 1024
    return StepResult(
        exit_code=exit_code, seconds=time.monotonic() - start_time, peak_memory_mib=peak_mib, error=message
    )


def _environment(step: Step) -> dict[str, str]:
    """Return the environment of the step: it imports the code of this process, whose digest is in the cache keys."""
    existing = os.environ.get("PYTHONPATH")
    path = os.pathsep.join([str(_PACKAGES), *([existing] if existing else [])])
    return os.environ | {"PYTHONUNBUFFERED": "1", "PYTHONPATH": path} | dict(step.environment)


def _poll(process: subprocess.Popen[bytes]) -> tuple[int | None, float | None]:
    """Return the exit code and the largest resident set size in KiB, or None for both while the process runs.

    The exit code of a process that a signal killed is 128 plus the number of the signal.
    """
    pid, status, usage = os.wait4(process.pid, os.WNOHANG)
    if pid == 0:
        return None, None
    code = os.waitstatus_to_exitcode(status)
    process.returncode = code
    return (128 - code if code < 0 else code), float(usage.ru_maxrss)


def _show(reader: object, show: Callable[[str], None]) -> None:
    """Pass new output of the step to `show`."""
    text = reader.read().decode(errors="replace")  # type: ignore[attr-defined]
    if text:
        show(text)


def _last_error(log: Path, log_start: int) -> str | None:
    """Return the last line that starts with `error: `, without that prefix, or else the last line.

    Lines before `log_start`, which an earlier start has written, are ignored.
    """
    with log.open("rb") as file:
        file.seek(log_start)
        lines = [line.strip() for line in file.read().decode(errors="replace").splitlines() if line.strip()]
    errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    candidates = errors or lines
    return candidates[-1] if candidates else None


def _end_with_parent() -> None:
    """Let the kernel send SIGTERM to the step if the pipeline is killed (Linux); the step then saves its state."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_SET_PARENT_DEATH_SIGNAL, signal.SIGTERM)
