"""A field solver is trained and measured as the library's steady model: the mean field at first, any finer grid."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from comparison.dilated import DilatedNet
from comparison.field_solver import FieldSolver, SolverRun, walls
from comparison.fno import FNO

from ups_jax.config import LatentConfig, OperatorConfig
from ups_jax.core.task import Input, Statistics, Task
from ups_jax.models.grid import cell_average

SHAPE = (6, 8)


def task_on(factor: int = 1, periodic: tuple[bool, bool] = (False, False)) -> Task:
    """Cells of the unit square."""
    shape = tuple(factor * points for points in SHAPE)
    return Task(
        name="plates", kind="steady", channels=("u",), inputs=(Input(name="nu", mean=2.0, std=0.5),), axes=("x", "y"),
        shape=shape, origin=tuple(0.5 / points for points in shape), spacing=tuple(1 / points for points in shape),
        periodic=periodic, dt=1.0, statistics=Statistics(mean=(2.0,), std=(0.5,), delta_std=(1.0,)),
    )  # fmt: skip


class Mirror(nn.Module):
    """The given field is the solution."""

    @nn.compact
    def __call__(self, x: Any) -> Any:
        return x[..., :1]


NETS = {
    "fno": FNO(channels=1, width=8, modes=3, periodic=(False, False), depth=1, taps=3, grid=False),
    "dilated": DilatedNet(channels=1, width=8, periodic=(False, False), blocks=1, dilations=(1, 2)),
}


def solver_of(net: nn.Module) -> FieldSolver:
    return FieldSolver(task_on(), LatentConfig(), OperatorConfig(), net=net)


NONE = np.zeros((3, 0), np.float32)


@pytest.mark.parametrize("name", NETS)
def test_untrained_every_solution_is_the_mean_field_on_any_grid(name: str) -> None:
    model = solver_of(NETS[name])
    params = {"net": NETS[name].init(jax.random.key(0), jnp.zeros((1, *SHAPE, 3)))["params"]}
    run = SolverRun(model, params, model.task)
    for factor, solver in ((1, run), (2, run), (2, run.on_grid_of(task_on(2)))):
        inputs = np.random.default_rng(0).normal(size=(3, *task_on(factor).shape, 1)).astype(np.float32)
        np.testing.assert_allclose(
            solver.rollout_arrays(inputs, 1, NONE, NONE)[:, 0], np.full_like(inputs, 2.0), atol=1e-6
        )


def test_a_finer_grid_is_averaged_to_the_trained_one_or_solved_on_itself() -> None:
    run = SolverRun(solver_of(Mirror()), {}, task_on())
    inputs = np.random.default_rng(0).normal(size=(3, *task_on(2).shape, 1)).astype(np.float32)
    np.testing.assert_allclose(
        run.on_grid_of(task_on(2)).rollout_arrays(inputs, 1, NONE, NONE)[:, 0], inputs, atol=1e-5
    )
    x, y = np.meshgrid(*((np.arange(points) + 0.5) / points for points in task_on(2).shape), indexing="ij")
    plane = np.broadcast_to((1 + x - 2 * y)[None, ..., None], inputs.shape).astype(np.float32)
    np.testing.assert_allclose(run.rollout_arrays(plane, 1, NONE, NONE)[:, 0], plane, atol=1e-5)
    averaged = np.asarray(cell_average(jnp.asarray(run.rollout_arrays(inputs, 1, NONE, NONE)[:, 0]), (2, 2)))
    assert np.abs(run.rollout_arrays(inputs, 1, NONE, NONE)[:, 0] - inputs).max() > 0.1
    assert np.corrcoef(averaged.ravel(), np.asarray(cell_average(jnp.asarray(inputs), (2, 2))).ravel())[0, 1] > 0.9


def test_positions_are_the_same_on_a_finer_grid_and_left_out_where_there_is_no_wall() -> None:
    like = jnp.zeros((1, *SHAPE, 1))
    coarse, fine = walls(task_on(), like), walls(task_on(2), jnp.zeros((1, 12, 16, 1)))
    np.testing.assert_allclose(cell_average(fine, (2, 2)), coarse, atol=1e-6)
    np.testing.assert_allclose(coarse[0, :, 0, 0], [-5 / 6, -1 / 2, -1 / 6, 1 / 6, 1 / 2, 5 / 6], atol=1e-6)
    np.testing.assert_array_equal(walls(task_on(periodic=(True, False)), like), coarse[..., 1:])


@pytest.mark.filterwarnings("ignore")
def test_the_packages_model_is_put_on_a_finer_grid_in_the_same_ways() -> None:
    pytest.importorskip("torch")
    pytest.importorskip("neuralop.models")
    from comparison.torch_fno import TorchSolver

    ours = SolverRun(solver_of(Mirror()), {}, task_on())
    theirs = TorchSolver(lambda x: x[:, :1], task_on())
    inputs = np.random.default_rng(0).normal(size=(3, *task_on(2).shape, 1)).astype(np.float32)
    for jax_solver, torch_solver in ((ours, theirs), (ours.on_grid_of(task_on(2)), theirs.on_grid_of(task_on(2)))):
        np.testing.assert_allclose(
            torch_solver.rollout_arrays(inputs, 1, NONE, NONE)[:, 0],
            jax_solver.rollout_arrays(inputs, 1, NONE, NONE)[:, 0],
            atol=1e-5,
        )
    scaled = replace(task_on(), statistics=Statistics(mean=(1.0,), std=(3.0,), delta_std=(1.0,)))
    solved = TorchSolver(lambda x: 0 * x, scaled).rollout_arrays(inputs, 1, NONE, NONE)[:, 0]
    np.testing.assert_allclose(solved, np.ones_like(inputs), atol=1e-6)
