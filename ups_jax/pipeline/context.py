"""The state of a pipeline run: its folder and summary file, and methods that execute, reuse or skip its steps."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from rich.console import Console

from ups_jax.config import Config
from ups_jax.core.errors import ConfigError, Stopped, StorageError, UserError
from ups_jax.core.files import read_json, storage_error, unused_path, write_atomically
from ups_jax.core.locks import is_unlocked
from ups_jax.core.terminal import print_line
from ups_jax.pipeline.request import Request, ResolvedConfigs, config_path
from ups_jax.pipeline.subprocess_step import Runner, Step, StepFailed
from ups_jax.runs.directory import utc_now
from ups_jax.tracking.wandb_run import CONTEXT_VARIABLE

T = TypeVar("T")
# Environment variable with the path of the JSON file that describes the W&B run.
WANDB_INFO_VARIABLE = "FAST_TO_SOTA_WANDB_INFO"
# Statuses of a run that the same command resumes.
UNFINISHED = ("running", "stopped", "failed")


@dataclass(frozen=True, kw_only=True)
class PipelineRun:
    """A pipeline run in progress, shared by all of its steps.

    Attributes:
        resolved: Configurations of training, small and full evaluation.
        runner: Function that executes a step as a process.
        lock_fd: File descriptor of the lock on `directory`, which the processes of the steps inherit.
        resumed: Whether this start continues a run that an earlier start left unfinished.
    """

    request: Request
    resolved: ResolvedConfigs
    directory: Path
    summary: Summary
    console: Console
    runner: Runner
    lock_fd: int
    resumed: bool

    @property
    def run_id(self) -> str:
        """The name of the run's folder."""
        return self.directory.name

    def print(self, line: str) -> None:
        """Print a line to the console, without markup or wrapping."""
        print_line(self.console, line)

    def config_path(self, name: str) -> Path:
        """Return the path of the resolved configuration `name`, one of `request.CONFIG_NAMES`."""
        return config_path(self.directory, name)

    def config(self, name: str) -> Config:
        """Return the resolved configuration `name`, one of `request.CONFIG_NAMES`."""
        config: Config = getattr(self.resolved, name)
        return config

    def environment(self, seed_folder: str = "") -> dict[str, str]:
        """Return the environment variables for all steps of one seed, which share one W&B run.

        Args:
            seed_folder: Subfolder with the files of the seed, empty for the first seed.
        """
        mode = {} if self.request.wandb_mode is None else {"WANDB_MODE": self.request.wandb_mode}
        folder = self.directory / seed_folder
        return mode | {
            CONTEXT_VARIABLE: str((folder / "wandb_context.json").resolve()),
            WANDB_INFO_VARIABLE: _wandb_info_path(
                folder / "artifacts" / "wandb_run.json", is_first_seed=not seed_folder
            ),
        }

    def log_path(self, name: str) -> Path:
        """Return the path of the log file of a step."""
        return self.directory / "logs" / f"{name}.log"

    def was_done(self, name: str, key: str) -> bool:
        """Return whether an earlier start of this run completed a step; if so, print that it is done.

        Args:
            key: Digest of everything that the step's result depends on.
        """
        if not self.summary.is_step_done(name, key):
            return False
        self.print(f"{name:<16}already done")
        return True

    def mark_reused(self, name: str, key: str, source: Path) -> None:
        """Record and print that a step is not executed, because `source` already contains its result."""
        self.print(f"{name:<16}reused from {source}")
        self.summary.update_step(name, status="reused", key=key, reused_from=str(source), seconds=0.0, ended=utc_now())

    def mark_skipped(self, name: str, reason: str) -> None:
        """Record and print that a step is not executed, with the reason."""
        self.print(f"{name:<16}skipped: {reason}")
        self.summary.update_step(name, status="skipped", reason=reason)

    def run(self, step: Step, key: str) -> None:
        """Run a step as a process and record its result in the summary.

        Args:
            key: Digest of everything that the step's result depends on.

        Raises:
            StepFailed: If the process fails; the error has the exit code of the process.
            Stopped: If a signal stops the step's process or this process.
            UserError: If the process succeeds without writing one of `step.outputs`.
        """
        log = self.log_path(step.name)
        tries = self.summary.values["steps"].get(step.name, {}).get("tries", 0)
        self.print(f"{step.name:<16}{' '.join(step.argv[1:])}")
        self.summary.start_step(step.name, key=key, command=step.argv, log=str(log), tries=tries + 1)
        try:
            result = self.runner(step, log, self.lock_fd, self._print_output)
        except Stopped:
            self.summary.update_step(step.name, status="stopped", ended=utc_now(), exit_code=Stopped.exit_code)
            raise
        entry = {
            "ended": utc_now(),
            "seconds": round(result.seconds, 3),
            "exit_code": result.exit_code,
            "peak_memory_mib": result.peak_memory_mib,
        }
        if result.exit_code == Stopped.exit_code:
            self.summary.update_step(step.name, status="stopped", **entry)
            raise Stopped(f"step {step.name} saved its state and was stopped; run the same command again to resume it")
        missing = [path for path in step.outputs if not path.exists()]
        if result.exit_code != 0 or missing:
            self.summary.update_step(step.name, status="failed", error=result.error, **entry)
            if result.exit_code == 0:
                raise UserError(f"step {step.name}: did not write {missing[0]}; see the log {log}")
            raise StepFailed(step.name, result, log)
        self.summary.update_step(step.name, status="done", error=None, **entry)
        self.print(f"{step.name:<16}took {result.seconds:.1f} s")

    def run_in_process(self, name: str, key: str, function: Callable[[], T]) -> T:
        """Run a function as a step in this process, record the step in the summary, and return the function's result.

        Args:
            key: Digest of everything that the step's result depends on.
            function: Function that only reads and writes small files.
        """
        self.summary.start_step(name, key=key)
        start_time = time.monotonic()
        try:
            result = function()
        except BaseException as error:
            self.summary.update_step(name, status="failed", ended=utc_now(), error=str(error))
            raise
        seconds = round(time.monotonic() - start_time, 3)
        self.summary.update_step(name, status="done", ended=utc_now(), seconds=seconds, error=None)
        return result

    def _print_output(self, text: str) -> None:
        """Print lines of a step's output with an indent."""
        for line in text.rstrip("\n").split("\n"):
            self.print(f"    {line}")


