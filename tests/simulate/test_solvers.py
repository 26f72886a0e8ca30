"""The embedded solvers against closed forms: a Fourier shift for advection, Cole and Hopf's solution for Burgers."""

from __future__ import annotations

from dataclasses import replace

import jax
import numpy as np
import pytest

from ups_jax.errors import ConfigError
from ups_jax.simulate import PRESETS
from ups_jax.simulate.presets import find
from ups_jax.simulate.solvers import solve

EXTENT = 2.0


def solved(task, **changes):
    preset = replace(PRESETS[task]["tiny"], trajectories=6, **changes)
    fields, coefficients = solve(task, preset, 0, lambda line: None)
    return preset, fields, coefficients


@pytest.fixture(scope="module")
def burgers():
    return solved("burgers1d")


def frequencies(points):
    return 2 * np.pi * np.fft.rfftfreq(points, EXTENT / points)


def relative(result, exact):
    return np.linalg.norm(result - exact, axis=-1) / np.linalg.norm(exact, axis=-1)


def cole_hopf(initial, nu, times):
    """u = -2 nu phi_x / phi with phi_t = nu phi_xx; `initial` holds few modes, so that it is known on any grid."""
    fine = 4096
    spectrum = np.zeros(fine // 2 + 1, complex)
    spectrum[: len(initial) // 2] = np.fft.rfft(initial.astype(np.float64))[:-1] * fine / len(initial)
    k = frequencies(fine)
    integral = np.fft.irfft(np.divide(spectrum, 1j * k, out=np.zeros_like(spectrum), where=k > 0), fine)
    phi = np.fft.rfft(np.exp(-integral / (2 * nu)))
    decayed = phi * np.exp(-nu * k**2 * times[:, None])
    u = -2 * nu * np.fft.irfft(1j * k * decayed, fine) / np.fft.irfft(decayed, fine)
    return u[:, :: fine // len(initial)]


def test_advection_is_the_exact_shift():
    preset, fields, speeds = solved("advection1d", steps=40)
    times = preset.dt * np.arange(41)
    k = frequencies(preset.points)
    initial = np.fft.rfft(fields[:, :1].astype(np.float64))
    exact = np.fft.irfft(initial * np.exp(-1j * k * (speeds[:, None] * times)[..., None]), preset.points)
    assert relative(fields, exact).max() < 1e-5


def burgers_error(preset, fields, nus):
    times = preset.dt * np.arange(preset.steps + 1)
    exact = np.stack([cole_hopf(u[0], nu, times) for u, nu in zip(fields, nus.astype(np.float64), strict=True)])
    return relative(fields, exact).max()


def test_burgers_is_cole_and_hopfs_solution(burgers):
    assert burgers_error(*burgers) < 2e-6


def test_burgers_converges_in_fourth_order():
    coarse, fine = (burgers_error(*solved("burgers1d", substeps=substeps)) for substeps in (1, 2))
    assert 8 < coarse / fine < 32


def test_initial_fields_and_coefficients_are_as_the_preset_says(burgers):
    preset, fields, nus = burgers
    assert np.abs(fields[:, 0]).max(axis=1) == pytest.approx(1.0, abs=0.02)
    spectrum = np.abs(np.fft.rfft(fields[:, 0]))
    assert spectrum[:, preset.modes + 1 :].max() < 1e-4 * spectrum.max()
    assert spectrum[:, preset.modes].max() > 0.01 * spectrum.max()
    assert ((nus >= preset.low) & (nus <= preset.high)).all() and len(np.unique(nus)) == 6


def test_a_trajectory_depends_on_seed_task_and_number_only():
    preset = replace(PRESETS["advection1d"]["tiny"], steps=2)
    few, many, other = (
        solve("advection1d", replace(preset, trajectories=count), seed, lambda line: None)
        for count, seed in ((3, 0), (40, 0), (3, 1))
    )
    np.testing.assert_array_equal(few[0], many[0][:3])
    np.testing.assert_array_equal(few[1], many[1][:3])
    assert not np.isin(few[1], other[1]).any()
    assert len(np.unique(many[1])) == 40


def test_the_callers_jax_settings_do_not_matter():
    preset = replace(PRESETS["advection1d"]["tiny"], trajectories=2, steps=2)
    plain = solve("advection1d", preset, 0, lambda line: None)[0]
    with jax.enable_x64(True), jax.numpy_rank_promotion("raise"):
        strict = solve("advection1d", preset, 0, lambda line: None)[0]
    assert strict.dtype == np.float32
    np.testing.assert_array_equal(strict, plain)


@pytest.mark.parametrize(
    "task, preset, message",
    [("burger1d", "default", "did you mean 'burgers1d'"), ("burgers1d", "tinny", "did you mean 'tiny'")],
)
def test_an_unknown_name_is_answered_with_the_nearest(task, preset, message):
    with pytest.raises(ConfigError, match=message):
        find(task, preset)


def test_every_preset_subsamples_a_whole_number_of_points():
    for presets in PRESETS.values():
        for preset in presets.values():
            assert preset.solved_points % preset.points == 0 and preset.points > 2 * preset.modes
