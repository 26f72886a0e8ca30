"""A pipeline run in progress: its folder, its summary on file, and how a step is run, reused or skipped."""

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
from ups_jax.core.locks import is_free
from ups_jax.core.terminal import print_line
from ups_jax.pipeline.request import Request, Resolved, config_path
from ups_jax.pipeline.subprocess_step import Runner, Step, StepFailed
from ups_jax.runs.directory import now
from ups_jax.tracking.wandb_run import CONTEXT_VARIABLE

T = TypeVar("T")
WANDB_INFO_VARIABLE = "FAST_TO_SOTA_WANDB_INFO"
# How a run stands that the same command goes on with.
UNFINISHED = ("running", "stopped", "failed")


@dataclass(frozen=True, kw_only=True)
class Work:
    """What the chapters of the sequence work on. `resumed`: an earlier start of this run did not come to its end."""

    request: Request
    resolved: Resolved
    directory: Path
    summary: Summary
    console: Console
    runner: Runner
    lock: int
    resumed: bool

    @property
    def run_id(self) -> str:
        return self.directory.name

    def say(self, line: str) -> None:
        """Print a line as it is."""
        print_line(self.console, line)

    def config_path(self, name: str) -> Path:
        return config_path(self.directory, name)

    def config(self, name: str) -> Config:
        config: Config = getattr(self.resolved, name)
        return config

    def environment(self, folder_of_seed: str = "") -> dict[str, str]:
        """What steps share: one W&B run for all of them (of a further seed its own)."""
        mode = {} if self.request.wandb_mode is None else {"WANDB_MODE": self.request.wandb_mode}
        folder = self.directory / folder_of_seed
        return mode | {
            CONTEXT_VARIABLE: str((folder / "wandb_context.json").resolve()),
            WANDB_INFO_VARIABLE: _info_path(folder / "artifacts" / "wandb_run.json", is_first=not folder_of_seed),
        }

    def log(self, name: str) -> Path:
        return self.directory / "logs" / f"{name}.log"

    def done(self, name: str, key: str) -> bool:
        """Whether an earlier start of this run has done the step; then it says so."""
        if not self.summary.is_done(name, key):
            return False
        self.say(f"{name:<16}done before")
        return True

    def reused(self, name: str, key: str, source: Path) -> None:
        """Another run has done the step."""
        self.say(f"{name:<16}reused from {source}")
        self.summary.step(name, status="reused", key=key, reused_from=str(source), seconds=0.0, ended=now())

    def skipped(self, name: str, reason: str) -> None:
        """The step is not done at all."""
        self.say(f"{name:<16}skipped: {reason}")
        self.summary.step(name, status="skipped", reason=reason)

    def run(self, step: Step, key: str) -> None:
        """Run a step as a process. Raises `StepFailed` with its exit code, `Stopped`."""
        log = self.log(step.name)
        tries = self.summary.values["steps"].get(step.name, {}).get("tries", 0)
        self.say(f"{step.name:<16}{' '.join(step.argv[1:])}")
        self.summary.begin_step(step.name, key=key, command=step.argv, log=str(log), tries=tries + 1)
        try:
            ended = self.runner(step, log, self.lock, self._show)
        except Stopped:
            self.summary.step(step.name, status="stopped", ended=now(), exit_code=Stopped.exit_code)
            raise
        told = {
            "ended": now(),
            "seconds": round(ended.seconds, 3),
            "exit_code": ended.exit_code,
            "peak_memory_mib": ended.peak_memory_mib,
        }
        if ended.exit_code == Stopped.exit_code:
            self.summary.step(step.name, status="stopped", **told)
            raise Stopped(f"step {step.name} was stopped after saving; the same command goes on")
        missing = [path for path in step.outputs if not path.exists()]
        if ended.exit_code != 0 or missing:
            self.summary.step(step.name, status="failed", error=ended.error, **told)
            if ended.exit_code == 0:
                raise UserError(f"step {step.name}: has not written {missing[0]}; its log is {log}")
            raise StepFailed(step.name, ended, log)
        self.summary.step(step.name, status="done", error=None, **told)
        self.say(f"{step.name:<16}took {ended.seconds:.1f} s")

    def inside(self, name: str, key: str, work: Callable[[], T]) -> T:
        """Do a step in this process, one that only reads and writes small files, and return its result."""
        self.summary.begin_step(name, key=key)
        begin = time.monotonic()
        try:
            result = work()
        except BaseException as error:
            self.summary.step(name, status="failed", ended=now(), error=str(error))
            raise
        self.summary.step(name, status="done", ended=now(), seconds=round(time.monotonic() - begin, 3), error=None)
        return result

    def _show(self, text: str) -> None:
        for line in text.rstrip("\n").split("\n"):
            self.say(f"    {line}")


