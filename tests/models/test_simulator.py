"""What holds for every simulator: persistence when untrained, conservation, equivariance, conditioning, any point."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ups_jax.config import LatentConfig, OperatorConfig, PdetConfig, SpectralConfig
from ups_jax.core.task import Coefficient, Statistics, Task
from ups_jax.models import Conditions, LatentState, Simulator

CORES = ["spectral", "pdet_unet", "pdet_stack"]
GRIDS = [((32,), (True,)), ((30,), (False,)), ((13,), (True,)), ((8, 12), (True, True)), ((12, 9), (True, False))]


def task_on(shape: tuple[int, ...], periodic: tuple[bool, ...], channels: int = 1) -> Task:
    axes = len(shape)
    return Task(
        name="any",
        channels=("u", "v")[:channels],
        axes=("x", "y")[:axes],
        shape=shape,
        origin=(-1.0,) * axes,
        spacing=tuple(2 / points for points in shape),
        periodic=periodic,
        dt=0.1,
        coefficients=(Coefficient(name="nu", scale="log10", mean=-2.0, std=0.5),),
        conserved=(0,),
        statistics=Statistics(mean=(0.1,) * channels, std=(2.0,) * channels, delta_std=(0.2,) * channels),
    )


def simulator(task: Task, core: str = "spectral", context: int = 1) -> Simulator:
    operator = OperatorConfig(
        architecture_type=core,  # type: ignore[arg-type]
        spectral=SpectralConfig(hidden_dim=8, depth=2, modes=4),
        pdet=PdetConfig(hidden_dim=16, num_heads=2, group_size=8, depth=2),
    )
    return Simulator(task, LatentConfig(dim=6), operator, context)


def conditions(batch: int, nu: float = 0.01, dt: float = 0.1) -> Conditions:
    return Conditions(dt=jnp.full(batch, dt), coefficients=jnp.full((batch, 1), nu), mask=jnp.ones((batch, 1)))


def fields_on(task: Task, batch: int = 3, context: int = 1) -> jax.Array:
    return jax.random.normal(jax.random.key(1), (batch, context, *task.shape, len(task.channels)))


def trained(model: Simulator, fields: jax.Array) -> dict:
    """Parameters with every zero-initialised leaf moved, as after training."""
    params = jax.jit(model.init)(jax.random.key(0), fields, conditions(len(fields)))["params"]
    rng = np.random.default_rng(2)
    return jax.tree.map(lambda leaf: leaf + 0.1 * rng.normal(size=leaf.shape).astype(np.float32), params)


def step(model: Simulator, params: dict, fields: jax.Array, cond: Conditions | None = None) -> jax.Array:
    return jax.jit(model.apply)(params, fields, conditions(len(fields)) if cond is None else cond)


@pytest.mark.parametrize(
    ("core", "shape", "periodic"),
    [*(("spectral", *grid) for grid in GRIDS), *((core, *GRIDS[-1]) for core in CORES[1:])],
)
def test_an_untrained_step_is_persistence(core: str, shape: tuple[int, ...], periodic: tuple[bool, ...]) -> None:
    task = task_on(shape, periodic, channels=2)
    model, fields = simulator(task, core, context=2), fields_on(task, context=2)
    params = jax.jit(model.init)(jax.random.key(0), fields, conditions(3))
    np.testing.assert_array_equal(step(model, params, fields), fields[:, -1])


@pytest.mark.parametrize("core", CORES)
def test_a_trained_step_moves_the_field_but_not_the_mean_of_a_conserved_channel(core: str) -> None:
    task = task_on((16, 12), (True, True), channels=2)
    model, fields = simulator(task, core), fields_on(task)
    change = step(model, {"params": trained(model, fields)}, fields) - fields[:, -1]
    mean = np.abs(np.asarray(change).mean((1, 2)))
    assert np.abs(np.asarray(change)).mean() > 1e-3
    assert mean[:, 0].max() < 1e-6 < 1e-4 < mean[:, 1].min()


def test_the_spectral_core_commutes_with_shifts_by_whole_patches() -> None:
    task = task_on((32,), (True,))
    model, fields = simulator(task), fields_on(task)
    params = {"params": trained(model, fields)}
    moved_before = step(model, params, jnp.roll(fields, 8, 2))
    moved_after = jnp.roll(step(model, params, fields), 8, 1)
    np.testing.assert_allclose(moved_before, moved_after, atol=2e-6)


@pytest.mark.parametrize("core", CORES)
def test_time_step_and_coefficient_reach_the_prediction_and_an_unknown_one_does_not(core: str) -> None:
    task = task_on((16,), (True,))
    model, fields = simulator(task, core), fields_on(task)
    params = {"params": trained(model, fields)}
    plain = step(model, params, fields)
    assert np.abs(plain - step(model, params, fields, conditions(3, nu=0.05))).max() > 1e-4
    assert np.abs(plain - step(model, params, fields, conditions(3, dt=0.2))).max() > 1e-4

    def unknown(nu: float) -> Conditions:
        return Conditions(dt=jnp.full(3, 0.1), coefficients=jnp.full((3, 1), nu), mask=jnp.zeros((3, 1)))

    np.testing.assert_array_equal(step(model, params, fields, unknown(0.0)), step(model, params, fields, unknown(0.3)))


@pytest.mark.parametrize(("shape", "periodic"), GRIDS)
def test_decoding_gives_the_encoded_field_back_on_the_grid_and_at_its_points(
    shape: tuple[int, ...], periodic: tuple[bool, ...]
) -> None:
    task = task_on(shape, periodic)
    model, fields = simulator(task), fields_on(task)
    params = {"params": trained(model, fields)}
    z = model.apply(params, fields, method="encode")
    np.testing.assert_array_equal(model.apply(params, z, method="decode"), fields[:, -1])
    lines = [start + step * np.arange(n) for start, step, n in zip(task.origin, task.spacing, shape, strict=True)]
    points = np.stack(np.meshgrid(*lines, indexing="ij"), -1).reshape(1, -1, len(shape)).repeat(3, 0)
    at_points = model.apply(params, z, jnp.asarray(points, jnp.float32), method="decode")
    np.testing.assert_allclose(at_points, fields[:, -1].reshape(3, -1, 1), atol=2e-5)


def test_decoding_between_the_points_is_exact_for_a_resolved_periodic_field() -> None:
    task = task_on((24,), (True,))
    x = jnp.asarray(task.origin[0] + task.spacing[0] * np.arange(24))

    def wave(x: jax.Array) -> jax.Array:
        return jnp.sin(3 * jnp.pi * x) + 0.5 * jnp.cos(5 * jnp.pi * x + 1)

    fields = wave(x)[None, None, :, None]
    model = simulator(task)
    params = {"params": trained(model, fields)}
    query = jnp.linspace(-1.3, 1.4, 37)[None, :, None]
    decoded = model.apply(params, model.apply(params, fields, method="encode"), query, method="decode")
    np.testing.assert_allclose(decoded[0, :, 0], wave(query[0, :, 0]), atol=2e-5)


def test_decoding_between_walls_is_exact_for_a_cubic() -> None:
    task = task_on((11,), (False,))
    x = jnp.asarray(task.origin[0] + task.spacing[0] * np.arange(11))
    model = simulator(task)
    fields = (x**3 - x)[None, None, :, None]
    params = {"params": trained(model, fields)}
    query = jnp.linspace(-1.0, 0.8, 23)[None, :, None]
    decoded = model.apply(params, model.apply(params, fields, method="encode"), query, method="decode")
    np.testing.assert_allclose(decoded[0, :, 0], query[0, :, 0] ** 3 - query[0, :, 0], atol=1e-5)


def test_the_same_parameters_step_a_finer_grid() -> None:
    coarse, fine = task_on((16,), (True,)), task_on((32,), (True,))
    params = {"params": trained(simulator(coarse), fields_on(coarse))}
    result = step(simulator(fine), params, fields_on(fine))
    assert result.shape == (3, 32, 1)
    assert np.isfinite(result).all()


def test_the_latent_state_keeps_time() -> None:
    task = task_on((16,), (True,))
    model, fields = simulator(task), fields_on(task)
    params = {"params": trained(model, fields)}
    state = LatentState(z=model.apply(params, fields, method="encode"), t=jnp.zeros(3), cond=conditions(3))
    operate = jax.jit(partial(model.apply, method="operate"))
    for _ in range(3):
        state = operate(params, state)
    np.testing.assert_allclose(state.t, 0.3, rtol=1e-6)
