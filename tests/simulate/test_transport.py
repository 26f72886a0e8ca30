"""Advection and diffusion in three dimensions against closed forms and a solver of another's making."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import exponax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ups_jax import simulate
from ups_jax.data.sources import open_file
from ups_jax.data.sources.base import read_trajectories
from ups_jax.simulate import transport
from ups_jax.simulate.presets import PRESETS

TASK = "advection_diffusion3d"
TINY = PRESETS[TASK]["tiny"]


def quiet(line: str) -> None:
    pass


def test_a_wave_is_carried_along_its_velocity_and_decays_by_its_wavenumber() -> None:
    """u = exp(-nu |k|^2 t) cos(k . (x - beta t) + phase)."""
    numbers, phase, extent = np.array([2, -1, 1]), 0.7, 3.0
    amplitudes = np.zeros((5, 5, 5), complex)
    amplitudes[tuple(2 + numbers)], amplitudes[tuple(2 - numbers)] = 0.5 * np.exp([1j * phase, -1j * phase])
    beta, nu = np.array([0.4, -1.1, 0.3]), 0.03
    item = transport.AdvectionDiffusion(amplitudes=amplitudes, velocity=beta, diffusivity=nu)
    axis, times = -1.5 + extent * np.arange(7) / 7, np.array([0.0, 0.4, 1.3])
    frames = item.evaluate(axis, times, extent)
    k, x = 2 * np.pi / extent * numbers, np.stack(np.meshgrid(axis, axis, axis, indexing="ij"), -1)
    for time, frame in zip(times, frames, strict=True):
        exact = np.exp(-nu * k @ k * time) * np.cos((x - beta * time) @ k + phase)
        np.testing.assert_allclose(frame, exact, atol=1e-12)


def test_trajectories_solve_the_equation_of_their_parameters() -> None:
    fields, parameters = transport.solve(replace(TINY, trajectories=3), 0, quiet)
    assert list(parameters) == ["nu", "beta_x", "beta_y", "beta_z"]
    with jax.enable_x64(True), jax.numpy_rank_promotion("allow"):
        for row in range(3):
            beta = jnp.array([parameters[f"beta_{name}"][row] for name in "xyz"])
            stepper = exponax.stepper.AdvectionDiffusion(
                3, TINY.extent, TINY.points, TINY.dt, velocity=beta, diffusivity=float(parameters["nu"][row])
            )
            theirs = exponax.rollout(stepper, TINY.steps, include_init=True)(jnp.asarray(fields[row, :1], float))
            np.testing.assert_allclose(fields[row], theirs[:, 0], atol=2e-6)


def test_fields_are_of_unit_size_at_first_and_parameters_between_their_bounds() -> None:
    preset = replace(PRESETS[TASK]["default"], trajectories=40, steps=1)
    fields, parameters = transport.solve(preset, 0, quiet)
    np.testing.assert_allclose(np.square(fields[:, 0]).mean((1, 2, 3)), 1, rtol=1e-5)
    nu, beta = parameters["nu"], np.stack([parameters[f"beta_{name}"] for name in "xyz"])
    assert nu.min() > preset.low and nu.max() < preset.high
    # As many below the geometric mean of the bounds as above it, and velocities of either sign along each axis.
    assert 10 < (nu < np.sqrt(preset.low * preset.high)).sum() < 30
    assert np.abs(beta).max() < preset.max_speed and (np.abs(beta.mean(1)) < 0.35).all() and (beta.std(1) > 0.4).all()


def test_a_file_has_every_parameter_and_a_finer_one_the_same_fields(tmp_path: Path) -> None:
    fine, coarse = tmp_path / "fine.hdf5", tmp_path / "coarse.hdf5"
    assert simulate.generate(TASK, "tiny_double", fine, seed=3, trajectories=2)
    assert simulate.generate(TASK, "tiny", coarse, seed=3, trajectories=4)
    sources = [open_file(path, "transient", ("u",)) for path in (fine, coarse)]
    assert [source.grid.shape for source in sources] == [(16,) * 3, (8,) * 3]
    assert sources[0].grid.origin == (-1.0,) * 3 and sources[0].grid.spacing == pytest.approx((0.125,) * 3)
    assert sources[0].grid.dt == pytest.approx(0.05) and sources[0].frames == 9
    ids = np.arange(2)
    between, expected = (read_trajectories(source, ids) for source in sources)
    np.testing.assert_allclose(between[:, :, ::2, ::2, ::2], expected, atol=1e-6)
    assert set(sources[0].coefficient_names()) == {"nu", "beta_x", "beta_y", "beta_z"}
    for name in sources[0].coefficient_names():
        one, two = (source.coefficient(name) for source in sources)
        assert one is not None and two is not None and np.array_equal(one, two[:2]) and two.std() > 0