def copy_evaluation(source: Path, target: Path) -> None:
    """Copy an evaluation's JSON with its plots and its report from one folder of results to another, in place of what
    is there, the JSON last and at once. Raises `StorageError`."""
    section, old, new = source.stem, source.parent.parent, target.parent.parent
    pairs = [(old / "plots" / section, new / "plots" / section)]
    pairs += [(old / f"report_{section}.html", new / f"report_{section}.html"), (source, target)]
    try:
        target.unlink(missing_ok=True)
        for one, other in pairs:
            other.parent.mkdir(parents=True, exist_ok=True)
            if one.is_dir():
                shutil.rmtree(other, ignore_errors=True)
                shutil.copytree(one, other)
            elif one.exists():
                write_atomically(other, one.read_text(encoding="utf-8"))
    except OSError as error:
        raise storage_error(target, error) from None


def set_aside(folder: Path) -> Path:
    """Rename a folder that is made anew, so that nothing is lost. Raises `StorageError`."""
    stem = f"{folder.name}_before_{now().replace(':', '').replace('+0000', 'Z')}"
    aside = unused_path(folder.with_name(stem))
    try:
        folder.rename(aside)
    except OSError as error:
        raise StorageError(f"{folder}: cannot be renamed ({error.strerror}); give another --run-id") from None
    return aside


class Summary:
    """The summary on file; `values` are those on disk."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / "summary.json"
        self.values: dict[str, Any] = {}
        self.former_gates: dict[str, Any] = {}

    def begin(self, **about: Any) -> None:
        """Start, or go on with what an earlier start has written: what a run that came to its end was judged is kept in
        `former_gates` alone. Raises `ConfigError` where that is no summary."""
        self.values = read(self.path)
        self.former_gates = dict(self.values.get("gates", {}))
        if self.values.get("status") not in UNFINISHED:
            self.values = {key: value for key, value in self.values.items() if key not in ("gates", "promoted")}
        first: dict[str, Any] = {"started": now(), "starts": 0, "steps": {}, "gates": {}, "promoted": False}
        self.values = first | self.values | about
        self.values |= {"status": "running", "starts": self.values["starts"] + 1}
        self.values |= {"failed_step": None, "error": None, "exit_code": None}
        self._write()

    def update(self, **values: Any) -> None:
        """Replace some values. Raises `StorageError`."""
        self.values |= values | {"updated": now()}
        self._write()

    def step(self, name: str, **values: Any) -> None:
        """Replace some values of a step."""
        steps = self.values["steps"]
        self.update(steps=steps | {name: steps.get(name, {}) | values})

    def begin_step(self, name: str, **values: Any) -> None:
        """Note that a step runs, which is the one that an error comes from."""
        self.values["current_step"] = name
        self.step(name, status="running", started=now(), **values)

    def gate(self, name: str, decision: Mapping[str, Any]) -> None:
        """Keep what the gates of an evaluation said."""
        self.update(gates=self.values["gates"] | {name: dict(decision)})

    def is_done(self, name: str, key: str) -> bool:
        """Whether a step was done by an earlier start, for the same reasons (`key`)."""
        own = self.values["steps"].get(name, {})
        return own.get("status") in ("done", "reused") and own.get("key") == key

    def _write(self) -> None:
        write_atomically(self.path, json.dumps(self.values, indent=2, default=str) + "\n")


def read(path: Path) -> dict[str, Any]:
    """A summary; empty where there is none. Raises `ConfigError` where it cannot be understood."""
    try:
        values = read_json(path)
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: cannot be read ({error}); give another --run-id") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: is no summary of a run; give another --run-id")
    return values


def find_unfinished_run(runs: Path, request: str) -> str | None:
    """The latest run of the same request that did not come to its end and that nobody works on."""
    found: list[tuple[str, str]] = []
    for path in runs.glob("*/summary.json"):
        values = _readable(path)
        if values.get("request") == request and values.get("status") in UNFINISHED and is_free(path.parent):
            found.append((str(values["started"]), path.parent.name))
    return max(found)[1] if found else None


def _info_path(own: Path, is_first: bool) -> str:
    """Where the W&B run is told: of the first seed where the environment says."""
    return os.environ.get(WANDB_INFO_VARIABLE, str(own.resolve())) if is_first else str(own.resolve())


def _readable(path: Path) -> dict[str, Any]:
    try:
        return read(path)
    except ConfigError:
        return {}
