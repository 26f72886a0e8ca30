"""From configuration and data to a stage's model, its optimizer and a fresh state."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Key

from ups_jax import simulate
from ups_jax.config import Config, ParallelConfig
from ups_jax.data import Dataset, open_dataset
from ups_jax.determinism import require_determinism
from ups_jax.errors import ConfigError
from ups_jax.losses import Batch
from ups_jax.optim import build_optimizer
from ups_jax.parallel import keep_in_place, make_mesh
from ups_jax.streams import stream
from ups_jax.task import Task
from ups_jax.training.plan import plan_of
from ups_jax.training.stages import STAGES, stage_of
from ups_jax.training.state import TrainState, state_of


def build(
    cfg: Config, dataset: Dataset | None = None, *, stage: str = "operator"
) -> tuple[Any, optax.GradientTransformation]:
    """Model and optimizer of a stage; without `dataset` the data of the configuration is opened."""
    require_determinism(cfg.deterministic)
    if dataset is None:
        simulate.prepare(cfg)
        dataset = open_dataset(cfg)
    model = build_model(cfg, dataset.task, stage)
    plan = plan_of(cfg, dataset, stage)
    return model, build_optimizer(getattr(cfg.stages, stage), plan.total_steps, plan.steps_per_epoch)


def build_model(cfg: Config, task: Task, stage: str) -> Any:
    """The model that a stage trains on a task; ConfigError where the stage is not for it or widths do not divide."""
    spec = stage_of(stage)
    if task.kind not in spec.task_kinds:
        others = " or ".join(f"--stage {name}" for name in STAGES if task.kind in stage_of(name).task_kinds)
        kinds = " and ".join(spec.task_kinds)
        raise ConfigError(f"task {task.name} is {task.kind}, stage {stage} is for {kinds} tasks; use {others}")
    return spec.model(cfg, task)


def init_state(
    model: Any,
    tx: optax.GradientTransformation,
    batch: Batch,
    key: Key[Array, ""],
    *,
    stage: str = "operator",
    cfg: Config | None = None,
) -> TrainState:
    """A fresh state; `batch` lends its shapes. Deterministic in `key`.

    A configuration that looks for loss spikes has to be given: their window is a part of the state. With one, the state
    is made where `ups_jax.parallel` has it, never whole on one of several devices. The state of a stage with parents is
    then to be begun by them (`training.parents.begun`).
    """
    spec = stage_of(stage)

    def fresh(key: Key[Array, ""], batch: Batch) -> TrainState:
        first: Batch = {name: jnp.asarray(values)[:1] for name, values in batch.items()}
        params = spec.init(model, stream(key, "init"), first)
        return state_of(params, tx, key, cfg, scaled=len(model.task.channels) if spec.scaled else None)

    if cfg is None:
        return jax.jit(fresh)(key, batch)
    mesh = make_mesh(cfg.parallel)
    return jax.jit(lambda key, batch: keep_in_place(mesh, fresh(key, batch)))(key, batch)


def abstract_state(config: Config, task: Task, stage: str) -> TrainState:
    """Shapes of the train state that the configuration makes for a task, on whatever devices."""
    config = replace(config, parallel=ParallelConfig(data=1))
    frames = 1 if task.kind == "steady" else config.data.context + 1
    width = len(task.coefficients)
    batch = {
        "fields": jax.ShapeDtypeStruct((1, frames, *task.shape, len(task.channels)), jnp.float32),
        "inputs": jax.ShapeDtypeStruct((1, *task.shape, len(task.inputs)), jnp.float32),
        "dt": jax.ShapeDtypeStruct((1,), jnp.float32),
        "cond": jax.ShapeDtypeStruct((1, width), jnp.float32),
        "cond_mask": jax.ShapeDtypeStruct((1, width), jnp.float32),
    }
    # The lengths of a schedule shape no state.
    tx = build_optimizer(getattr(config.stages, stage), 1, 1)
    fresh = partial(init_state, build_model(config, task, stage), tx, stage=stage, cfg=config)
    return jax.eval_shape(fresh, batch, jax.random.key(0))
