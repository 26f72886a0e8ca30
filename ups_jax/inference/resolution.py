"""Predictions of a trained model for data with another resolution than its training data.

On a finer grid the model still steps on its trained grid if possible: local operations such as convolutions are trained
for one grid spacing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

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
from ups_jax.models.grid import interpolate_to_grid


@dataclass(frozen=True)
class FinerPredictor:
    """A trained model for data on the finer grid of `task`, as a `Predictor` for `ups_jax.evaluation.evaluate`.

    Context frames are restricted to the trained grid, the model steps there, and its predictions are interpolated to
    the finer grid.
    """

    trained_model: TrainedModel
    task: Task

    def rollout_arrays(
        self, u0: Float[np.ndarray, "b k *f c"], steps: int, cond: np.ndarray, cond_mask: np.ndarray
    ) -> Float[np.ndarray, "b t *f c"]:
        """Return the `steps` frames after the context `u0`; the model re-encodes each frame on its trained grid."""
        return self._to_fine_grid(self.trained_model.rollout_arrays(self._to_trained_grid(u0), steps, cond, cond_mask))

    def latent_rollout(
        self, u0: Float[np.ndarray, "b k *f c"], steps: int, cond: np.ndarray, cond_mask: np.ndarray
    ) -> Float[np.ndarray, "b t *f c"]:
        """Return the `steps` frames after the context `u0`, which is encoded once and advanced in latent space."""
        return self._to_fine_grid(self.trained_model.latent_rollout(self._to_trained_grid(u0), steps, cond, cond_mask))

    def reconstruct(
        self, fields: Float[np.ndarray, "b t *f c"], cond: np.ndarray, cond_mask: np.ndarray
    ) -> Float[np.ndarray, "b t *f c"]:
        """Return decode(encode(fields)), computed on the trained grid."""
        return self._to_fine_grid(self.trained_model.reconstruct(self._to_trained_grid(fields), cond, cond_mask))

    def _to_trained_grid(self, fields: Float[np.ndarray, "b t *f c"]) -> Float[np.ndarray, "b t *s c"]:
        """Return fields on the finer grid, interpolated to the trained grid."""
        return np.asarray(self._restrict(jnp.asarray(fields, jnp.float32)))

    def _to_fine_grid(self, fields: Float[np.ndarray, "b t *s c"]) -> Float[np.ndarray, "b t *f c"]:
        """Return fields on the trained grid, interpolated to the finer grid."""
        return np.asarray(self._prolong(jnp.asarray(fields)))

    @cached_property
    def _restrict(self) -> Callable[[Array], Array]:
        """The jitted interpolation from the finer to the trained grid."""
        return jax.jit(lambda fields: interpolate_fields(fields, self.task, self.trained_model.task))

    @cached_property
    def _prolong(self) -> Callable[[Array], Array]:
        """The jitted interpolation from the trained to the finer grid."""
        # The decoder evaluates any point by interpolating the field on its grid. Interpolation is linear, so it may as
        # well follow the conversion to physical units.
        return jax.jit(lambda fields: interpolate_fields(fields, self.trained_model.task, self.task))


def interpolate_fields(
    fields: Float[Array, "b t *s c"], source_task: Task, target_task: Task
) -> Float[Array, "b t *f c"]:
    """Return fields on the grid of `source_task`, interpolated to the grid of `target_task`.

    Points that both grids share keep their value exactly.
    """
    frames = fields.reshape(-1, *fields.shape[2:])
    result = interpolate_to_grid(
        frames, grid_coordinates(target_task), source_task.origin, source_task.spacing, source_task.periodic
    )
    return result.reshape(*fields.shape[:2], *result.shape[1:])


def grid_coordinates(task: Task) -> list[Float[np.ndarray, " _"]]:
    """Return the coordinates of a task's grid points along each axis, in float64."""
    return [
        start + step * np.arange(points)
        for start, step, points in zip(task.origin, task.spacing, task.shape, strict=True)
    ]


def refines(fine: Task, trained: Task) -> bool:
    """Return whether the grid of `fine` refines the grid of `trained` by integer factors over the same extent."""
    axes = zip(fine.shape, fine.spacing, fine.origin, trained.shape, trained.spacing, trained.origin, strict=True)
    return fine.shape != trained.shape and all(
        points % trained_points == 0
        and np.isclose(points * step, trained_points * trained_step, rtol=1e-4, atol=0)
        # With points at cell corners the first points coincide; cell centres differ by less than a trained cell.
        and abs(start - trained_start) < trained_step
        for points, step, start, trained_points, trained_step, trained_start in axes
    )


def predictor_for_grid(run: TrainedModel, task: Task) -> tuple[TrainedModel | FinerPredictor, str]:
    """Return the trained model as a predictor for data on the grid of `task`, and its key in `RESOLUTION_MODES`.

    Raises:
        DataError: The time step differs from the trained one, or the model cannot step on the grid.
    """
    if run.task.kind == "steady":
        return run.on_grid_of(task), "own" if task.shape == run.task.shape else "averaged"
    if run.task.scattered or (
        task.shape == run.task.shape and np.allclose(task.spacing, run.task.spacing, rtol=1e-3, atol=0)
    ):
        return run.on_grid_of(task), "own"
    if refines(task, run.task):
        run.check_time_step(task.dt)
        return FinerPredictor(run, task), "restricted"
    return run.on_grid_of(task), "native"


RESOLUTION_MODES = {
    "own": "the model steps on the grid it was trained on",
    "restricted": "the model steps on the grid it was trained on; its predictions are interpolated to the data's grid",
    "averaged": "input fields are averaged over the trained cells; solutions are interpolated to the data's grid",
    "native": "the model steps on the data's grid, whose spacing differs from that of the training data",
}


def split_mismatch_note(run: TrainedModel, cfg: Config, dataset: Dataset, split: Split) -> str | None:
    """Return a warning if finer data has other trajectories in a split than the training data, otherwise None.

    Trajectories are equal if they have the same ids and their first frames agree on the trained grid.

    Args:
        cfg: Configuration whose `data.root` is the folder of the training data.
        dataset: The finer data.
    """
    name = dataset.source.name
    try:
        trained_cfg = replace(run.config, data=replace(run.config.data, root=cfg.data.root))
        source, splits = open_source(trained_cfg, trained_cfg.data.tasks[0])
    except DataError as error:
        return f"{name}: cannot be compared with the data that the run was trained on ({error})"
    ids = dataset.splits.ids(split)
    note = (
        f"{name}: its {split} trajectories differ from the {split} trajectories of {source.name}; "
        "the run may have been trained on some of them"
    )
    if not np.array_equal(ids, splits.ids(split)):
        return note
    first_frame = np.zeros((len(ids), 1), int)
    # In float64, because squares of physical values can exceed the range of float32.
    trained_frames = source.read(ids, first_frame).astype(np.float64)
    fine_frames = dataset.source.read(ids, first_frame)
    restricted_frames = np.asarray(interpolate_fields(jnp.asarray(fine_frames), dataset.task, run.task))
    # Interpolation to cell centres has a small error; two different trajectories have a relative error of about 1.
    difference = np.square(restricted_frames - trained_frames).mean()
    return note if difference > 0.05**2 * np.square(trained_frames).mean() else None
