"""What holds for every steady simulator: the mean field when untrained, symmetric solves, finer grids."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ups_jax.config import LatentConfig, OperatorConfig, PdetConfig, SpectralConfig
from ups_jax.core.errors import DataError
from ups_jax.core.task import Coefficient, Input, Statistics, Task
from ups_jax.models import Conditions, SteadySimulator, steady_field
from ups_jax.models.grid import cell_average, cell_lines, interpolate, interpolate_lines
from ups_jax.rollout.steady import check_cells, refinement, solve

SHAPE = (8, 12)


def task_on(shape: tuple[int, ...] = SHAPE, inputs: int = 1) -> Task:
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
        spectral=SpectralConfig(hidden_dim=8, depth=2, modes=4),
        pdet=PdetConfig(hidden_dim=16, num_heads=2, group_size=8, depth=1, depths=(1, 1, 1)),
    )
    return SteadySimulator(task, LatentConfig(dim=6, patch_size=2), operator)


def conditions(batch: int) -> Conditions:
    return Conditions(dt=jnp.ones(batch), coefficients=jnp.full((batch, 1), 0.3), mask=jnp.ones((batch, 1)))


def given(task: Task, batch: int = 3, factor: int = 1) -> jax.Array:
    shape = [points * factor for points in task.shape]
    return 2 + jax.random.normal(jax.random.key(1), (batch, *shape, len(task.inputs)))


def trained(model: SteadySimulator, inputs: jax.Array) -> dict:
    """Parameters with every zero-initialised leaf moved, as after training."""
    params = jax.jit(model.init)(jax.random.key(0), inputs, conditions(len(inputs)))["params"]
    rng = np.random.default_rng(2)
    return jax.tree.map(lambda leaf: leaf + 0.1 * rng.normal(size=leaf.shape).astype(np.float32), params)


@pytest.mark.parametrize(("shape", "core"), [((24,), "spectral"), (SHAPE, "spectral"), (SHAPE, "pdet_stack")])
def test_an_untrained_simulator_gives_exactly_the_mean_field_and_a_trained_one_does_not(
    shape: tuple[int, ...], core: str
) -> None:
    task = task_on(shape, inputs=2)
    model, inputs = simulator(task, core), given(task)
    fresh = jax.jit(model.init)(jax.random.key(0), inputs, conditions(3))["params"]
    solution = solve(model, fresh, inputs, conditions(3))
    np.testing.assert_array_equal(solution, np.broadcast_to(np.float32([0.1, -3.0]), solution.shape))
    moved = solve(model, trained(model, inputs), inputs, conditions(3))
    assert np.abs(moved[0] - moved[1]).max() > 1e-3


def test_all_parameters_but_those_of_what_never_varies_have_a_gradient() -> None:
    task = task_on()
    model, inputs = simulator(task), given(task)
    gradients = jax.jit(jax.grad(lambda p: jnp.sum(steady_field(model, p, inputs, conditions(3)) ** 2)))(
        trained(model, inputs)
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
    x_line, y_line = cell_lines((2, 2), (0.25, 0.5), (0.5, 1.0), (2, 1))
    np.testing.assert_allclose(x_line, [0.125, 0.375, 0.625, 0.875])
    np.testing.assert_allclose(y_line, [0.5, 1.5])


@pytest.mark.parametrize("factor", [2, 3, 4])
def test_a_cubic_is_exact_at_all_cells_of_a_finer_grid_those_at_the_walls_included(factor: int) -> None:
    task = task_on()
    coefficients = np.random.default_rng(0).normal(size=(4, 4))

    def cubic(lines: Sequence[np.ndarray]) -> np.ndarray:
        return np.polynomial.polynomial.polygrid2d(*lines, coefficients)[None, ..., None]

    coarse = cubic(cell_lines(SHAPE, task.origin, task.spacing, (1, 1)))
    lines = cell_lines(SHAPE, task.origin, task.spacing, (factor, factor))
    fine = interpolate_lines(jnp.asarray(coarse, jnp.float32), lines, task.origin, task.spacing, task.periodic)
    np.testing.assert_allclose(fine, cubic(lines), atol=2e-5 * np.abs(coarse).max())


def test_a_finer_grid_is_solved_on_the_trained_one_and_averages_back_to_nearly_that() -> None:
    task = task_on()
    model, fine = simulator(task), given(task, factor=2)
    params = trained(model, given(task))
    solution = solve(model, params, fine, conditions(3))
    assert solution.shape == (3, 16, 24, 2)
    coarse = solve(model, params, cell_average(fine, (2, 2)), conditions(3))
    lines = cell_lines(SHAPE, task.origin, task.spacing, (2, 2))
    query = np.stack(np.meshgrid(*lines, indexing="ij"), -1).reshape(1, -1, 2).repeat(3, 0).astype(np.float32)
    expected = interpolate(coarse, jnp.asarray(query), task.origin, task.spacing, task.periodic)
    expected = expected.reshape(solution.shape)
    # `interpolate` makes its weights in float32.
    np.testing.assert_allclose(solution, expected, atol=2e-6 * np.abs(expected).max())


def test_a_grid_that_does_not_cut_the_trained_one_is_refused_with_the_mend() -> None:
    task = task_on()
    with pytest.raises(DataError, match=r"12 x 12.*8 x 12.*16 x 24"):
        refinement(task, (12, 12))
    with pytest.raises(DataError):
        refinement(task, (4, 6))
    check_cells(task, task_on((16, 24)))
    nodes = task_on((16, 24))
    moved = Task(**{**nodes.__dict__, "origin": (0.0, 0.0)})
    with pytest.raises(DataError, match="same domain"):
        check_cells(task, moved)
