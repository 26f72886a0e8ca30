"""Properties of every simulator: persistence when untrained, conservation, equivariance, conditioning, any point."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ups_jax.config import LatentConfig, OperatorConfig, PdetConfig, SpectralConfig
from ups_jax.core.task import Coefficient, Statistics, Task
from ups_jax.models import Conditions, LatentState, Simulator
from ups_jax.models.patches import task_patches

CORES = ["spectral", "pdet_unet", "pdet_stack"]
# Patches of 4 points divide the axes of 32, 8 and 12 points; a patch of 3 divides 9 points.
GRIDS = [
    ((32,), (True,)),
    ((30,), (False,)),
    ((13,), (True,)),
    ((8, 12), (True, True)),
    ((12, 9), (True, False)),
    ((5, 7, 11), (True, False, True)),
    ((13, 17), (True, False)),
]


def task_on(shape: tuple[int, ...], periodic: tuple[bool, ...], channels: int = 1) -> Task:
    axes = len(shape)
    return Task(
        name="any",
        channels=("u", "v")[:channels],
        axes=("x", "y", "z")[:axes],
        shape=shape,
        origin=(-1.0,) * axes,
        spacing=tuple(2 / points for points in shape),
        periodic=periodic,
        dt=0.1,
        coefficients=(Coefficient(name="nu", scale="log10", mean=-2.0, std=0.5),),
        conserved=(0,),
        statistics=Statistics(mean=(0.1,) * channels, std=(2.0,) * channels, delta_std=(0.2,) * channels),
    )


def simulator(task: Task, core: str = "spectral", context: int = 2) -> Simulator:
    operator = OperatorConfig(
        architecture_type=core,  # type: ignore[arg-type]
        spectral=SpectralConfig(hidden_dim=8, depth=1, modes=4),
        pdet=PdetConfig(hidden_dim=8, num_heads=2, group_size=4, depth=1, depths=(1, 1)),
    )
    return Simulator(task, LatentConfig(dim=6), operator, context)


def conditions(nu: float = 0.01, dt: float = 0.1, coefficient_known: bool = True) -> Conditions:
    """Those of three samples."""
    mask = jnp.asarray(np.full((3, 1), coefficient_known, np.float32))
    return Conditions(
        dt=jnp.asarray(np.full(3, dt, np.float32)), coefficients=jnp.asarray(np.full((3, 1), nu, np.float32)), mask=mask
    )


@dataclass(frozen=True, kw_only=True)
class Case:
    """A model of two frames of context, and its programs, each of which is compiled once.

    `trained` are parameters with every zero-initialised leaf moved, as after training. `step` takes parameters, fields
    and conditions; `decoded` takes fields and points, and gives tokens, the field on the grid and at the points.
    """

    model: Simulator
    fields: np.ndarray
    fresh: Any
    trained: Any
    step: Callable[..., np.ndarray]
    decoded: Callable[..., tuple[Any, Any, Any]]


@functools.cache
def case_of(core: str, shape: tuple[int, ...], periodic: tuple[bool, ...]) -> Case:
    task = task_on(shape, periodic, channels=2)
    model, rng = simulator(task, core), np.random.default_rng(2)
    fields = rng.normal(size=(3, 2, *shape, 2)).astype(np.float32)
    fresh = jax.device_get(jax.jit(model.init)(jax.random.key(0), fields, conditions()))
    trained = jax.tree.map(lambda leaf: leaf + 0.1 * rng.normal(size=leaf.shape).astype(np.float32), fresh)
    step = jax.jit(model.apply)

    @jax.jit
    def decoded(params: Any, fields: jax.Array, points: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        z = model.apply(params, fields, method="encode")
        on_grid, at_points = (model.apply(params, z, *query, method="decode") for query in ((), (points,)))
        return z, on_grid, at_points

    return Case(
        model=model,
        fields=fields,
        fresh=fresh,
        trained=trained,
        step=lambda *arguments: np.asarray(step(*arguments)),
        decoded=functools.partial(decoded, trained),
    )


@pytest.mark.parametrize(
    ("core", "shape", "periodic"),
    [*(("spectral", *grid) for grid in GRIDS), *((core, *GRIDS[-1]) for core in CORES[1:])],
)
def test_an_untrained_step_is_persistence(core: str, shape: tuple[int, ...], periodic: tuple[bool, ...]) -> None:
    case = case_of(core, shape, periodic)
    np.testing.assert_array_equal(case.step(case.fresh, case.fields, conditions()), case.fields[:, -1])


@pytest.mark.parametrize("core", CORES)
def test_a_trained_step_moves_the_field_but_not_the_mean_of_a_conserved_channel(core: str) -> None:
    case = case_of(core, *GRIDS[-1])
    change = case.step(case.trained, case.fields, conditions()) - case.fields[:, -1]
    mean = np.abs(change.mean((1, 2)))
    assert np.abs(change).mean() > 1e-3
    assert mean[:, 0].max() < 1e-6 < 1e-4 < mean[:, 1].min()


def test_the_spectral_core_commutes_with_shifts_by_whole_patches() -> None:
    case = case_of("spectral", *GRIDS[0])
    moved_before = case.step(case.trained, np.roll(case.fields, 8, 2), conditions())
    moved_after = np.roll(case.step(case.trained, case.fields, conditions()), 8, 1)
    np.testing.assert_allclose(moved_before, moved_after, atol=2e-6)


def test_a_step_on_a_resampled_axis_commutes_with_shifts_by_whole_tokens() -> None:
    # 30 points are resampled to 8 patches of 4, so 15 points are exactly 4 patches.
    model = simulator(task_on((30,), (True,), channels=2))
    case = case_of("spectral", (30,), (True,))
    assert task_patches(model.task, model.latent).extended_shape == (32,)
    moved_before = case.step(case.trained, np.roll(case.fields, 15, 2), conditions())
    moved_after = np.roll(case.step(case.trained, case.fields, conditions()), 15, 1)
    np.testing.assert_allclose(moved_before, moved_after, atol=1e-5)
    assert np.abs(moved_after - np.roll(moved_after, 15, 1)).max() > 0.1


@pytest.mark.parametrize("core", CORES)
def test_time_step_and_coefficient_reach_the_prediction_and_an_unknown_one_does_not(core: str) -> None:
    case = case_of(core, *GRIDS[-1])

    def at(**changes: Any) -> np.ndarray:
        return case.step(case.trained, case.fields, conditions(**changes))

    assert np.abs(at() - at(nu=0.05)).max() > 1e-4
    assert np.abs(at() - at(dt=0.2)).max() > 1e-4
    np.testing.assert_array_equal(at(nu=0.0, coefficient_known=False), at(nu=0.3, coefficient_known=False))


@pytest.mark.parametrize(("shape", "periodic"), GRIDS)
def test_decoding_gives_the_encoded_field_back_on_the_grid_and_at_its_points(
    shape: tuple[int, ...], periodic: tuple[bool, ...]
) -> None:
    case = case_of("spectral", shape, periodic)
    task, newest = case.model.task, case.fields[:, -1]
    lines = [start + step * np.arange(n) for start, step, n in zip(task.origin, task.spacing, shape, strict=True)]
    points = np.stack(np.meshgrid(*lines, indexing="ij"), -1).reshape(1, -1, len(shape)).repeat(3, 0)
    _, on_grid, at_points = case.decoded(case.fields, points.astype(np.float32))
    np.testing.assert_array_equal(on_grid, newest)
    np.testing.assert_allclose(at_points, newest.reshape(3, -1, 2), atol=2e-5)


def decoded_between(
    grid: tuple[tuple[int, ...], tuple[bool, ...]], function: Callable[[np.ndarray], np.ndarray], points: np.ndarray
) -> np.ndarray:
    """Return the decoding at the points, as many as the grid has, of the function's values on the grid."""
    case = case_of("spectral", *grid)
    task, (count,) = case.model.task, case.model.task.shape
    values = function(task.origin[0] + task.spacing[0] * np.arange(count))
    fields = np.broadcast_to(values[None, None, :, None], (3, 2, count, 2)).astype(np.float32)
    query = np.broadcast_to(points[None, :, None], (3, count, 1)).astype(np.float32)
    return np.asarray(case.decoded(fields, query)[2])[0, :, 0]


