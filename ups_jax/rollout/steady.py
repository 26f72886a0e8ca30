"""Solutions of a steady simulator, pure: physical fields in and out, on the trained grid or a finer one."""

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
    """The solutions for the given fields, at their own points; `correct` makes better ones of (given fields, solutions,
    conditions), all normalised.

    A grid that cuts the trained one's cells into whole parts is averaged down to it, solved there, and the solution is
    interpolated at the parts' centres; the outermost of them lie beyond the outermost centres of the trained grid.
    """
    task = model.task
    factors = refinement(task, inputs.shape[1:-1])
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
    """Return the solutions of `solve` at `steps` times, at all of which they are the same."""
    return jnp.repeat(solve(model, params, inputs, cond, correct)[:, None], steps, axis=1)


def refinement(task: Task, shape: Sequence[int]) -> tuple[int, ...]:
    """Into how many cells of a grid of `shape` those of the task's grid are cut; DataError where that is not whole."""
    if any(points % own for points, own in zip(shape, task.shape, strict=True)):
        example = " x ".join(str(2 * own) for own in task.shape)
        raise DataError(
            f"task {task.name}: the fields are on {' x '.join(map(str, shape))} cells; this run was trained on "
            f"{' x '.join(map(str, task.shape))} and takes these or a whole multiple an axis, such as {example}: "
            "average or interpolate the fields to such a grid"
        )
    return tuple(points // own for points, own in zip(shape, task.shape, strict=True))


def check_finer_grid(task: Task, finer: Task) -> None:
    """DataError where the grid of `finer` does not cut the cells of the task's grid into whole parts."""
    factors = refinement(task, finer.shape)
    for axis, own, start, part, begin, step in zip(
        task.axes, task.spacing, task.origin, factors, finer.origin, finer.spacing, strict=True
    ):
        centre = start - own / 2 + own / part / 2
        if abs(step * part - own) > 1e-3 * own or abs(begin - centre) > 1e-2 * step:
            raise DataError(
                f"task {task.name}: cells in {axis} start at {begin:g} every {step:g}; cells that cut those of the "
                f"trained run in {part} start at {centre:g} every {own / part:g}: give fields of the same domain at "
                "the centres of such cells"
            )
