"""Evaluations decide when a stage without improvement ends, and when its learning rate falls."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import closing, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from commands import CONFIGS
from rich.console import Console

from ups_jax.config import Config, load
from ups_jax.models.batch import Batch
from ups_jax.models.parameter_sharing import ParameterSubset
from ups_jax.optim import build_optimizer, build_schedule
from ups_jax.optim.schedules import build_plateau_rule
from ups_jax.runs.checkpoint import Checkpoints
from ups_jax.tracking import read_jsonl
from ups_jax.tracking.jsonl import JsonlWriter
from ups_jax.trainer.console import TrainingProgress
from ups_jax.trainer.loop import Loop, run_loop
from ups_jax.training.run_length import Plan
from ups_jax.training.state import create_train_state
from ups_jax.training.step import StateUpdate


def looped(cfg: Config, metrics: list[float], path: Path, lost: tuple[int, ...] = ()) -> list[dict[str, Any]]:
    """The records of a stage of one parameter, evaluated every second step with these metrics in turn; the gradient of
    the `lost` steps is not finite."""
    settings = cfg.stages.operator
    plan = Plan(total_steps=2 * len(metrics), steps_per_epoch=4, eval_steps=2)
    lengths = plan.total_steps, plan.steps_per_epoch
    tx = build_optimizer(settings, *lengths)
    schedule = build_schedule(settings.scheduler, settings.optimizer.lr, *lengths)

    update = StateUpdate(tx, 0.5, cfg.training, ParameterSubset(), branch=True)

    def step(state: Any, batch: Batch) -> Any:
        return update.apply(state, jnp.sum(state.params["w"] * batch.fields), {"w": jnp.asarray(batch.fields)})

    def batches(start: int) -> Any:
        def ones() -> Iterator[Batch]:
            for number in itertools.count(start + 1):
                value = np.nan if number in lost else 1.0
                yield Batch(fields=np.full(2, value, np.float32))

        return nullcontext(ones())

    def moved(state: Any, batch: Any) -> Any:
        new, numbers = compiled(state, batch)
        return new, numbers | {"moved": jnp.max(jnp.abs(new.params["w"] - state.params["w"]))}

    compiled = jax.jit(step)
    loop = Loop(
        stage="operator",
        plan=plan,
        steps_before=0,
        train_step=moved,
        open_batches=batches,
        averaged_weights=lambda state: state.step,
        validate=lambda step: {"metric": metrics[int(step) // plan.eval_steps - 1]},
        selection_metric="metric",
        save=lambda state, validation: None,
        step_with_validation=lambda validation: None,
        learning_rate=lambda step: float(schedule(step)),
        patience=None,
        plateau=build_plateau_rule(settings, *lengths, plan.eval_steps),
    )
    fresh = create_train_state({"w": jnp.ones(2)}, tx, jax.random.key(0))
    with (
        Checkpoints(path / "checkpoints") as checkpoints,
        closing(JsonlWriter(path / "metrics.jsonl")) as writer,
        TrainingProgress(Console(quiet=True), "operator", plan.total_steps, 0, 100.0) as progress,
    ):
        state = checkpoints.restore_latest(fresh, lambda meta: None, print) or fresh
        loop = replace(loop, save=lambda state, validation: checkpoints.save(state, {}, validation=validation))
        run_loop(loop, state, cfg, writer, progress, lambda: False)
    return read_jsonl(path / "metrics.jsonl")


def config(*overrides: str) -> Config:
    return load(CONFIGS / "tiny.yaml", ["logging.every_steps=1", "optimizer.weight_decay=0", *overrides])


def test_the_rate_falls_after_the_evaluations_that_brought_nothing_and_the_log_says_so(tmp_path: Path) -> None:
    cfg = config(
        "optimizer.name=sgd", "optimizer.momentum=0", "optimizer.lr=0.1", "stages.operator.grad_clip=null",
        "scheduler={name: reducelronplateau, warmup: 0, patience: 0.5, factor: 0.5}",
    )  # fmt: skip
    records = looped(cfg, [1.0, 0.9, 0.9, 0.9, 0.9, 0.8, 0.7], tmp_path)
    # Half an epoch is one evaluation; the second one without a better value, at step 8, is more than that.
    expected = [0.1] * 8 + [0.05] * 6
    assert [record["step"] for record in records] == list(range(1, 15))
    np.testing.assert_allclose([record["lr"] for record in records], expected, rtol=1e-6)
    np.testing.assert_allclose([record["moved"] for record in records], expected, rtol=1e-5)


def test_any_other_schedule_takes_no_notice_of_evaluations(tmp_path: Path) -> None:
    cfg = config("scheduler={name: constant, warmup: 0}", "optimizer.name=sgd", "optimizer.lr=0.1")
    np.testing.assert_allclose([record["lr"] for record in looped(cfg, [1.0] * 5, tmp_path)], 0.1, rtol=1e-6)


def test_a_skipped_step_is_none_of_the_schedule_and_the_log_has_the_rate_that_moved(tmp_path: Path) -> None:
    cfg = config(
        "optimizer.name=sgd", "optimizer.momentum=0", "optimizer.lr=0.1", "stages.operator.grad_clip=null",
        "scheduler={name: steplr, warmup: 0, step_size_steps: 2, gamma: 0.5}",
    )  # fmt: skip
    records = looped(cfg, [1.0, 0.9, 0.8, 0.7], tmp_path, lost=(2, 5))
    kept = [record for record in records if record["step"] not in (2, 5)]
    np.testing.assert_allclose([record["moved"] for record in kept], [0.1, 0.1, 0.05, 0.05, 0.025, 0.025], rtol=1e-5)
    np.testing.assert_allclose([record["lr"] for record in kept], [record["moved"] for record in kept], rtol=1e-5)
    assert records[-1]["skipped"] == 2


def test_a_reduced_rate_and_the_wait_for_the_next_survive_a_resume(tmp_path: Path) -> None:
    cfg = config("optimizer.lr=0.1", "scheduler={name: plateau, warmup: 0, patience: 1, factor: 0.5}")
    metrics = [1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0]
    whole = looped(cfg, metrics, tmp_path / "whole")
    # Reduced at step 8 and again at step 14; the first part ends in between, one evaluation into the second wait.
    looped(cfg, metrics[:5], tmp_path / "parts")
    resumed = looped(cfg, metrics, tmp_path / "parts")
    expected = [0.1] * 8 + [0.05] * 6 + [0.025] * 4
    np.testing.assert_allclose([record["lr"] for record in whole], expected, rtol=1e-6)
    assert [record["lr"] for record in resumed] == [record["lr"] for record in whole]
    assert [record["moved"] for record in resumed] == [record["moved"] for record in whole]
