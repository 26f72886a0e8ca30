"""The loop: when it ends, what it keeps, and how it gives up."""

from __future__ import annotations

import json
import math
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from commands import CONFIGS
from rich.console import Console
from shared_programs import SMALL_MODEL, sharing

from ups_jax.config import Config, load
from ups_jax.core.errors import ConfigError, DivergedError
from ups_jax.runs.checkpoint import Checkpoints
from ups_jax.tracking import read_jsonl
from ups_jax.trainer.train import train
from ups_jax.training.stages import stage_spec

shared_programs = pytest.fixture(scope="module", autouse=True)(sharing)

SMALL = [*SMALL_MODEL, "stages.operator.steps=12", "training.eval_every=0.25", "logging.every_steps=1"]


def config(data_root: Path, *overrides: str) -> Config:
    return load(CONFIGS / "tiny.yaml", [f"data.root={data_root}", *SMALL, *overrides])


def run(cfg: Config, path: Path, **options: object) -> None:
    train(cfg, "operator", path, console=Console(quiet=True), **options)  # type: ignore[arg-type]


def test_evaluations_come_at_their_steps_and_the_best_is_what_the_monitor_says(data_root: Path, tmp_path: Path) -> None:
    run(config(data_root), tmp_path / "run")
    records = read_jsonl(tmp_path / "run" / "metrics.jsonl")
    assert [record["step"] for record in records] == list(range(1, 13))
    measured = {record["step"]: record["validation/rollout"] for record in records if "validation/rollout" in record}
    assert list(measured) == [4, 8, 12]
    with Checkpoints(tmp_path / "run" / "checkpoints" / "operator", read_only=True) as checkpoints:
        assert measured[checkpoints.best_step()] == min(measured.values()) == records[-1]["best_metric"]


def scripted(monkeypatch: pytest.MonkeyPatch, *values: float) -> None:
    """Let the validations of the next trainings find these values."""
    spec, left = stage_spec("operator"), iter(values)

    def validate(params: Any) -> dict[str, float]:
        return dict.fromkeys(("one_step", "rollout"), next(left))

    monkeypatch.setattr(
        sys.modules["ups_jax.training.stages.operator"], "STAGE", replace(spec, validate=lambda *arguments: validate)
    )


def test_epochs_since_the_best_are_right_after_a_finished_run_was_made_longer(
    data_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Evaluations at 4, 6 (an end off the grid), 8, 10 (another one), 12 and 14.
    scripted(monkeypatch, math.nan, 0.3, 0.4, 0.35, 0.6, 0.1)
    for steps in (6, 10):
        run(config(data_root, f"stages.operator.steps={steps}"), tmp_path / "run")
    # Nobody can say any more where the best value was.
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "operator" / "6")
    run(config(data_root, "stages.operator.steps=14"), tmp_path / "run")
    measured = [item for item in read_jsonl(tmp_path / "run" / "metrics.jsonl") if "best_metric" in item]
    assert [item["step"] for item in measured] == [4, 6, 8, 10, 12, 14]
    since = {item["step"]: item["epochs_since_best"] * 16 for item in measured if "epochs_since_best" in item}
    # Where no value was finite yet, they count from the start.
    assert since == {4: 4, 6: 0, 8: 2, 10: 4, 14: 0}


def test_more_than_its_patience_without_a_better_value_ends_a_run(
    data_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scripted(monkeypatch, *[0.5] * 25)
    cfg = config(data_root, "training.patience=0.5", "stages.operator.steps=100")
    run(cfg, tmp_path / "run")
    records = read_jsonl(tmp_path / "run" / "metrics.jsonl")
    assert records[-1]["step"] == 16
    # Four evaluations an epoch: the third without a better value is three quarters of one.
    assert records[-1]["evaluations_since_best"] == 3


def test_a_run_that_diverges_stops_with_its_own_error_and_saves_nothing_that_is_not_finite(
    data_root: Path, tmp_path: Path
) -> None:
    cfg = config(data_root, "optimizer.lr=1e30", "training.max_skips=3", "stages.operator.grad_clip=null")
    with pytest.raises(DivergedError, match=r"3 steps.*lr"):
        run(cfg, tmp_path / "run")
    assert json.loads((tmp_path / "run" / "run.json").read_text())["status"] == "failed"


def test_weights_of_another_run_come_with_any_optimizer_and_the_same_command_goes_on(
    data_root: Path, tmp_path: Path
) -> None:
    run(config(data_root), tmp_path / "parent")
    child = config(data_root, "optimizer.name=adamw", "optimizer.lr=1e-9")
    run(child, tmp_path / "child", init_from=tmp_path / "parent")
    first_of_parent = read_jsonl(tmp_path / "parent" / "metrics.jsonl")[0]["loss"]
    assert read_jsonl(tmp_path / "child" / "metrics.jsonl")[0]["loss"] < 0.8 * first_of_parent
    record = json.loads((tmp_path / "child" / "run.json").read_text())
    assert record["stages"]["operator"]["parent"]["run"] == str(tmp_path / "parent")
    run(child, tmp_path / "child", init_from=tmp_path / "parent")
    with pytest.raises(ConfigError, match="latent"):
        run(config(data_root, "latent.dim=5"), tmp_path / "other", init_from=tmp_path / "parent")
