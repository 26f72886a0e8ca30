"""Train one model within a budget of CPU-seconds: measure a step, plan the run, run it without a pause."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax

from comparison.models import Peer, build
from comparison.row import Row
from ups_jax.config import Config
from ups_jax.data import Dataset, batch_at, training_batches
from ups_jax.evaluation.trained_run import TrainedRun
from ups_jax.optim import build_optimizer, ema_params
from ups_jax.training.build import init_state
from ups_jax.training.state import TrainState
from ups_jax.training.step import TrainStep, make_train_step

_STAGE = "operator"
# A step is timed in rounds of so many, until so many CPU-seconds have gone.
_TIMED_STEPS, _TIMED_SECONDS = 20, 1.0


@dataclass(frozen=True, kw_only=True)
class Trained:
    """What is evaluated, and what its training took; `cpu_seconds` is process time without compilation, and so is
    `compile_seconds`."""

    predictor: Any
    parameters: int
    steps: int
    cpu_seconds: float
    compile_seconds: float
    skipped: int = 0


def planned(seconds: float, seconds_per_step: float) -> int:
    """How many steps fit into the budget, one at the least."""
    return max(1, int(seconds / seconds_per_step))


def horizon(steps: int) -> str:
    """The override that makes the parameter average remember a fifteenth of the run."""
    return f"stages.operator.ema_decay={max(0.0, 1 - 15 / steps):.6g}"


def seconds_per_step(run: Callable[[Any, int], None], batches: AbstractContextManager[Any]) -> float:
    """CPU-seconds of one step with the making of its batch; `run(stream, steps)` is the loop that trains."""
    with batches as stream:
        run(stream, 1)
        begin = time.process_time()
        done = 0
        while done == 0 or time.process_time() - begin < _TIMED_SECONDS:
            run(stream, _TIMED_STEPS)
            done += _TIMED_STEPS
        return (time.process_time() - begin) / done


def train(row: Row, peer: Peer, dataset: Dataset) -> Trained:
    """A model of the library, or one that looks like it, with the recipe of the task's configuration."""
    cfg = row.config("stages.operator.steps=1000")
    model = build(peer, cfg, dataset.task)
    steps = row.steps or planned(row.budget, _measure(model, cfg, dataset))
    cfg = row.config(f"stages.operator.steps={steps}", horizon(steps))
    tx = build_optimizer(cfg.stages.operator, steps)
    first = jax.device_put(batch_at(dataset, cfg, _STAGE, 0))
    train_step = make_train_step(model, tx, cfg)
    state = _fresh(model, tx, first, cfg)
    begin = time.process_time()
    jax.block_until_ready(train_step(jax.tree.map(jnp.copy, state), first))
    compile_seconds = time.process_time() - begin
    with training_batches(dataset, cfg, _STAGE) as batches:
        begin = time.process_time()
        state = _advance(train_step, state, batches, steps)
        cpu_seconds = time.process_time() - begin
    params = ema_params(state.params, state.ema, cfg.stages.operator.ema_decay)
    run = TrainedRun(
        path=Path(),
        stage=_STAGE,
        config=cfg,
        task=dataset.task,
        model=model,
        weights=params,
        step=steps,
        fingerprint=dataset.fingerprint,
    )
    return Trained(
        predictor=run.predictor(),
        parameters=optax.tree.size(params),
        steps=steps,
        cpu_seconds=cpu_seconds,
        compile_seconds=compile_seconds,
        skipped=int(state.monitor.skipped),
    )


def _measure(model: Any, cfg: Config, dataset: Dataset) -> float:
    tx = build_optimizer(cfg.stages.operator, 1000)
    first = jax.device_put(batch_at(dataset, cfg, _STAGE, 0))
    train_step = make_train_step(model, tx, cfg)
    state = _fresh(model, tx, first, cfg)

    def run(stream: Any, steps: int) -> None:
        nonlocal state
        state = _advance(train_step, state, stream, steps)

    return seconds_per_step(run, training_batches(dataset, cfg, _STAGE))


def _advance(train_step: TrainStep, state: TrainState, stream: Iterator[Any], steps: int) -> TrainState:
    """`steps` steps, one ahead of the host as in the library's loop: a deep queue costs CPU time."""
    before = None
    for _ in range(steps):
        state, metrics = train_step(state, jax.device_put(next(stream)))
        jax.block_until_ready(before)
        before = metrics
    return jax.block_until_ready(state)


def _fresh(model: Any, tx: optax.GradientTransformation, batch: Any, cfg: Config) -> Any:
    return init_state(model, tx, batch, jax.random.key(cfg.seed))
