"""Properties of every steady simulator: the mean field when untrained, symmetric solves, finer grids."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ups_jax.config import LatentConfig, OperatorConfig, PdetConfig, SpectralConfig
from ups_jax.core.errors import DataError
from ups_jax.core.task import Coefficient, Input, Statistics, Task
from ups_jax.models import Conditions, SteadySimulator, steady_field
from ups_jax.models.grid import cell_average, cell_centers, interpolate, interpolate_to_grid
from ups_jax.rollout.steady import check_finer_grid, refinement_factors, solve

SHAPE = (8, 12)


def task_on(shape: tuple[int, ...] = SHAPE, inputs: int = 2) -> Task:
    """Cells of the unit square, or of the unit interval."""
    axes = len(shape)
    return Task(
        name="any",
        kind="steady",
        channels=("u", "v"),
        inputs=tuple(Input(name=f"a{index}", mean=2.0, std=0.5) for index in range(inputs)),
        axes=("x", "y")[:axes],
        shape=shape,
        origin=tuple(0.5 / points for points in shape),
        spacing=tuple(1 / points for points in shape),
        periodic=(False,) * axes,
        dt=1.0,
        coefficients=(Coefficient(name="f"),),
        statistics=Statistics(mean=(0.1, -3.0), std=(2.0, 0.5), delta_std=(2.0, 0.5)),
    )


def simulator(task: Task, core: str = "spectral") -> SteadySimulator:
    operator = OperatorConfig(
        architecture_type=core,  # type: ignore[arg-type]
        spectral=SpectralConfig(hidden_dim=8, depth=1, modes=4),
        pdet=PdetConfig(hidden_dim=16, num_heads=2, group_size=8, depth=1, depths=(1, 1, 1)),
    )
    return SteadySimulator(task, LatentConfig(dim=6, patch_size=2), operator)


def conditions() -> Conditions:
    """Those of three samples."""
    ones = np.ones((3, 1), np.float32)
    return Conditions(dt=jnp.asarray(ones[:, 0]), coefficients=jnp.asarray(0.3 * ones), mask=jnp.asarray(ones))


def given(task: Task, factor: int = 1) -> np.ndarray:
    shape = [points * factor for points in task.shape]
    rng = np.random.default_rng(1)
    return 2 + rng.normal(size=(3, *shape, len(task.inputs))).astype(np.float32)


@functools.cache
def parameters(model: SteadySimulator) -> tuple[Any, Any]:
    """Fresh ones, and such with every zero-initialised leaf moved, as after training."""
    fresh = jax.device_get(jax.jit(model.init)(jax.random.key(0), given(model.task), conditions())["params"])
    rng = np.random.default_rng(2)
    return fresh, jax.tree.map(lambda leaf: leaf + 0.1 * rng.normal(size=leaf.shape).astype(np.float32), fresh)


@functools.cache
def solver(model: SteadySimulator) -> Any:
    return jax.jit(lambda params, inputs: solve(model, params, inputs, conditions()))


@pytest.mark.parametrize(("shape", "core"), [((24,), "spectral"), (SHAPE, "spectral"), (SHAPE, "pdet_stack")])
def test_an_untrained_simulator_gives_exactly_the_mean_field_and_a_trained_one_does_not(
    shape: tuple[int, ...], core: str
) -> None:
    model = simulator(task_on(shape), core)
    fresh, trained = parameters(model)
    solution, moved = (np.asarray(solver(model)(params, given(model.task))) for params in (fresh, trained))
    np.testing.assert_array_equal(solution, np.broadcast_to(np.float32([0.1, -3.0]), solution.shape))
    assert np.abs(moved[0] - moved[1]).max() > 1e-3


def test_all_parameters_but_those_of_what_never_varies_have_a_gradient() -> None:
    model = simulator(task_on())
    inputs = jnp.asarray(given(model.task))
    gradients = jax.jit(jax.grad(lambda p: jnp.sum(steady_field(model, p, inputs, conditions()) ** 2)))(
        parameters(model)[1]
    )
    silent = [
        jax.tree_util.keystr(path)
        for path, leaf in jax.tree_util.tree_leaves_with_path(gradients)
        if np.abs(leaf).max() == 0
    ]
    assert silent == ["['condition']['others']['kernel']"]


def test_cells_are_averaged_and_their_centres_known() -> None:
    x = jnp.arange(24.0).reshape(1, 4, 6, 1)
    averaged = cell_average(x, (2, 3))
    np.testing.assert_allclose(averaged[0, 1, 0, 0], np.mean([12, 13, 14, 18, 19, 20]))
    x_line, y_line = cell_centers((2, 2), (0.25, 0.5), (0.5, 1.0), (2, 1))
    np.testing.assert_allclose(x_line, [0.125, 0.375, 0.625, 0.875])
    np.testing.assert_allclose(y_line, [0.5, 1.5])


@pytest.mark.parametrize("factor", [2, 3, 4])
def test_a_cubic_is_exact_at_all_cells_of_a_finer_grid_those_at_the_walls_included(factor: int) -> None:
    task = task_on()
    coefficients = np.random.default_rng(0).normal(size=(4, 4))

    def cubic(lines: Sequence[np.ndarray]) -> np.ndarray:
        return np.polynomial.polynomial.polygrid2d(*lines, coefficients)[None, ..., None]

    coarse = cubic(cell_centers(SHAPE, task.origin, task.spacing, (1, 1)))
    lines = cell_centers(SHAPE, task.origin, task.spacing, (factor, factor))
    fine = interpolate_to_grid(jnp.asarray(coarse, jnp.float32), lines, task.origin, task.spacing, task.periodic)
    np.testing.assert_allclose(fine, cubic(lines), atol=2e-5 * np.abs(coarse).max())


def test_a_finer_grid_is_solved_on_the_trained_one_and_averages_back_to_nearly_that() -> None:
    task = task_on()
    model, fine = simulator(task), given(task, factor=2)
    lines = cell_centers(SHAPE, task.origin, task.spacing, (2, 2))
    query = np.stack(np.meshgrid(*lines, indexing="ij"), -1).reshape(1, -1, 2).repeat(3, 0).astype(np.float32)

    @jax.jit
    def both(params: Any, fine: jax.Array, query: jax.Array) -> tuple[jax.Array, jax.Array]:
        coarse = solve(model, params, cell_average(fine, (2, 2)), conditions())
        expected = interpolate(coarse, query, task.origin, task.spacing, task.periodic)
        return solve(model, params, fine, conditions()), expected

    solution, expected = map(np.asarray, both(parameters(model)[1], fine, query))
    assert solution.shape == (3, 16, 24, 2)
    expected = expected.reshape(solution.shape)
    # `interpolate` makes its weights in float32.
    np.testing.assert_allclose(solution, expected, atol=2e-6 * np.abs(expected).max())


def test_a_grid_that_does_not_cut_the_trained_one_is_refused_with_the_mend() -> None:
    task = task_on()
    with pytest.raises(DataError, match=r"12 x 12.*8 x 12.*16 x 24"):
        refinement_factors(task, (12, 12))
    with pytest.raises(DataError):
        refinement_factors(task, (4, 6))
    check_finer_grid(task, task_on((16, 24)))
    nodes = task_on((16, 24))
    moved = Task(**{**nodes.__dict__, "origin": (0.0, 0.0)})
    with pytest.raises(DataError, match="same domain"):
        check_finer_grid(task, moved)
