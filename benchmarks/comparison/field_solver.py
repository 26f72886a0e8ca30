"""A steady solver without tokens, and runs of steady solvers: what peers need to be trained and measured as ours is."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from comparison.field_simulator import constant_channels
from ups_jax.core.task import Task
from ups_jax.inference.inputs import make_conditions
from ups_jax.models import Conditions, SteadySimulator
from ups_jax.rollout.steady import steady_rollout


class FieldSolver(SteadySimulator):
    """`net` maps the given fields, constant coefficient channels and positions to the normalised solution.

    Positions are given for axes that are not periodic. With a last layer that starts at zero, the solution before
    training is the mean field, as with the library's own.
    """

    net: nn.Module | None = None

    def __call__(self, inputs: Float[Array, "b *s i"], cond: Conditions) -> Float[Array, "b *s c"]:
        assert self.net is not None
        channels = [inputs, constant_channels(cond, self.task, inputs), walls(self.task, inputs)]
        return self.net(jnp.concatenate(channels, axis=-1))


def walls(task: Task, like: Float[Array, "b *s i"]) -> Float[Array, "b *s a"]:
    """Positions along the axes that are not periodic, -1 and 1 at the walls; the points are centres of cells."""
    lines = [2 * (np.arange(points) + 0.5) / points - 1 for points in task.shape]
    grids = np.meshgrid(*lines, indexing="ij")
    kept = [grid for grid, wraps in zip(grids, task.periodic, strict=True) if not wraps]
    columns = np.stack(kept, -1) if kept else np.zeros((*task.shape, 0))
    return jnp.broadcast_to(jnp.asarray(columns, like.dtype)[None], (len(like), *columns.shape))


@dataclass(frozen=True)
class SolverRun:
    """A trained steady model, the library's or a field solver: physical fields in and out.

    On a finer grid than that of `task` the given fields are averaged, solved on the grid of `task`, and interpolated.
    """

    model: Any
    weights: Any
    task: Task

    def on_grid_of(self, task: Task) -> SolverRun:
        """Return a solver with these parameters that solves on the grid of `task` itself."""
        return SolverRun(self.model.clone(task=task), self.weights, task)

    def rollout_arrays(self, inputs: np.ndarray, steps: int, cond: np.ndarray, cond_mask: np.ndarray) -> np.ndarray:
        """Return the solutions at the points of the given fields, at `steps` times."""
        conditions = make_conditions(self.task, cond, cond_mask)
        return np.asarray(self._compiled(self.weights, jnp.asarray(inputs), conditions, steps=steps))

    @cached_property
    def _compiled(self) -> Any:
        return jax.jit(partial(steady_rollout, self.model), static_argnames="steps")
