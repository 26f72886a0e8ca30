"""Patches of any grid against plain numpy, and the networks that use them on grids that no patch divides."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax import export

from ups_jax.config import LatentConfig, OperatorConfig, SpectralConfig
from ups_jax.core.task import Input, Statistics, Task
from ups_jax.models import Conditions, Simulator, SteadySimulator
from ups_jax.models.corrector import Corrector, CorrectorInputs
from ups_jax.models.patches import (
    grid_patches,
    nearest_divided_shape,
    partitions_agree,
    patchify,
    resample_periodic,
    unpatchify,
)

SHAPES = st.lists(st.integers(1, 40), min_size=1, max_size=3)
LATENT = LatentConfig(dim=4)
OPERATOR = OperatorConfig(spectral=SpectralConfig(hidden_dim=8, depth=1, modes=3))
PRIMES = [((101,), (True,)), ((17,), (False,)), ((7, 11), (False, True)), ((5, 7, 3), (True, False, True))]


@given(SHAPES, st.integers(1, 8))
def test_an_axis_has_as_few_patches_as_possible_of_nearly_equal_size(shape: list[int], patch_size: int) -> None:
    patches = grid_patches(shape, [True] * len(shape), patch_size)
    for points, count, size in zip(shape, patches.counts, patches.size, strict=True):
        assert count == math.ceil(points / patch_size)
        assert size <= patch_size and 0 <= count * size - points < count
        assert points % patch_size or size == patch_size


@given(SHAPES, st.integers(1, 8))
def test_a_divisor_is_the_largest_that_divides_the_axis(shape: list[int], patch_size: int) -> None:
    patches = grid_patches(shape, [True] * len(shape), patch_size, "divisor")
    assert patches.extended_shape == tuple(shape)
    for points, size in zip(shape, patches.size, strict=True):
        assert not any(points % larger == 0 for larger in range(size + 1, patch_size + 1))
    full = grid_patches(shape, [True] * len(shape), patch_size)
    assert partitions_agree(shape, patch_size) == (full == patches)


@pytest.mark.parametrize(
    ("grid", "cost"), [((101,), 26 / 25), ((129, 129), (33 / 32) ** 2), ((53, 31), 14 / 13), ((65, 65), (17 / 16) ** 2)]
)
def test_a_prime_grid_has_few_more_tokens_than_the_nearest_divided_one(grid: tuple[int, ...], cost: float) -> None:
    near = nearest_divided_shape(grid, 4)
    assert all(points % 4 == 0 and abs(points - other) <= 2 for points, other in zip(near, grid, strict=True))
    tokens = [math.prod(grid_patches(shape, [True] * len(grid), 4).counts) for shape in (grid, near)]
    assert tokens[0] / tokens[1] == pytest.approx(cost) and cost < 1.15


@pytest.mark.parametrize(("shape", "size"), [((12,), (4,)), ((6, 8), (3, 2)), ((4, 6, 8), (2, 3, 4))])
def test_patchify_keeps_each_patch_together_and_inverts(shape: tuple[int, ...], size: tuple[int, ...]) -> None:
    x = np.random.default_rng(0).normal(size=(2, *shape, 3)).astype(np.float32)
    tokens = patchify(jnp.asarray(x), size)
    first = x[(slice(None), *(slice(0, points) for points in size))].reshape(2, -1)
    np.testing.assert_array_equal(tokens[(slice(None), *(0,) * len(shape))], first)
    np.testing.assert_array_equal(unpatchify(tokens, size), x)


@pytest.mark.parametrize(("shape", "periodic"), PRIMES)
def test_tokens_hold_the_field_exactly_and_projection_inverts_resampling(
    shape: tuple[int, ...], periodic: tuple[bool, ...]
) -> None:
    x = np.random.default_rng(0).normal(size=(2, *shape, 3)).astype(np.float32)
    patches = grid_patches(shape, periodic, 4)
    tokens = patches.patchify(jnp.asarray(x))
    assert tokens.shape == (2, *patches.counts, patches.points * 3)
    np.testing.assert_array_equal(patches.unpatchify(tokens), x)
    np.testing.assert_allclose(patches.project(patches.resample(tokens)), x, atol=3e-6)


def test_an_axis_between_walls_is_extended_by_its_last_value() -> None:
    patches = grid_patches((5,), (False,), 3)
    tokens = patches.patchify(jnp.arange(5.0)[None, :, None])
    np.testing.assert_array_equal(tokens[0], [[0, 1, 2], [3, 4, 4]])
    assert patches.resample(tokens) is tokens


@pytest.mark.parametrize(("points", "new_points"), [(101, 104), (10, 12), (7, 8)])
def test_resampling_evaluates_the_modes_that_an_axis_resolves(points: int, new_points: int) -> None:
    def wave(count: int) -> np.ndarray:
        x = 2 * np.pi * np.arange(count) / count
        return 0.3 + sum(np.cos(mode * x + mode) for mode in range(1, (points + 1) // 2))[None, :, None]

    up = resample_periodic(jnp.asarray(wave(points), jnp.float32), 0, new_points)
    np.testing.assert_allclose(up, wave(new_points), atol=2e-5 * points)
    np.testing.assert_allclose(resample_periodic(up, 0, points), wave(points), atol=2e-5 * points)


def test_projection_removes_modes_beyond_the_axis_and_keeps_the_mean() -> None:
    extended = np.random.default_rng(0).normal(size=(1, 104, 1)).astype(np.float32)
    modes = np.fft.rfft(extended[0, :, 0])
    expected = np.fft.irfft(modes[:51], 101) * 101 / 104
    patches = grid_patches((101,), (True,), 4)
    field = np.asarray(patches.project(patchify(jnp.asarray(extended), (4,))))[0, :, 0]
    np.testing.assert_allclose(field, expected, atol=1e-5)
    np.testing.assert_allclose(field.mean(), extended.mean(), atol=1e-6)


def task_on(shape: tuple[int, ...], periodic: tuple[bool, ...], **changes: Any) -> Task:
    axes = len(shape)
    return Task(
        name="any", channels=("u",), axes=("x", "y", "z")[:axes], shape=shape, origin=(0.0,) * axes,
        spacing=(1.0,) * axes, periodic=periodic, dt=1.0, conserved=(0,),
        statistics=Statistics(mean=(0.0,), std=(1.0,), delta_std=(0.1,)), **changes,
    )  # fmt: skip


def conditions(rows: int) -> Conditions:
    return Conditions(dt=jnp.ones(rows), coefficients=jnp.zeros((rows, 0)), mask=jnp.zeros((rows, 0)))


def moved(params: Any) -> Any:
    """Parameters with every zero-initialised leaf moved, as after training."""
    rng = np.random.default_rng(2)
    return jax.tree.map(lambda leaf: leaf + 0.1 * rng.normal(size=leaf.shape).astype(np.float32), params)


@pytest.mark.parametrize(("shape", "periodic"), PRIMES[1:])
def test_an_untrained_steady_simulator_returns_the_mean_and_a_trained_one_keeps_it(
    shape: tuple[int, ...], periodic: tuple[bool, ...]
) -> None:
    model = SteadySimulator(task_on(shape, periodic, kind="steady", inputs=(Input(name="a"),)), LATENT, OPERATOR)
    inputs = np.random.default_rng(0).normal(size=(2, *shape, 1)).astype(np.float32)
    params = jax.jit(model.init)(jax.random.key(0), inputs, conditions(2))
    solve = jax.jit(model.apply)
    np.testing.assert_array_equal(solve(params, inputs, conditions(2)), np.zeros_like(inputs))
    solution = np.asarray(solve(moved(params), inputs, conditions(2)))
    assert np.abs(solution).max() > 1e-3 and np.abs(solution.mean(tuple(range(1, solution.ndim)))).max() < 1e-6


@pytest.mark.parametrize(("shape", "periodic"), PRIMES[2:])
def test_an_untrained_corrector_returns_the_velocity_of_white_noise(
    shape: tuple[int, ...], periodic: tuple[bool, ...]
) -> None:
    model = Corrector(task_on(shape, periodic), LATENT, OPERATOR)
    x, fields = (np.random.default_rng(n).normal(size=(2, *shape, 1 + n)).astype(np.float32) for n in range(2))
    time, inputs = jnp.asarray([0.2, 0.7]), CorrectorInputs(fields=jnp.asarray(fields), cond=conditions(2))
    params = jax.jit(model.init)(jax.random.key(0), x, time, inputs)
    expected = ((2 * time - 1) / (time**2 + (1 - time) ** 2)).reshape(2, *[1] * (x.ndim - 1)) * x
    apply = jax.jit(model.apply)
    np.testing.assert_allclose(apply(params, x, time, inputs), expected, rtol=1e-6)
    assert np.abs(apply(moved(params), x, time, inputs) - expected).max() > 1e-3


def test_a_model_on_a_resampled_grid_is_exported_with_a_symbolic_batch() -> None:
    model = Simulator(task_on((13,), (True,)), LATENT, OPERATOR)
    fields = np.random.default_rng(0).normal(size=(3, 1, 13, 1)).astype(np.float32)
    params = moved(jax.jit(model.init)(jax.random.key(0), fields, conditions(3)))
    (batch,) = export.symbolic_shape("b")

    def step(fields: jax.Array) -> jax.Array:
        return model.apply(params, fields, conditions(fields.shape[0]))  # type: ignore[return-value]

    exported = export.export(jax.jit(step), platforms=("cpu", "cuda"))(
        jax.ShapeDtypeStruct((batch, 1, 13, 1), jnp.float32)
    )
    again = export.deserialize(exported.serialize())
    np.testing.assert_allclose(jax.jit(again.call)(fields), jax.jit(step)(fields), atol=1e-6)