def copy_evaluation(source: Path, target: Path) -> None:
    """Copy an evaluation's JSON file, plots and report to another folder; older copies there are replaced.

    The JSON file is written last and atomically, so its presence implies a complete copy.

    Args:
        source: JSON file of the evaluation, in `FOLDER/evaluation/`.
        target: JSON file of the copy, in `OTHER_FOLDER/evaluation/`.

    Raises:
        StorageError: If a file cannot be written.
    """
    section, source_folder, target_folder = source.stem, source.parent.parent, target.parent.parent
    report = f"report_{section}.html"
    pairs = [(source_folder / "plots" / section, target_folder / "plots" / section)]
    pairs += [(source_folder / report, target_folder / report), (source, target)]
    try:
        target.unlink(missing_ok=True)
        for original, copy in pairs:
            copy.parent.mkdir(parents=True, exist_ok=True)
            if original.is_dir():
                shutil.rmtree(copy, ignore_errors=True)
                shutil.copytree(original, copy)
            elif original.exists():
                write_atomically(copy, original.read_text(encoding="utf-8"))
    except OSError as error:
        raise storage_error(target, error) from None


def move_to_backup(folder: Path) -> Path:
    """Rename a folder, so that its name can be used again, and return the new path.

    Raises:
        StorageError: If the folder cannot be renamed.
    """
    stem = f"{folder.name}_before_{utc_now().replace(':', '').replace('+0000', 'Z')}"
    backup = unused_path(folder.with_name(stem))
    try:
        folder.rename(backup)
    except OSError as error:
        raise StorageError(f"{folder}: cannot be renamed ({error.strerror}); choose another --run-id") from None
    return backup


