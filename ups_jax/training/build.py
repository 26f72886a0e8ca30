"""From configuration and data to a stage's model, its optimizer and a fresh state."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Key

from ups_jax import simulate
from ups_jax.config import Config, ParallelConfig
from ups_jax.data import Dataset, Mixture, mixture_of, open_mixture
from ups_jax.determinism import require_determinism
from ups_jax.errors import ConfigError
from ups_jax.losses import Batch
from ups_jax.models.sharing import sharing_of
from ups_jax.optim import build_optimizer
from ups_jax.parallel import keep_in_place, make_mesh
from ups_jax.streams import stream
from ups_jax.task import Task
from ups_jax.training.joint import JointModel, example, joint
from ups_jax.training.plan import plan_of
from ups_jax.training.stages import STAGES, stage_of
from ups_jax.training.state import TrainState, state_of


def build(
    cfg: Config, dataset: Dataset | Mixture | None = None, *, stage: str = "operator"
) -> tuple[Any, optax.GradientTransformation]:
    """Model and optimizer of a stage; without `dataset` the data of the configuration is opened. Of several tasks the
    model is a `JointModel`."""
    require_determinism(cfg.deterministic)
    if dataset is None:
        simulate.prepare(cfg)
        data: Dataset | Mixture = open_mixture(cfg)
    else:
        data = dataset
    model = build_joint(cfg, mixture_of(data).tasks, stage)
    plan = plan_of(cfg, data, stage)
    tx = build_optimizer(getattr(cfg.stages, stage), plan.total_steps, plan.steps_per_epoch)
    return model.models[0] if len(model.models) == 1 else model, tx


def build_model(cfg: Config, task: Task, stage: str) -> Any:
    """The model that a stage trains on a task; ConfigError where the stage is not for it or widths do not divide."""
    spec = stage_of(stage)
    if task.kind not in spec.task_kinds:
        others = " or ".join(f"--stage {name}" for name in STAGES if task.kind in stage_of(name).task_kinds)
        kinds = " and ".join(spec.task_kinds)
        raise ConfigError(f"task {task.name} is {task.kind}, stage {stage} is for {kinds} tasks; use {others}")
    if task.scattered and not spec.scattered:
        raise ConfigError(f"task {task.name} is of points, stage {stage} is for grids; use --stage operator")
    return spec.model(cfg, task)


def build_joint(cfg: Config, tasks: Sequence[Task], stage: str) -> JointModel:
    """The models that a stage trains on all tasks; ConfigError where the stage takes one task only."""
    models = tuple(build_model(cfg, task, stage) for task in tasks)
    if len(models) == 1:
        # Alone it shares with nobody: no shapes have to be looked at.
        return JointModel(models)
    spec = stage_of(stage)
    if spec.scaled or spec.self_taught:
        names = ", ".join(task.name for task in tasks)
        raise ConfigError(
            f"stage {stage} is trained on one task, data.tasks has {len(tasks)} ({names}); set stages.{stage}.epochs "
            "to 0, or train a run on one of them for it"
        )
    examples = tuple(example(task, frames_of(cfg, task)) for task in tasks)
    key = jax.random.key(0)
    trees = [jax.eval_shape(partial(spec.init, model), key, row) for model, row in zip(models, examples, strict=True)]
    return JointModel(models, sharing_of([task.name for task in tasks], trees), examples)


def frames_of(cfg: Config, task: Task) -> int:
    """Frames of the shortest window that a stage can be begun with."""
    return 1 if task.kind == "steady" else cfg.data.context + 1


def init_state(
    model: Any,
    tx: optax.GradientTransformation,
    batch: Batch,
    key: Key[Array, ""],
    *,
    stage: str = "operator",
    cfg: Config | None = None,
) -> TrainState:
    """A fresh state; `batch`, of several tasks one of the first, lends its shapes. Deterministic in `key`.

    A configuration that looks for loss spikes has to be given: their window is a part of the state. With one, the state
    is made where `ups_jax.parallel` has it, never whole on one of several devices. The state of a stage with parents is
    then to be begun by them (`training.parents.begun`).
    """
    spec, whole = stage_of(stage), joint(model)

    def fresh(key: Key[Array, ""], batch: Batch) -> TrainState:
        first: Batch = {name: jnp.asarray(values)[:1] for name, values in batch.items()}
        params = whole.init(spec, stream(key, "init"), first)
        return state_of(params, tx, key, cfg, scaled=len(whole.task.channels) if spec.scaled else None)

    if cfg is None:
        return jax.jit(fresh)(key, batch)
    mesh = make_mesh(cfg.parallel)
    return jax.jit(lambda key, batch: keep_in_place(mesh, fresh(key, batch)))(key, batch)


def abstract_state(config: Config, task: Task | Sequence[Task], stage: str) -> TrainState:
    """Shapes of the train state that the configuration makes for a task or several, on whatever devices."""
    tasks = (task,) if isinstance(task, Task) else tuple(task)
    config = replace(config, parallel=ParallelConfig(data=1))
    # The lengths of a schedule shape no state.
    tx = build_optimizer(getattr(config.stages, stage), 1, 1)
    fresh = partial(init_state, build_joint(config, tasks, stage), tx, stage=stage, cfg=config)
    return jax.eval_shape(fresh, example(tasks[0], frames_of(config, tasks[0])), jax.random.key(0))
