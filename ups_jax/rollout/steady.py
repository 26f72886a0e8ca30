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
    centres of the fine cells. The outermost fine centres lie outside the outermost trained ones and are extrapolated.

    Args:
        model: Simulator of the task.
        params: Its parameters.
        inputs: Input fields in physical units, on the trained grid or one that divides each of its cells evenly.
        cond: Conditions of the samples.
        correct: Function (inputs, solutions, conditions) -> corrected solutions, on normalised fields.

    Raises:
        DataError: The grid of the inputs is neither the trained one nor a whole multiple of it.
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
    """Return the number of cells of a grid of `shape` per cell of the task's grid, for each axis.

    Raises:
        DataError: The number is not whole.
    """
    if any(points % trained for points, trained in zip(shape, task.shape, strict=True)):
        example = " x ".join(str(2 * points) for points in task.shape)
        raise DataError(
            f"task {task.name}: the fields have {' x '.join(map(str, shape))} cells, but this run was trained on "
            f"{' x '.join(map(str, task.shape))} cells and accepts that grid or a whole multiple per axis, such as "
            f"{example}; average or interpolate the fields to such a grid"
        )
    return tuple(points // trained for points, trained in zip(shape, task.shape, strict=True))


def check_finer_grid(task: Task, finer: Task) -> None:
    """Raise DataError unless the grid of `finer` divides the cells of the task's grid evenly."""
    factors = refinement_factors(task, finer.shape)
    for axis, spacing, origin, factor, fine_origin, fine_spacing in zip(
        task.axes, task.spacing, task.origin, factors, finer.origin, finer.spacing, strict=True
    ):
        first_centre = origin - spacing / 2 + spacing / factor / 2
        if (
            abs(fine_spacing * factor - spacing) > 1e-3 * spacing
            or abs(fine_origin - first_centre) > 1e-2 * fine_spacing
        ):
            raise DataError(
                f"task {task.name}: the cells along {axis} start at {fine_origin:g} with spacing {fine_spacing:g}; a "
                f"grid that divides the trained cells by {factor} starts at {first_centre:g} with spacing "
                f"{spacing / factor:g}; pass fields of the same domain at the centres of such cells"
            )
