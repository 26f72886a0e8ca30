"""The built-in solvers against closed forms (a Fourier shift, Cole and Hopf's solution) and another integrator."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import exponax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import solve_ivp

from ups_jax import config
from ups_jax.core.errors import ConfigError
from ups_jax.core.task import Symmetry
from ups_jax.data.symmetry_check import apply_symmetry
from ups_jax.simulate import PRESETS
from ups_jax.simulate.presets import (
    DarcyPreset,
    MeshPreset,
    ParticlePreset,
    ReactionPreset,
    TransportPreset,
    get_preset,
)
from ups_jax.simulate.solvers import STEPPERS, solve

EXTENT = 2.0
ROOT = Path(__file__).resolve().parents[2]


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


def integrated(right_hand_side, initial, times):
    """A second implementation: an explicit order 8 method with error control on the grid's values."""
    result = solve_ivp(
        lambda t, u: right_hand_side(u.reshape(initial.shape)).ravel(),
        (0, times[-1]),
        initial.ravel(),
        "DOP853",
        times,
        rtol=1e-8,
        atol=1e-10,
    )
    return result.y.T.reshape(-1, *initial.shape)


def refined(field, points):
    """Return the trigonometric polynomial on a finer grid; the highest frequency of the coarse one must be empty."""
    for axis in range(field.ndim):
        spectrum = np.fft.rfft(field.astype(np.float64), axis=axis)
        field = np.fft.irfft(spectrum, points, axis=axis) * points / field.shape[axis]
    return field


def test_kuramoto_sivashinsky_is_the_equation():
    preset, fields, _ = solved("ks1d", steps=6, burn_in=0)
    k = 2 * np.pi * np.fft.rfftfreq(128, preset.extent / 128)

    def right_hand_side(u):
        return np.fft.irfft((k**2 - k**4) * np.fft.rfft(u) - 0.5j * k * np.fft.rfft(u**2) * (k < k[-1] * 2 / 3))

    for trajectory in fields[:2]:
        exact = integrated(right_hand_side, refined(trajectory[0], 128), preset.dt * np.arange(7))[:, ::2]
        assert relative(trajectory, exact).max() < 1e-5


def test_burn_in_drops_the_first_frames_and_ends_on_the_attractor():
    _, whole, _ = solved("ks1d", steps=8, burn_in=0)
    _, late, _ = solved("ks1d", steps=3, burn_in=5)
    np.testing.assert_allclose(late, whole[:, 5:], atol=1e-5)
    _, fields, _ = solved("ks1d", steps=80)
    rms = np.sqrt((fields**2).mean(axis=(0, 2)))
    assert rms[:20].mean() == pytest.approx(rms[60:].mean(), rel=0.1) and rms[0] > 2 * np.sqrt(
        (whole[:, 0] ** 2).mean()
    )
    assert np.abs(fields.mean(axis=2)).max() < 1e-6


def test_navier_stokes_is_the_vorticity_equation():
    preset, fields, _ = solved("ns2d", steps=4)
    assert np.abs(fields[:, 0]).max(axis=(1, 2)) == pytest.approx(preset.amplitude, rel=0.1)
    kx, ky = np.fft.fftfreq(64, 1 / 64)[:, None], np.fft.rfftfreq(64, 1 / 64)
    square = kx**2 + ky**2
    kept = (np.abs(kx) < 21) & (ky < 21)
    inverse = np.divide(1, square, out=np.zeros_like(square), where=square > 0)

    def right_hand_side(w):
        spectrum = np.fft.rfft2(w)
        stream = spectrum * inverse
        grid = [
            np.fft.irfft2(1j * k * f * kept) for f, k in ((stream, ky), (stream, kx), (spectrum, kx), (spectrum, ky))
        ]
        advection = grid[0] * grid[2] - grid[1] * grid[3]
        return np.fft.irfft2(-preset.low * square * spectrum - np.fft.rfft2(advection) * kept)

    exact = integrated(right_hand_side, refined(fields[0, 0], 64), preset.dt * np.arange(5))[:, ::2, ::2]
    errors = np.linalg.norm(fields[0] - exact, axis=(1, 2)) / np.linalg.norm(exact, axis=(1, 2))
    assert errors.max() < 1e-4
    assert np.linalg.norm(exact[-1] - exact[0]) > 0.5 * np.linalg.norm(exact[0])