def test_decoding_between_the_points_is_exact_for_a_resolved_periodic_field() -> None:
    def wave(x: np.ndarray) -> np.ndarray:
        return np.sin(3 * np.pi * x) + 0.5 * np.cos(5 * np.pi * x + 1)

    points = np.linspace(-1.3, 1.4, 32)
    np.testing.assert_allclose(decoded_between(GRIDS[0], wave, points), wave(points), atol=2e-5)


def test_decoding_between_walls_is_exact_for_a_cubic() -> None:
    points = np.linspace(-1.0, 0.9, 30)
    np.testing.assert_allclose(decoded_between(GRIDS[1], lambda x: x**3 - x, points), points**3 - points, atol=1e-5)


@pytest.mark.parametrize("grid", [GRIDS[0], GRIDS[2]], ids=["divided", "prime"])
def test_the_same_parameters_step_another_grid(grid: tuple[tuple[int, ...], tuple[bool, ...]]) -> None:
    trained_on, other = simulator(task_on((16,), (True,), channels=2)), case_of("spectral", *grid)
    shapes = jax.eval_shape(trained_on.init, jax.random.key(0), np.zeros((3, 2, 16, 2), np.float32), conditions())
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda leaf: 0.3 * rng.normal(size=leaf.shape).astype(np.float32), shapes)
    result = other.step(params, other.fields, conditions())
    assert result.shape == (3, *grid[0], 2)
    assert np.isfinite(result).all()


def test_the_latent_state_keeps_time() -> None:
    case = case_of("spectral", *GRIDS[0])
    z = case.decoded(case.fields, np.zeros((3, 32, 1), np.float32))[0]
    state = LatentState(z=z, t=jnp.zeros(3), cond=conditions())
    operate = jax.jit(functools.partial(case.model.apply, method="operate"))
    for _ in range(3):
        state = operate(case.trained, state)
    np.testing.assert_allclose(state.t, 0.3, rtol=1e-6)
