"""Parents of a stage: the stages that must be trained before it, whose weights it uses as constants."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from ups_jax.config import Config
from ups_jax.core.rng import jax_stream_key
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
    """The trained parents of a stage; each attribute maps the name of a parent to its value.

    Attributes:
        weights: Averaged weights of the parent's best checkpoint.
        checkpoints: Step and digest of the parent's best checkpoint, for run.json.
        fingerprints: Fingerprint of the data on which the parent was trained.
    """

    weights: Parents
    checkpoints: dict[str, dict[str, Any]]
    fingerprints: dict[str, str]


def trained_parents(run: RunDirectory, stage: str, task_kind: str) -> TrainedParents:
    """Load the parents of a stage from their best checkpoints in a run.

    Args:
        task_kind: `transient` or `steady`.

    Raises:
        CheckpointError: A parent has no checkpoint; the message has the command that trains this parent.
    """
    best = {name: best_weights(run.path, name) for name in stage_spec(stage).required_stages(task_kind)}
    return TrainedParents(
        # By way of the host: restored arrays are committed to their device and others are not. A step with both kinds
        # of arguments would be compiled twice, for its first call and for the arrays that this call returns.
        weights={name: jax.device_put(jax.device_get(item.weights)) for name, item in best.items()},
        checkpoints={name: {"step": item.step, "digest": item.digest} for name, item in best.items()},
        fingerprints={name: item.fingerprint for name, item in best.items()},
    )


def untrained_parents(cfg: Config, task: Task, stage: str, batch: Batch) -> Parents:
    """Return the initial weights of a stage's parents, for measurements that do not need trained weights."""
    row = first_row(batch)
    key = jax.random.key(cfg.seed)

    def initial_weights(name: str) -> Any:
        spec = stage_spec(name)
        scale = jnp.ones(len(task.channels)) if spec.has_scale else None
        return spec.build_weights(spec.init(build_model(cfg, task, name), jax_stream_key(key, "init"), row), scale)

    return {name: jax.jit(initial_weights, static_argnums=0)(name) for name in STAGE_NEEDS[task.kind].get(stage, ())}


def init_from_parents(
    cfg: Config, stage: str, model: Any, data: Dataset | Mixture, parents: Parents, state: TrainState
) -> TrainState:
    """Return the state from `init_state` with the values that the stage derives from its parents.

    Args:
        stage: Name of the stage; a stage with parents has a single task.
        data: Data of the stage, from whose batches some stages compute these values.
        parents: Weights of the parents; if empty, `state` is returned unchanged.
        state: State from `init_state`.
    """
    if not parents:
        return state
    batches = (batch_at(data, cfg, stage, number) for number in itertools.count())
    return stage_spec(stage).init_from_parents(as_joint_model(model).models[0], cfg, parents, state, batches)