class Summary:
    """The file `summary.json` of a pipeline run, rewritten atomically at every change.

    Attributes:
        values: Content of the file.
        previous_gates: Gate decisions of the run's previous start, by evaluation step.
    """

    def __init__(self, directory: Path) -> None:
        self.path = directory / "summary.json"
        self.values: dict[str, Any] = {}
        self.previous_gates: dict[str, Any] = {}

    def start(self, **metadata: Any) -> None:
        """Create or load the summary file and set its status to `running`.

        Gate decisions of an earlier start are copied to `previous_gates`; those of a finished start leave `values`.

        Raises:
            ConfigError: If the existing file is not a summary.
        """
        self.values = read_summary(self.path)
        self.previous_gates = dict(self.values.get("gates", {}))
        if self.values.get("status") not in UNFINISHED:
            self.values = {key: value for key, value in self.values.items() if key not in ("gates", "promoted")}
        defaults: dict[str, Any] = {"started": utc_now(), "starts": 0, "steps": {}, "gates": {}, "promoted": False}
        self.values = defaults | self.values | metadata
        self.values |= {"status": "running", "starts": self.values["starts"] + 1}
        self.values |= {"failed_step": None, "error": None, "exit_code": None}
        self._write()

    def update(self, **values: Any) -> None:
        """Set the given entries of the summary and write `summary.json`.

        Raises:
            StorageError: If the file cannot be written.
        """
        self.values |= values | {"updated": utc_now()}
        self._write()

    def update_step(self, name: str, **values: Any) -> None:
        """Set the given entries of the step `name` in the summary and write `summary.json`."""
        steps = self.values["steps"]
        self.update(steps=steps | {name: steps.get(name, {}) | values})

    def start_step(self, name: str, **values: Any) -> None:
        """Record that a step is running, so that a later error is attributed to this step."""
        self.values["current_step"] = name
        self.update_step(name, status="running", started=utc_now(), **values)

    def record_gates(self, step_name: str, decision: Mapping[str, Any]) -> None:
        """Record the gate decision on the evaluation step `step_name`."""
        self.update(gates=self.values["gates"] | {step_name: dict(decision)})

    def is_step_done(self, step_name: str, cache_key: str) -> bool:
        """Return whether the summary records a step as done or reused, with this digest of the step's inputs."""
        step = self.values["steps"].get(step_name, {})
        return step.get("status") in ("done", "reused") and step.get("key") == cache_key

    def _write(self) -> None:
        """Write `values` to the summary file."""
        write_atomically(self.path, json.dumps(self.values, indent=2, default=str) + "\n")


def read_summary(path: Path) -> dict[str, Any]:
    """Return the content of a summary file, or an empty dictionary if it does not exist.

    Raises:
        ConfigError: If the file cannot be read or is not a summary.
    """
    try:
        values = read_json(path)
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: cannot be read ({error}); choose another --run-id") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: is not the summary of a pipeline run; choose another --run-id")
    return values


def find_unfinished_run(runs: Path, request_digest: str) -> str | None:
    """Return the name of a request's latest unfinished run that no process is executing, or None.

    Args:
        runs: The folder of all runs.
        request_digest: Digest of the request, from `Request.digest`.
    """
    unfinished: list[tuple[str, str]] = []
    for path in runs.glob("*/summary.json"):
        values = _summary_or_empty(path)
        if values.get("request") == request_digest and values.get("status") in UNFINISHED and is_unlocked(path.parent):
            unfinished.append((str(values["started"]), path.parent.name))
    return max(unfinished)[1] if unfinished else None


def _wandb_info_path(default: Path, is_first_seed: bool) -> str:
    """Return the path of the JSON file about the W&B run; for the first seed, an environment variable may set it."""
    return os.environ.get(WANDB_INFO_VARIABLE, str(default.resolve())) if is_first_seed else str(default.resolve())


def _summary_or_empty(path: Path) -> dict[str, Any]:
    """Return the content of a summary file, or an empty dictionary if the file is missing or damaged."""
    try:
        return read_summary(path)
    except ConfigError:
        return {}
