"""Parents of a stage: the stages that it needs, with the averaged weights of their best checkpoints held constant."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from ups_jax.config import Config
from ups_jax.core.rng import stream
from ups_jax.core.stage_names import STAGE_NEEDS
from ups_jax.core.task import Task
from ups_jax.data import Dataset, Mixture, batch_at
from ups_jax.models import Batch, first_row
from ups_jax.runs.best_weights import best_weights
from ups_jax.runs.directory import RunDirectory
from ups_jax.training.build import as_joint_model, build_model
from ups_jax.training.stages import stage_spec
from ups_jax.training.stages.spec import Parents
from ups_jax.training.state import TrainState


@dataclass(frozen=True, kw_only=True)
class TrainedParents:
    """The trained stages that a stage needs, by name.

    Attributes:
        weights: Their averaged weights.
        checkpoints: Step and digest of their checkpoints, for run.json.
        fingerprints: Fingerprints of the data on which they were trained.
    """

    weights: Parents
    checkpoints: dict[str, dict[str, Any]]
    fingerprints: dict[str, str]


def trained_parents(run: RunDirectory, stage: str, kind: str) -> TrainedParents:
    """Return the parents of a stage from the best checkpoints of a run.

    Args:
        run: Run directory.
        stage: Name of the stage that needs the parents.
        kind: Kind of the task, `transient` or `steady`.

    Raises:
        CheckpointError: The run lacks a parent; the message has the command that trains it.
    """
    best = {name: best_weights(run.path, name) for name in stage_spec(stage).required_stages(kind)}
    return TrainedParents(
        # By way of the host: restored arrays are committed to their device and others are not. A step with both kinds
        # of arguments would be compiled twice, for its first call and for the arrays that this call returns.
        weights={name: jax.device_put(jax.device_get(item.weights)) for name, item in best.items()},
        checkpoints={name: {"step": item.step, "digest": item.digest} for name, item in best.items()},
        fingerprints={name: item.fingerprint for name, item in best.items()},
    )


def untrained_parents(cfg: Config, task: Task, stage: str, batch: Batch) -> Parents:
    """Return initial weights for the parents of a stage, for measurements that do not need trained weights."""
    row = first_row(batch)
    key = jax.random.key(cfg.seed)

    def initial_weights(name: str) -> Any:
        spec = stage_spec(name)
        scale = jnp.ones(len(task.channels)) if spec.has_scale else None
        return spec.build_weights(spec.init(build_model(cfg, task, name), stream(key, "init"), row), scale)

    return {name: jax.jit(initial_weights, static_argnums=0)(name) for name in STAGE_NEEDS[task.kind].get(stage, ())}


def init_from_parents(
    cfg: Config, stage: str, model: Any, data: Dataset | Mixture, parents: Parents, state: TrainState
) -> TrainState:
    """Return the first state of a stage, with the values that it takes from its parents.

    Args:
        cfg: Configuration.
        stage: Name of the stage; a stage with parents has a single task.
        model: Model of the stage.
        data: Data of the stage, for stages that initialise from batches.
        parents: Weights of the parents; without any, `state` is returned unchanged.
        state: State from `init_state`.
    """
    if not parents:
        return state
    batches = (batch_at(data, cfg, stage, number) for number in itertools.count())
    return stage_spec(stage).init_from_parents(as_joint_model(model).models[0], cfg, parents, state, batches)
