"""Solutions of a steady simulator in physical units, on the grid that it was trained on or a finer one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from ups_jax.core.errors import DataError
from ups_jax.core.task import Task
from ups_jax.models import Conditions, SteadySimulator, denormalize, normalize_inputs, steady_field
from ups_jax.models.grid import cell_average, cell_centers, interpolate_to_grid


def solve(
    model: SteadySimulator,
    params: Any,
    inputs: Float[Array, "b *s i"],
    cond: Conditions,
    correct: Callable[[Array, Array, Conditions], Array] | None = None,
) -> Float[Array, "b *s c"]:
    """Return the solutions for input fields, on the grid of the inputs.

    Inputs on a finer grid are averaged to the trained grid and solved there; the solution is then interpolated to the
    centres of the fine cells. The solution is extrapolated to fine centres outside all trained ones.

    Args:
        inputs: Input fields in physical units, on the trained grid or one that divides each of its cells evenly.
        correct: Function (inputs, solutions, conditions) -> corrected solutions, on normalised fields.

    Raises:
        DataError: The grid of the inputs neither is the trained grid nor divides its cells evenly.
    """
    task = model.task
    factors = refinement_factors(task, inputs.shape[1:-1])
    coarse = normalize_inputs(cell_average(inputs, factors), task.inputs)
    solved = steady_field(model, params, coarse, cond)
    solution = denormalize(solved if correct is None else correct(coarse, solved, cond), task.statistics)
    if set(factors) == {1}:
        return solution
    lines = cell_centers(task.shape, task.origin, task.spacing, factors)
    return interpolate_to_grid(solution, lines, task.origin, task.spacing, task.periodic)


def steady_rollout(
    model: SteadySimulator,
    params: Any,
    inputs: Float[Array, "b *s i"],
    cond: Conditions,
    steps: int,
    correct: Callable[[Array, Array, Conditions], Array] | None = None,
) -> Float[Array, "b t *s c"]:
    """Return the solutions of `solve`, repeated along a time axis of `steps` frames."""
    return jnp.repeat(solve(model, params, inputs, cond, correct)[:, None], steps, axis=1)


def refinement_factors(task: Task, shape: Sequence[int]) -> tuple[int, ...]:
    """Return, for each axis, the number of cells of a grid of `shape` per cell of the task's grid.

    Raises:
        DataError: The grid of `shape` does not divide the task's cells evenly.
    """
    if any(points % trained for points, trained in zip(shape, task.shape, strict=True)):
        example = " x ".join(str(2 * points) for points in task.shape)
        raise DataError(
            f"task {task.name}: the fields have {' x '.join(map(str, shape))} cells, but this run was trained on "
            f"{' x '.join(map(str, task.shape))} cells; average or interpolate the fields to the trained grid, or to a "
            f"grid that divides each trained cell evenly, such as {example}"
        )
    return tuple(points // trained for points, trained in zip(shape, task.shape, strict=True))


def check_finer_grid(task: Task, finer_task: Task) -> None:
    """Raise DataError unless the grid of `finer_task` divides each cell of the task's grid evenly."""
    factors = refinement_factors(task, finer_task.shape)
    for axis, spacing, origin, factor, fine_origin, fine_spacing in zip(
        task.axes, task.spacing, task.origin, factors, finer_task.origin, finer_task.spacing, strict=True
    ):
        first_centre = origin - spacing / 2 + spacing / factor / 2
        if (
            abs(fine_spacing * factor - spacing) > 1e-3 * spacing
            or abs(fine_origin - first_centre) > 1e-2 * fine_spacing
        ):
            raise DataError(
                f"task {task.name}: along {axis}, the first cell centre is {fine_origin:g} and the spacing "
                f"{fine_spacing:g}; pass fields of the same domain at the cell centres of a grid that divides each "
                f"trained cell into {factor}: first centre {first_centre:g}, spacing {spacing / factor:g}"
            )
