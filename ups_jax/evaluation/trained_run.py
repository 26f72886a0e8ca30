"""A trained run, loaded from its directory: physical fields in, physical fields out."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from ups_jax.config import Config
from ups_jax.errors import DataError
from ups_jax.models import Conditions, Simulator
from ups_jax.models.grid import patch_of
from ups_jax.rollout import reconstruct, rollout
from ups_jax.task import Task
from ups_jax.training.build import build_model
from ups_jax.training.weights import best_weights


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
        u0: Float[np.ndarray, "b *history c"],
        steps: int,
        params: Mapping[str, float | np.floating | Float[np.ndarray, " b"]] | None = None,
        dt: float | None = None,
    ) -> Float[np.ndarray, "b t *s c"]:
        """The `steps` frames after `u0`, in physical units.

        `u0` is one frame a sample `(b, *grid, channels)`, or with the run's context `(b, context, *grid, channels)`.
        `params` gives PDE coefficients by name, one for all or one a sample; one that is left out counts as its
        training mean, with a warning. `dt` is the physical time between frames, which must be the training data's.
        DataError where shapes, names or the time step are not the run's.
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
        _check_time_step(self.task.dt if dt is None else dt, self.task)
        return self._rollout(fields, steps, *self._coefficients(len(fields), params or {}))

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
        for column, coefficient in enumerate(self.task.coefficients):
            if coefficient.name not in params:
                warnings.warn(f"coefficient {coefficient.name} is not given; its training mean is taken", stacklevel=3)
            else:
                values[:, column], mask[:, column] = params[coefficient.name], 1.0
                given = values[:, column]
                if not np.isfinite(given).all() or (coefficient.scale == "log10" and (given <= 0).any()):
                    kind = "a positive number" if coefficient.scale == "log10" else "a finite number"
                    raise DataError(f"coefficient {coefficient.name} is {params[coefficient.name]!r}; give {kind}")
        return values, mask

    def _rollout(
        self, fields: np.ndarray, steps: int, values: np.ndarray, mask: np.ndarray
    ) -> Float[np.ndarray, "b t *s c"]:
        cond = Conditions(
            dt=jnp.full(len(fields), self.task.dt, jnp.float32),
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
        return self.run._rollout(np.asarray(u0, np.float32), steps, cond, cond_mask)

    def reconstruct(self, fields: np.ndarray, cond: np.ndarray, cond_mask: np.ndarray) -> Float[np.ndarray, "b t *s c"]:
        """decode(encode(fields))."""
        return np.asarray(self.run._compiled_codec(self.run.weights, jnp.asarray(fields, jnp.float32)))


def load_run(path: str | Path, *, stage: str = "operator", task: Task | None = None) -> TrainedRun:
    """The best checkpoint of a run, with averaged parameters; CheckpointError where there is none.

    `task` puts the same parameters on its grid. DataError where its time step is another or its grid cannot be cut.
    """
    weights = best_weights(Path(path), stage)
    config, own = weights.config, weights.task
    placed = own if task is None else replace(own, shape=task.shape, origin=task.origin, spacing=task.spacing)
    if task is not None:
        _check_time_step(task.dt, own)
    if patch_of(placed.shape, config.latent.patch_size) != patch_of(own.shape, config.latent.patch_size):
        raise DataError(
            f"{path}: was trained on a grid of {own.shape} points and cuts it into patches of "
            f"{patch_of(own.shape, config.latent.patch_size)}, which a grid of {placed.shape} does not divide into"
        )
    return TrainedRun(Path(path), config, placed, build_model(config, placed, stage), weights.params, weights.step)


def _check_time_step(dt: float, task: Task) -> None:
    """Refuse what the model cannot know: it has seen one time step only."""
    if not abs(dt / task.dt - 1) < 1e-3:
        raise DataError(f"the time step is {dt:g}, and this run was trained on frames {task.dt:g} apart only")
