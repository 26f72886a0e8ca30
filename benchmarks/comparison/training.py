"""Train one model within a budget of CPU-seconds: measure a step, plan the run, run it without a pause."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax

from comparison.field_solver import SolverRun
from comparison.models import Peer, build
from comparison.row import Row
from comparison.tasks import TASKS
from ups_jax.config import Config
from ups_jax.data import Dataset, batch_at, steps_per_epoch, training_batches
from ups_jax.inference.trained_model import TrainedModel
from ups_jax.optim import build_optimizer, ema_params
from ups_jax.runs.best_weights import Weights
from ups_jax.training.build import as_joint_model, init_state
from ups_jax.training.run_length import measure_seconds_per_step, steps_within
from ups_jax.training.state import TrainState
from ups_jax.training.step import TrainStep, make_train_step

# About so many CPU-seconds go into measuring a step.
MEASURED_SECONDS = 2.0


@dataclass(frozen=True, kw_only=True)
class Trained:
    """A trained model and the cost of its training; `cpu_seconds` and `compile_seconds` are process time, the first
    without compilation."""

    run: Any
    parameters: int
    steps: int
    cpu_seconds: float
    compile_seconds: float
    skipped: int = 0


def train(row: Row, peer: Peer, dataset: Dataset) -> Trained:
    """A model of the library, or one that looks like it, with the recipe of the task's configuration."""
    task = TASKS[row.task]
    model = build(peer, row.config(), dataset.task, task.stage, task.group)
    steps = row.steps or steps_within(row.budget, _seconds_per_step(model, row.config(), dataset, task.stage))
    cfg = row.config(f"stages.{task.stage}.steps={steps}")
    tx, train_step, first = _made(model, cfg, dataset, task.stage, steps)
    state = init_state(model, tx, first, jax.random.key(cfg.seed), stage=task.stage)
    begin = time.process_time()
    jax.block_until_ready(train_step(jax.tree.map(jnp.copy, state), first))
    compile_seconds = time.process_time() - begin
    with training_batches(dataset, cfg, task.stage) as batches:
        begin = time.process_time()
        state = _advance(train_step, state, batches, steps)
        cpu_seconds = time.process_time() - begin
    params = ema_params(state.params, state.ema, getattr(cfg.stages, task.stage).ema_decay)
    return Trained(
        run=_run(model, params, cfg, dataset, task.stage, steps),
        parameters=optax.tree.size(params),
        steps=steps,
        cpu_seconds=cpu_seconds,
        compile_seconds=compile_seconds,
        skipped=int(state.monitor.skipped),
    )


def _run(model: Any, params: Any, cfg: Config, dataset: Dataset, stage: str, steps: int) -> SolverRun | TrainedModel:
    if dataset.task.kind == "steady":
        return SolverRun(model, params, dataset.task)
    weights = Weights(
        params=params,
        weights=params,
        digest="",
        step=steps,
        config=cfg,
        tasks=(dataset.task,),
        fingerprint=dataset.fingerprint,
    )
    return TrainedModel(path=Path(), stage=stage, checkpoint=weights, models=as_joint_model(model))


def _seconds_per_step(model: Any, cfg: Config, dataset: Dataset, stage: str) -> float:
    # The length of its schedule has no part in what a step costs.
    tx, train_step, first = _made(model, cfg, dataset, stage, 1000)
    state = init_state(model, tx, first, jax.random.key(cfg.seed), stage=stage)
    with training_batches(dataset, cfg, stage) as batches:
        return measure_seconds_per_step(
            train_step, state, map(jax.device_put, batches), clock=time.process_time, max_seconds=MEASURED_SECONDS
        )


def _made(
    model: Any, cfg: Config, dataset: Dataset, stage: str, steps: int
) -> tuple[optax.GradientTransformation, TrainStep, Any]:
    epoch = steps_per_epoch(dataset, cfg, stage)
    tx = build_optimizer(getattr(cfg.stages, stage), steps, epoch)
    train_step = make_train_step(model, tx, cfg, stage=stage, steps_per_epoch=epoch)
    return tx, train_step, jax.device_put(batch_at(dataset, cfg, stage, 0))


def _advance(train_step: TrainStep, state: TrainState, stream: Iterator[Any], steps: int) -> TrainState:
    """`steps` steps, one ahead of the host as in the library's loop: a deep queue costs CPU time."""
    before = None
    for _ in range(steps):
        state, metrics = train_step(state, jax.device_put(next(stream)))
        jax.block_until_ready(before)
        before = metrics
    return jax.block_until_ready(state)
