"""The equations of the built-in tasks against derivatives by hand, and their residual on what the solvers wrote."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from ups_jax.simulate.equations import EQUATIONS, tendency, trapezoidal_residual
from ups_jax.simulate.presets import PRESETS
from ups_jax.simulate.solvers import STEPPERS, solve

X = np.arange(32) * 2 * np.pi / 32
ONE, TWO = (2 * np.pi,), (2 * np.pi, 2 * np.pi)


def line(values: np.ndarray) -> jnp.ndarray:
    return jnp.asarray(values[None], jnp.float32)


def test_the_tendencies_are_those_that_are_found_by_hand() -> None:
    k, c = 3, 0.2
    u, transport = np.sin(k * X), -k / 2 * np.sin(2 * k * X)
    by_hand = {
        "burgers1d": transport - c * k**2 * u,
        "advection1d": -c * k * np.cos(k * X),
        "ks1d": transport + (k**2 - k**4) * u,
    }
    for name, expected in by_hand.items():
        actual = tendency(EQUATIONS[name], line(u), jnp.full(1, c), ONE)
        np.testing.assert_allclose(actual[0], expected, atol=2e-4 * np.abs(expected).max(), err_msg=name)


def test_vorticity_moves_with_the_velocity_whose_curl_it_is() -> None:
    x, y = np.meshgrid(X, X, indexing="ij")
    # psi = sin x + sin(2 y) / 4, so that v = (cos(2 y) / 2, -cos x).
    w = np.sin(x) + np.sin(2 * y)
    expected = -(np.cos(2 * y) / 2 * np.cos(x) - np.cos(x) * 2 * np.cos(2 * y)) - 0.1 * (np.sin(x) + 4 * np.sin(2 * y))
    actual = tendency(EQUATIONS["ns2d"], line(w), jnp.full(1, 0.1), TWO)
    np.testing.assert_allclose(actual[0], expected, atol=1e-4)


@pytest.mark.parametrize("name", sorted(STEPPERS))
def test_the_residual_of_a_solved_step_falls_with_the_third_power_of_it(name: str) -> None:
    preset = replace(
        PRESETS[name]["default"], trajectories=1, points=64, solved_points=64, steps=4, modes=3, burn_in=0, substeps=20,
        dt=0.02, amplitude=1.0, low=0.05 if name != "ks1d" else 1.0, high=0.05 if name != "ks1d" else 1.0,
    )  # fmt: skip
    solved, values = solve(name, preset, 0, lambda _: None)
    fields = jnp.asarray(solved)
    extent, coefficient = (preset.extent,) * preset.dimensions, jnp.full(1, values[0])
    left = [
        float(
            trapezoidal_residual(EQUATIONS[name], fields[:, 0], fields[:, far], far * preset.dt, coefficient, extent)[0]
        )
        for far in (2, 4)
    ]
    size = float(jnp.sqrt(jnp.square(fields[:, 4] - fields[:, 0]).mean()))
    assert left[1] < 0.1 * size, (left, size)
    # Float32 keeps the smaller of them from falling as far where there is next to no error.
    assert left[1] > 4 * left[0] or left[1] < 1e-5, left
    noise = jnp.asarray(0.1 * size * np.random.default_rng(0).normal(size=fields[:, 4].shape), jnp.float32)
    worse = trapezoidal_residual(
        EQUATIONS[name], fields[:, 0], fields[:, 4] + noise, 4 * preset.dt, coefficient, extent
    )
    assert float(worse[0]) > left[1]


def test_every_equation_is_of_a_task_that_the_generator_has(tmp_path: Path) -> None:
    assert set(EQUATIONS) == set(STEPPERS)