@pytest.mark.parametrize("name", ["burgers1d", "ks1d", "ns2d"])
def test_a_declared_symmetry_commutes_with_the_solver(name):
    (task,) = config.load(ROOT / "configs" / f"{name}.yaml").data.tasks
    preset = PRESETS[name]["tiny"]

    def violation(reflect, negate, swap=()):
        places = {"reflect": reflect, "swap": swap}
        by_index = {key: tuple("xy".index(axis) for axis in axes) for key, axes in places.items()}
        symmetry = Symmetry(negate=(0,) if negate else (), **by_index)

        def moved_by(field):
            return apply_symmetry(np.asarray(field)[0, None, None, ..., None], symmetry)[0, 0, None, ..., 0]

        moved = step(initial)
        return np.abs(step(moved_by(initial)) - moved_by(moved)).max() / np.abs(moved - initial).max()

    with jax.enable_x64(True), jax.numpy_rank_promotion("allow"):
        series = exponax.ic.RandomTruncatedFourierSeries(preset.dimensions, cutoff=3, max_one=True)
        initial = 2 * np.asarray(series(preset.solved_points, key=jax.random.key(0)))
        coefficient = 0.02 if task.name != "ks1d" else 1.0

        @jax.jit
        def step(field):
            one = STEPPERS[name](preset, jnp.asarray(coefficient))
            return exponax.RepeatedStepper(one, preset.substeps)(field)

        for symmetry in task.symmetries:
            assert violation(symmetry.reflect, symmetry.negate, symmetry.swap) < 1e-9
            assert violation(symmetry.reflect, (), symmetry.swap) > 0.05 < violation((), symmetry.negate)


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
    later = solve("advection1d", replace(preset, trajectories=3, first_index=3), 0, lambda line: None)
    np.testing.assert_array_equal(later[0], many[0][3:6])


def test_the_long_preset_has_other_trajectories_than_the_default():
    default, long = get_preset("ns2d", "default"), get_preset("ns2d", "long")
    assert long.first_index >= default.first_index + default.trajectories and long.steps > default.steps
    assert long == replace(default, trajectories=long.trajectories, steps=long.steps, first_index=long.first_index)


def test_the_callers_jax_settings_do_not_matter():
    preset = replace(PRESETS["advection1d"]["tiny"], trajectories=2, steps=2)
    plain = solve("advection1d", preset, 0, lambda line: None)[0]
    with jax.enable_x64(True), jax.numpy_rank_promotion("raise"):
        strict = solve("advection1d", preset, 0, lambda line: None)[0]
    assert strict.dtype == np.float32
    np.testing.assert_array_equal(strict, plain)


@pytest.mark.parametrize("task", ["burgers1d", "advection1d", "ns2d"])
def test_every_second_point_of_a_double_preset_is_the_single_one_to_the_bit(task):
    single, double = (replace(PRESETS[task][name], trajectories=2, steps=3) for name in ("tiny", "tiny_double"))
    assert double == replace(single, points=2 * single.points)
    (coarse, coefficient), (fine, fine_coefficient) = (
        solve(task, preset, 0, lambda line: None) for preset in (single, double)
    )
    every = (slice(None, None, 2),) * single.dimensions
    np.testing.assert_array_equal(fine[(..., *every)], coarse)
    np.testing.assert_array_equal(coefficient, fine_coefficient)
    # The points between are of the same field: it holds few modes at first, and those explain it everywhere.
    between = np.stack([refined(field, 2 * single.points) for field in coarse[:, 0]])
    np.testing.assert_allclose(fine[:, 0], between, atol=1e-6 * np.abs(coarse).max())


def test_every_transient_preset_has_its_double():
    for task in ("burgers1d", "advection1d", "ks1d", "ns2d"):
        singles = [name for name in PRESETS[task] if "double" not in name]
        for name in singles:
            double = get_preset(task, "double" if name == "default" else f"{name}_double")
            assert double == replace(get_preset(task, name), points=2 * get_preset(task, name).points)
            # Only advection, whose modes are known, stores more points than it solves.
            assert double.points <= double.solved_points or task == "advection1d"


@pytest.mark.parametrize(
    "task, preset, message", [("burger1d", "default", "'burgers1d'"), ("burgers1d", "tinny", "'tiny'")]
)
def test_an_unknown_name_is_answered_with_the_nearest(task, preset, message):
    with pytest.raises(ConfigError, match=message):
        get_preset(task, preset)


def test_every_preset_of_a_grid_stores_a_whole_fraction_or_multiple_of_the_solved_points():
    for presets in PRESETS.values():
        for preset in presets.values():
            if isinstance(preset, MeshPreset | ParticlePreset):
                continue
            if isinstance(preset, TransportPreset):
                assert preset.points > 2 * preset.modes
                continue
            assert max(preset.solved_points, preset.points) % min(preset.solved_points, preset.points) == 0
            assert isinstance(preset, DarcyPreset | ReactionPreset) or preset.points > 2 * preset.modes
