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
from io import BufferedReader
from pathlib import Path
from typing import NamedTuple

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
        environment: Environment variables of the process, in addition to those of this process.
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
        peak_memory_mib: Largest resident set size of any process of the step, in MiB.
        error: Error message from the log of a failed step.
    """

    exit_code: int
    seconds: float
    peak_memory_mib: float | None = None
    error: str | None = None


# Functions with the arguments of `run_step`: the step, log file, lock descriptor, callback for output.
Runner = Callable[[Step, Path, int, Callable[[str], None]], StepResult]


class StepFailed(UserError):
    """Error for a failed step, with the exit code of its process, or 1 if a signal killed the process."""

    def __init__(self, name: str, result: StepResult, log: Path) -> None:
        self.exit_code = result.exit_code if 0 < result.exit_code < 128 else 1
        reason = result.error or f"it ended with exit code {result.exit_code}"
        super().__init__(f"step {name}: {reason} (log: {log})")


def run_step(step: Step, log_file: Path, lock_fd: int, on_output: Callable[[str], None]) -> StepResult:
    """Run a step as a process, wait for its end, and return its exit code and cost.

    The step writes to the log file directly, so that it can still save its state after this process has been killed.
    On a first interrupt, the step saves its state and ends. A second interrupt kills it.

    Args:
        log_file: File to which the output is appended.
        lock_fd: File descriptor of the run's lock, which the process inherits.
        on_output: Function that is called with new output of the step.

    Raises:
        Stopped: After the end of the step, if this process was interrupted.
        StorageError: If the log file cannot be written.
    """
    try:
        log_file.parent.mkdir(parents=True, exist_ok=True)
        output = log_file.open("ab")
    except OSError as error:
        raise storage_error(log_file, error) from None
    start_time = time.monotonic()
    log_start = log_file.stat().st_size
    with output, log_file.open("rb") as reader:
        reader.seek(log_start)
        process = subprocess.Popen(
            step.argv,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=_step_environment(step),
            start_new_session=True,
            pass_fds=(lock_fd,),
            preexec_fn=_terminate_with_parent,
        )
        signal_time: float | None = None
        while True:
            try:
                process_exit = _poll_exit(process)
                _forward_output(reader, on_output)
                if process_exit is not None:
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
    message = None if process_exit.code == 0 else _find_error_message(log_file, log_start)
    return StepResult(
        exit_code=process_exit.code,
        seconds=time.monotonic() - start_time,
        peak_memory_mib=process_exit.peak_memory_kib / 1024,
        error=message,
    )


def _step_environment(step: Step) -> dict[str, str]:
    """Return the environment of the step, in which Python imports the same code as in this process."""
    existing = os.environ.get("PYTHONPATH")
    path = os.pathsep.join([str(_PACKAGES), *([existing] if existing else [])])
    return os.environ | {"PYTHONUNBUFFERED": "1", "PYTHONPATH": path} | dict(step.environment)


class _ProcessExit(NamedTuple):
    """Exit code of a process (128 plus the number of the signal that killed it) and its peak memory."""

    code: int
    peak_memory_kib: float


def _poll_exit(process: subprocess.Popen[bytes]) -> _ProcessExit | None:
    """Return the exit code and peak memory of a process, or None while it is running."""
    pid, status, usage = os.wait4(process.pid, os.WNOHANG)
    if pid == 0:
        return None
    code = os.waitstatus_to_exitcode(status)
    process.returncode = code
    return _ProcessExit(128 - code if code < 0 else code, float(usage.ru_maxrss))


def _forward_output(log_reader: BufferedReader, on_output: Callable[[str], None]) -> None:
    """Call `on_output` with the text that the step has added to its log since the last call, if any."""
    text = log_reader.read().decode(errors="replace")
    if text:
        on_output(text)


def _find_error_message(log: Path, log_start: int) -> str | None:
    """Return the last line of a log that starts with `error: `, without this prefix, or else its last line.

    Text before the byte position `log_start` is ignored, because an earlier start of the step wrote it.
    """
    with log.open("rb") as file:
        file.seek(log_start)
        lines = [line.strip() for line in file.read().decode(errors="replace").splitlines() if line.strip()]
    errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    candidates = errors or lines
    return candidates[-1] if candidates else None


def _terminate_with_parent() -> None:
    """Make the kernel (Linux) send SIGTERM to this process when the parent dies, so that the state is saved."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_SET_PARENT_DEATH_SIGNAL, signal.SIGTERM)
