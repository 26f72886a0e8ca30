"""Steps of a pipeline that take no time: they leave the files of the real ones, with numbers of our choosing."""

from __future__ import annotations

import copy
import json
import os
import typing
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from commands import CONFIGS
from evaluations import evaluation, section
from rich.console import Console

import ups_jax.config.yaml
from ups_jax.config import load
from ups_jax.core.files import write_atomically
from ups_jax.pipeline.champions import Champions
from ups_jax.pipeline.leaderboard import Leaderboard
from ups_jax.pipeline.request import Request
from ups_jax.pipeline.run import run_pipeline
from ups_jax.pipeline.subprocess_step import Runner, Step, StepResult
from ups_jax.pipeline.training_record import checkpoint_digests
from ups_jax.runs.directory import environment_record

_type_hints = cache(typing.get_type_hints)
_parsed = cache(ups_jax.config.yaml.parse)
_environment = cache(environment_record)


def without_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out what takes most of the time of a pipeline with such steps, and changes nothing that it decides.

    Waiting for the disk: no test cuts the power. Reading the same YAML text and the same annotations again, and asking
    git for the same commit again.
    """
    monkeypatch.setattr("os.fsync", lambda descriptor: None)
    monkeypatch.setattr("ups_jax.config.yaml.parse", lambda text: copy.deepcopy(_parsed(text)))
    names = {name: getattr(typing, name) for name in ("get_args", "get_origin", "cast")}
    monkeypatch.setattr("ups_jax.config.loading.typing", SimpleNamespace(get_type_hints=_type_hints, **names))
    monkeypatch.setattr("ups_jax.pipeline.run.environment_record", lambda: dict(_environment()))


@dataclass
class Steps:
    """A runner. A model that is trained for E epochs with seed 17 has an nrmse of 1 / E, as `error` says.

    `calls` are the names of the steps that were run; `exits` the exit codes of those that fail; `values` go into the
    evaluations' rollout sections, `small` into the small one's alone, `meta` into their facts; `ensemble` is the
    coverage of 90 % where there is an ensemble.
    """

    calls: list[str] = field(default_factory=list)
    exits: dict[str, int] = field(default_factory=dict)
    values: dict[str, Any] = field(default_factory=dict)
    small: dict[str, Any] = field(default_factory=dict)
    meta: dict[str, Any] = field(default_factory=dict)
    ensemble: float | None = None
    before: Callable[[Step], None] = lambda step: None
    error: Callable[[Any], float] = lambda cfg: 1 / cfg.stages.operator.epochs

    def __call__(self, step: Step, log: Path, lock: int, show: Callable[[str], None]) -> StepResult:
        self.calls.append(step.name)
        self.before(step)
        if step.name in self.exits:
            return StepResult(exit_code=self.exits[step.name], seconds=0.1, error="it was told to fail")
        {"validate": self.validate, "train": self.train, "evaluate": self.evaluate}[step.command](step)
        return StepResult(exit_code=0, seconds=0.1, peak_memory_mib=10.0)

    def validate(self, step: Step) -> None:
        if "data" in step.arguments:
            checks = {path: {"fingerprint": "f00d"} for path in options(step, "--config")}
            write_atomically(Path(options(step, "--json")[0]), json.dumps(checks))

    def train(self, step: Step) -> None:
        if "--dry-run" in step.arguments:
            return
        (config,), (path,) = options(step, "--config"), map(Path, options(step, "--run-dir"))
        cfg = load(config, [text for text in step.arguments if "=" in text])
        params_file = path / "checkpoints" / "operator" / "10" / "params"
        write_atomically(
            path / "run.json", json.dumps({"error": self.error(cfg), "config": {}, "stages": {}, "digests": {}})
        )
        write_atomically(params_file, f"{self.error(cfg)}")
        write_atomically(path / "metrics.jsonl", '{"stage": "operator", "step": 10, "loss": 1.0}\n')

    def evaluate(self, step: Step) -> None:
        (path,), (name,) = map(Path, options(step, "--run-dir")), options(step, "--pipeline")
        (output,) = map(Path, options(step, "--output-dir"))
        error = json.loads((path / "run.json").read_text())["error"]
        split = "val" if name == "small" else "test"
        digest = checkpoint_digests(path)["operator/10"]
        scores = [error * share for share in (0.5, 1.0, 1.5)]
        extra = self.values | (self.small if name == "small" else {})
        result = evaluation(**{"nrmse": error, "split": split, "digest": digest, "scores": scores} | extra)
        result["meta"] |= self.meta
        if self.ensemble is not None:
            result["variants"] = {
                "ensemble": {"waves": {"rollout": section(error, coverage_90=self.ensemble, correlation_time=1.0)}}
            }
        (output / "plots" / name).mkdir(parents=True, exist_ok=True)
        write_atomically(output / "plots" / name / "curve.png", b"PNG")
        write_atomically(output / "evaluation" / f"{name}.json", json.dumps(result))


def options(step: Step, name: str) -> list[str]:
    """All values of an option of a step's command line."""
    arguments = list(map(str, step.arguments))
    return [arguments[index + 1] for index, text in enumerate(arguments) if text == name]


@dataclass(frozen=True)
class Place:
    """A folder with runs, champions and a leaderboard of its own."""

    root: Path

    def request(self, epochs: float = 10, **changes: Any) -> Request:
        overrides = (f"stages.operator.epochs={epochs}", *changes.pop("overrides", ()))
        request = Request(
            train_config=CONFIGS / "tiny.yaml",
            train_stage="operator",
            overrides=overrides,
            runs_root=self.root / "artifacts" / "runs",
            leaderboard_csv=self.root / "reports" / "leaderboard.csv",
        )
        return replace(request, **changes)

    def run(self, epochs: float = 10, steps: Runner | None = None, **changes: Any) -> dict[str, Any]:
        return run_pipeline(self.request(epochs, **changes), Console(quiet=True), steps or Steps())

    @property
    def board(self) -> Leaderboard:
        return Leaderboard.from_csv_path(self.root / "reports" / "leaderboard.csv")

    @property
    def champions(self) -> Champions:
        return Champions(self.root / "artifacts" / "champions")

    def summary(self, run_id: str) -> dict[str, Any]:
        values: dict[str, Any] = json.loads((self.root / "artifacts" / "runs" / run_id / "summary.json").read_text())
        return values

    def champion(self) -> str | None:
        """The run id of the only champion."""
        return next((item["run_id"] for item in self.champions.read_all()), None)


class Killed(BaseException):
    """The process is gone: nothing that follows is written either."""


@contextmanager
def killed_at(number: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """From the `number`-th file on nothing is put in its place any more, as of a killed process; counts the files."""
    count, put = [0], os.replace

    def replace_or_die(source: Any, target: Any) -> None:
        count[0] += 1
        if count[0] >= number:
            raise Killed
        put(source, target)

    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", replace_or_die)
        yield count
