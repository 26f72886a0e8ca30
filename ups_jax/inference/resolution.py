"""A trained run on data of another resolution: which way it is evaluated, and the predictor of that way.

Stepped natively on a finer grid, the local parts of a model see neighbours that lie closer than they have learned.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ups_jax.config import Config
from ups_jax.core.errors import DataError
from ups_jax.core.task import Task
from ups_jax.data import Dataset, Split
from ups_jax.data.files import open_source
from ups_jax.inference.trained_model import TrainedModel
from ups_jax.models.grid import interpolate_lines


@dataclass(frozen=True)
class FinerPredictor:
    """The `Predictor` of a trained run on a finer grid than its own, the one of `task`.

    What is given is restricted to the trained points, stepped there, and decoded at the finer ones.
    """

    run: TrainedModel
    task: Task

    def rollout_arrays(
        self, u0: Float[np.ndarray, "b k *f c"], steps: int, cond: np.ndarray, cond_mask: np.ndarray
    ) -> Float[np.ndarray, "b t *f c"]:
        """The `steps` frames after the context `u0`; each prediction is encoded anew on the trained grid."""
        return self._decoded(self.run.rollout_arrays(self._restricted(u0), steps, cond, cond_mask))

    def latent_rollout(
        self, u0: Float[np.ndarray, "b k *f c"], steps: int, cond: np.ndarray, cond_mask: np.ndarray
    ) -> Float[np.ndarray, "b t *f c"]:
        """The `steps` frames after the context `u0`, which is encoded once."""
        return self._decoded(self.run.latent_rollout(self._restricted(u0), steps, cond, cond_mask))

    def reconstruct(
        self, fields: Float[np.ndarray, "b t *f c"], cond: np.ndarray, cond_mask: np.ndarray
    ) -> Float[np.ndarray, "b t *f c"]:
        """decode(encode(fields)): what the trained grid and the codec cannot represent."""
        return self._decoded(self.run.reconstruct(self._restricted(fields), cond, cond_mask))

    def _restricted(self, fields: Float[np.ndarray, "b t *f c"]) -> Float[np.ndarray, "b t *s c"]:
        return np.asarray(self._restrict(jnp.asarray(fields, jnp.float32)))

    def _decoded(self, fields: Float[np.ndarray, "b t *s c"]) -> Float[np.ndarray, "b t *f c"]:
        return np.asarray(self._decode(jnp.asarray(fields)))

    @cached_property
    def _restrict(self) -> Any:
        return jax.jit(lambda fields: moved(fields, self.task, self.run.task))

    @cached_property
    def _decode(self) -> Any:
        # The model decodes at any point by interpolating its grid's field, which is linear: units and order are free.
        return jax.jit(lambda fields: moved(fields, self.run.task, self.task))


def moved(fields: Float[Array, "b t *s c"], here: Task, there: Task) -> Float[Array, "b t *f c"]:
    """Frames on the grid of one task at the points of another's; where both have a point, the value itself."""
    frames = fields.reshape(-1, *fields.shape[2:])
    result = interpolate_lines(frames, lines(there), here.origin, here.spacing, here.periodic)
    return result.reshape(*fields.shape[:2], *result.shape[1:])


def lines(task: Task) -> list[Float[np.ndarray, " _"]]:
    """The coordinates of a task's grid points along each axis, in float64."""
    return [
        start + step * np.arange(points)
        for start, step, points in zip(task.origin, task.spacing, task.shape, strict=True)
    ]


def refines(fine: Task, trained: Task) -> bool:
    """Whether a grid has an integer multiple of the trained points on every axis, over the same extent."""
    axes = zip(fine.shape, fine.spacing, fine.origin, trained.shape, trained.spacing, trained.origin, strict=True)
    return fine.shape != trained.shape and all(
        points % own_points == 0
        and np.isclose(points * step, own_points * own_step, rtol=1e-4, atol=0)
        # Points at the start of a cell lie on one another; centres of cells are less than a cell apart.
        and abs(start - own_start) < own_step
        for points, step, start, own_points, own_step, own_start in axes
    )


def predictor_on(run: TrainedModel, task: Task) -> tuple[TrainedModel | FinerPredictor, str]:
    """The predictor of a run for the data of a task, and its way, one of `WAYS`.

    Raises DataError where the time step is another, or the grid neither refines the trained one nor can be cut.
    """
    if run.task.kind == "steady":
        return run.on(task), "own" if task.shape == run.task.shape else "averaged"
    if run.task.scattered or (
        task.shape == run.task.shape and np.allclose(task.spacing, run.task.spacing, rtol=1e-3, atol=0)
    ):
        return run.on(task), "own"
    if refines(task, run.task):
        run.check_time_step(task.dt)
        return FinerPredictor(run, task), "restricted"
    return run.on(task), "native"


WAYS = {
    "own": "the model steps on the grid it was trained on",
    "restricted": "contexts are restricted to the trained points, stepped there, and decoded at the data's points",
    "averaged": "given fields are averaged over the trained cells, solved there, and interpolated at the data's points",
    "native": "the model steps on the data's points, with another spacing than it has learned",
}


def other_trajectories(run: TrainedModel, cfg: Config, dataset: Dataset, split: Split) -> str | None:
    """A note where finer data may hold other trajectories in a split than the run's own data; None where it does not.

    The same ones have the same numbers and start from the same frame at the trained points; a solution is a frame.
    """
    name = dataset.source.name
    try:
        known = replace(run.config, data=replace(run.config.data, root=cfg.data.root))
        source, parts = open_source(known, known.data.tasks[0])
    except DataError as error:
        return f"{name}: cannot be compared with the data that the run was trained on ({error})"
    ids = dataset.splits.ids(split)
    told = f"{name}: its {split} trajectories are not those of {source.name}; the run may have been trained on some"
    if not np.array_equal(ids, parts.ids(split)):
        return told
    zero = np.zeros((len(ids), 1), int)
    own = source.windows(ids, zero)
    first = np.asarray(moved(jnp.asarray(dataset.source.windows(ids, zero)), dataset.task, run.task))
    # Cell centres are met by interpolation only; two trajectories differ by 1 and more.
    return told if np.square(first - own).mean() > 0.05**2 * np.square(own).mean() else None
