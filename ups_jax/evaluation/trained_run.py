"""A trained run, loaded from its directory: physical fields in, physical fields out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from ups_jax.config import Config, from_dict
from ups_jax.errors import CheckpointError, DataError
from ups_jax.models import Conditions, Simulator
from ups_jax.models.grid import patch_of
from ups_jax.optim import build_optimizer
from ups_jax.rollout import reconstruct, rollout
from ups_jax.task import Task
from ups_jax.training.build import build_model, init_state
from ups_jax.training.checkpoint import Checkpoints, best_weights
from ups_jax.training.run_directory import RunDirectory


@dataclass(frozen=True)
class TrainedRun:
    """Model, averaged parameters and task of a run's best checkpoint. Functions are compiled once a shape."""

    path: Path
    config: Config
    task: Task
    model: Simulator
    weights: Any
    step: int

    def rollout(
        self,
        u0: Float[np.ndarray, "b *s c"],
        steps: int,
        params: Mapping[str, float | Float[np.ndarray, " b"]] | None = None,
        dt: float | None = None,
    ) -> Float[np.ndarray, "b t *s c"]:
        """The `steps` frames after `u0`, in physical units.

        `u0` is one frame a sample `(b, *grid, channels)`, or with the run's context `(b, context, *grid, channels)`.
        `params` gives PDE coefficients by name, one for all or one a sample; one that is left out counts as unknown.
        `dt` is the physical time between frames, the training data's unless given. DataError where shapes or names
        are not the run's.
        """
        fields = np.asarray(u0, np.float32)
        frame = (*self.task.shape, len(self.task.channels))
        if fields.ndim == len(frame) + 1 and self.model.context == 1:
            fields = fields[:, None]
        if fields.shape[1:] != (self.model.context, *frame):
            expected = " x ".join(map(str, ("b", *((self.model.context,) if self.model.context > 1 else ()), *frame)))
            raise DataError(f"u0 has shape {np.shape(u0)}; this run takes {expected} (samples, grid, channels)")
        if not np.isfinite(fields).all():
            raise DataError("u0 holds NaN or Inf")
        values, mask = self._coefficients(len(fields), params or {})
        return self._rollout(fields, steps, values, mask, self.task.dt if dt is None else dt)

    def predictor(self) -> TrainedPredictor:
        """The same run with coefficients as arrays, as the evaluation wants it."""
        return TrainedPredictor(self)

    def _coefficients(self, batch: int, params: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray]:
        names = [coefficient.name for coefficient in self.task.coefficients]
        unknown = set(params) - set(names)
        if unknown:
            raise DataError(
                f"the run knows no coefficient {', '.join(sorted(unknown))}; it has {', '.join(names) or 'none'}"
            )
        values, mask = np.zeros((batch, len(names)), np.float32), np.zeros((batch, len(names)), np.float32)
        for column, name in enumerate(names):
            if name in params:
                values[:, column], mask[:, column] = params[name], 1.0
        return values, mask

    def _rollout(
        self, fields: np.ndarray, steps: int, values: np.ndarray, mask: np.ndarray, dt: float
    ) -> Float[np.ndarray, "b t *s c"]:
        cond = Conditions(
            dt=jnp.full(len(fields), dt, jnp.float32),
            coefficients=jnp.asarray(values, jnp.float32),
            mask=jnp.asarray(mask, jnp.float32),
        )
        return np.asarray(self._compiled(self.weights, jnp.asarray(fields), cond, steps=steps))

    @cached_property
    def _compiled(self) -> Any:
        return jax.jit(partial(rollout, self.model), static_argnames="steps")

    @cached_property
    def _compiled_codec(self) -> Any:
        return jax.jit(partial(reconstruct, self.model))


@dataclass(frozen=True)
class TrainedPredictor:
    """The `Predictor` of a trained run."""

    run: TrainedRun

    def rollout(
        self, u0: np.ndarray, steps: int, cond: np.ndarray, cond_mask: np.ndarray
    ) -> Float[np.ndarray, "b t *s c"]:
        """The `steps` frames after the context `u0`."""
        return self.run._rollout(np.asarray(u0, np.float32), steps, cond, cond_mask, self.run.task.dt)

    def reconstruct(self, fields: np.ndarray, cond: np.ndarray, cond_mask: np.ndarray) -> Float[np.ndarray, "b t *s c"]:
        """decode(encode(fields))."""
        return np.asarray(self.run._compiled_codec(self.run.weights, jnp.asarray(fields, jnp.float32)))


def load_run(path: str | Path, *, stage: str = "operator", task: Task | None = None) -> TrainedRun:
    """The best checkpoint of a run, with averaged parameters; CheckpointError where there is none.

    `task` puts the same parameters on another grid or time step; the statistics stay the run's own.
    """
    run = RunDirectory(Path(path))
    run.read()
    directory = run.checkpoints(stage)
    if not directory.is_dir():
        raise CheckpointError(
            f"{run.path}: has no checkpoint of {stage}; train it with scripts/train.py --stage {stage}"
        )
    with Checkpoints(directory, read_only=True) as checkpoints:
        step = checkpoints.best_step()
        if step is None:
            raise CheckpointError(f"{directory}: holds no checkpoint; start the training command again")
        meta = checkpoints.meta(step)
    config = from_dict(meta["config"], f"{directory / str(step)}")
    own = Task.from_dict(meta["task"])
    like = abstract_state(config, own)
    weights, step = best_weights(directory, like)
    placed = own if task is None else replace(task, statistics=own.statistics, coefficients=own.coefficients)
    if patch_of(placed.shape, config.latent.patch_size) != patch_of(own.shape, config.latent.patch_size):
        raise DataError(
            f"{run.path}: was trained on a grid of {own.shape} points and cuts it into patches of "
            f"{patch_of(own.shape, config.latent.patch_size)}, which a grid of {placed.shape} does not divide into"
        )
    return TrainedRun(run.path, config, placed, build_model(config, placed), weights, step)


def abstract_state(config: Config, task: Task) -> Any:
    """Shapes of the train state that the configuration makes for a task."""
    frames = config.data.context + 1
    width = len(task.coefficients)
    batch = {
        "fields": jax.ShapeDtypeStruct((1, frames, *task.shape, len(task.channels)), jnp.float32),
        "dt": jax.ShapeDtypeStruct((1,), jnp.float32),
        "cond": jax.ShapeDtypeStruct((1, width), jnp.float32),
        "cond_mask": jax.ShapeDtypeStruct((1, width), jnp.float32),
    }
    tx = build_optimizer(config.stages.operator, 1)
    return jax.eval_shape(partial(init_state, build_model(config, task), tx), batch, jax.random.key(0))
