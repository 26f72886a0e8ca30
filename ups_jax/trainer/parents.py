"""The parents of a stage: the averaged weights of the best checkpoints of the stages that it needs, held constant."""

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
from ups_jax.training.build import build_model, joint
from ups_jax.training.stages import stage_of
from ups_jax.training.stages.spec import Parents
from ups_jax.training.state import TrainState


@dataclass(frozen=True, kw_only=True)
class Trained:
    """`weights` of the stages that were needed, and for the record the step and the digest of their checkpoints;
    `fingerprints` of the data that they were trained on."""

    weights: Parents
    checkpoints: dict[str, dict[str, Any]]
    fingerprints: dict[str, str]


def trained_parents(run: RunDirectory, stage: str, kind: str) -> Trained:
    """What a run has of them; CheckpointError, with the command that makes it, for one that it has not."""
    found = {name: best_weights(run.path, name) for name in stage_of(stage).needs(kind)}
    return Trained(
        # By way of the host: restored arrays are bound to their device, others are not, and a step whose arguments are
        # so mixed is compiled once for its first call and once more for what that call gives back.
        weights={name: jax.device_put(jax.device_get(item.weights)) for name, item in found.items()},
        checkpoints={name: {"step": item.step, "digest": item.digest} for name, item in found.items()},
        fingerprints={name: item.fingerprint for name, item in found.items()},
    )


def untrained_parents(cfg: Config, task: Task, stage: str, batch: Batch) -> Parents:
    """Weights of their shapes, for a step that is only measured."""
    first = first_row(batch)
    key = jax.random.key(cfg.seed)

    def fresh(name: str) -> Any:
        spec = stage_of(name)
        scale = jnp.ones(len(task.channels)) if spec.scaled else None
        return spec.weights(spec.init(build_model(cfg, task, name), stream(key, "init"), first), scale)

    return {name: jax.jit(fresh, static_argnums=0)(name) for name in STAGE_NEEDS[task.kind].get(stage, ())}


def begun(
    cfg: Config, stage: str, model: Any, data: Dataset | Mixture, parents: Parents, state: TrainState
) -> TrainState:
    """The first state of a stage: what `init_state` made, with what its parents give it. A stage with parents is of one
    task."""
    if not parents:
        return state
    batches = (batch_at(data, cfg, stage, number) for number in itertools.count())
    return stage_of(stage).begin(joint(model).models[0], cfg, parents, state, batches)
