"""The finite-volume flows against exact solutions of Riemann problems and waves, and what they must keep."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import h5py
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import brentq

from ups_jax import config, simulate
from ups_jax.data import open_dataset
from ups_jax.data.sources.base import read_trajectories
from ups_jax.simulate import compressible, finite_volumes, shallow_water
from ups_jax.simulate.presets import PRESETS, FiniteVolumePreset

ROOT = Path(__file__).resolve().parents[2]


def preset(task: str, **changes: float) -> FiniteVolumePreset:
    base = PRESETS[task]["tiny"]
    assert isinstance(base, FiniteVolumePreset)
    return replace(base, **changes)


def advanced(
    rate, chosen: FiniteVolumePreset, coefficient: float, state: np.ndarray, time: float, steps: int
) -> np.ndarray:
    """The primitive fields after `steps` steps of Heun's method."""
    flow = compressible if rate is compressible.time_derivative else shallow_water
    with jax.enable_x64(True), jax.numpy_rank_promotion("allow"):
        step, value = time / steps, jnp.asarray(coefficient)

        def substep(_, state):
            first = state + step * rate(chosen, value, state)
            return 0.5 * (state + first + step * rate(chosen, value, first))

        final = jax.jit(lambda s: jax.lax.fori_loop(0, steps, substep, s))(flow.to_conserved(jnp.asarray(state)))
        return np.asarray(flow.to_primitive(final))


def sod(x: np.ndarray, time: float, gamma: float) -> np.ndarray:
    """Density, pressure and velocity of Sod's tube, from its exact Riemann problem (Toro, chapter 4)."""
    (rl, pl), (rr, pr) = (1.0, 1.0), (0.125, 0.1)
    al, ar = np.sqrt(gamma * pl / rl), np.sqrt(gamma * pr / rr)
    power = (gamma - 1) / (2 * gamma)

    def velocity_jump(p: float) -> float:
        rarefied = 2 * al / (gamma - 1) * ((p / pl) ** power - 1)
        shocked = (p - pr) * np.sqrt(2 / ((gamma + 1) * rr) / (p + (gamma - 1) / (gamma + 1) * pr))
        return rarefied + shocked

    p = brentq(velocity_jump, pr, pl)
    u = -2 * al / (gamma - 1) * ((p / pl) ** power - 1)
    left = rl * (p / pl) ** (1 / gamma)
    ratio, g = p / pr, (gamma - 1) / (gamma + 1)
    right = rr * (ratio + g) / (g * ratio + 1)
    shock = ar * np.sqrt((gamma + 1) / (2 * gamma) * ratio + power)
    s = x / time
    fan = 2 / (gamma + 1) + g / al * (0 - s)
    states = [
        (s < -al, (rl, pl, 0.0)),
        (
            s < u - al * (p / pl) ** power,
            (rl * fan ** (2 / (gamma - 1)), pl * fan ** (1 / power), 2 / (gamma + 1) * (al + s)),
        ),
        (s < u, (left, p, u)),
        (s < shock, (right, p, u)),
        (s > -np.inf, (rr, pr, 0.0)),
    ]
    return np.stack([np.select([where for where, _ in states], [state[k] for _, state in states]) for k in range(3)])


def test_sods_tube_is_that_of_the_exact_riemann_problem() -> None:
    chosen = preset("cfd1d", solved_points=800)
    x = -1 + (np.arange(800) + 0.5) / 400
    # Periodic: a second discontinuity at the ends, whose waves stay outside of |x| < 0.5.
    state = np.stack([np.where(x < 0, 1.0, 0.125), np.where(x < 0, 1.0, 0.1), 0 * x])
    solution = advanced(compressible.time_derivative, chosen, 0.0, state, 0.2, 400)
    inside = np.abs(x) < 0.5
    exact = sod(x[inside], 0.2, compressible.GAMMA)
    error = np.abs(solution[:, inside] - exact).mean(axis=1)
    assert (error < [0.004, 0.004, 0.012]).all(), error


def stoker(x: np.ndarray, time: float, gravity: float) -> np.ndarray:
    """Height and velocity of a breaking dam between depths 2 and 1 (Stoker 1957)."""
    hl, hr = 2.0, 1.0
    cl = np.sqrt(gravity * hl)

    def mismatch(h: float) -> float:
        return 2 * (cl - np.sqrt(gravity * h)) - (h - hr) * np.sqrt(gravity * (h + hr) / (2 * h * hr))

    h = brentq(mismatch, hr, hl)
    u = 2 * (cl - np.sqrt(gravity * h))
    shock, s = h * u / (h - hr), x / time
    fan = [(2 * cl - s) ** 2 / (9 * gravity), 2 / 3 * (cl + s)]
    places = [s < -cl, s < u - np.sqrt(gravity * h), s < shock]
    return np.stack([np.select(places, values, default) for values, default in
                     (([hl, fan[0], h], hr), ([0.0, fan[1], u], 0.0))])  # fmt: skip


@pytest.mark.parametrize("axis", [0, 1])
def test_a_breaking_dam_is_stokers_along_either_axis(axis: int) -> None:
    chosen = preset("swe2d", solved_points=256)
    x = -2.5 + (np.arange(256) + 0.5) * 5 / 256
    # Four cells across are enough where nothing varies.
    height = np.broadcast_to(np.where(x < 0, 2.0, 1.0)[:, None], (256, 4))
    height = height if axis == 0 else height.T
    solution = advanced(
        shallow_water.time_derivative, chosen, 1.3, np.stack([height, 0 * height, 0 * height]), 0.7, 120
    )
    line = solution[[0, 1 + axis]][:, :, 2] if axis == 0 else solution[[0, 1 + axis]][:, 2, :]
    error = np.abs(line - stoker(x, 0.7, 1.3)).mean(axis=1)
    assert (error < [0.006, 0.006]).all(), error
    assert np.abs(solution[2 - axis]).max() < 1e-12


def test_a_small_sound_wave_travels_at_the_speed_of_sound_and_decays_as_viscosity_says() -> None:
    points, eta, size = 256, 2e-3, 1e-4
    chosen = preset("cfd1d", solved_points=points)
    x = -1 + (np.arange(points) + 0.5) * 2 / points
    sound = np.sqrt(compressible.GAMMA)
    wave = size * np.sin(2 * np.pi * x)
    solution = advanced(
        compressible.time_derivative, chosen, eta, np.stack([1 + wave, 1 + sound**2 * wave, sound * wave]), 0.5, 300
    )
    wavenumber = 2 * np.pi
    decay = np.exp(-0.5 * (4 / 3 * eta + eta) * wavenumber**2 * 0.5)
    assert decay < 0.96
    expected = size * decay * np.sin(wavenumber * (x - sound * 0.5))
    np.testing.assert_allclose(solution[0] - 1, expected, atol=0.02 * size)


def test_what_the_equations_keep_is_kept_and_trajectories_do_not_depend_on_their_number() -> None:
    for task, kept in (("cfd1d", 0), ("swe2d", 0)):
        few, values = finite_volumes.solve(task, preset(task, trajectories=2, steps=3), 3, lambda _: None)
        more, _ = finite_volumes.solve(task, preset(task, trajectories=9, steps=3), 3, lambda _: None)
        np.testing.assert_array_equal(few, more[:2])
        means = few[..., kept].mean(axis=tuple(range(2, few.ndim - 1)), dtype=np.float64)
        np.testing.assert_allclose(means, means[:, :1].repeat(means.shape[1], 1), rtol=1e-6)
        assert len(set(values.tolist())) == 2 and np.ptp(few[:, -1] - few[:, 0]) > 0.1


@pytest.mark.parametrize("name", ["cfd1d", "swe2d"])
def test_a_shipped_configuration_declares_what_its_data_keep(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = preset(name, trajectories=10, steps=4)
    monkeypatch.setitem(PRESETS[name], "tiny", chosen)
    cfg = config.load(ROOT / "configs" / f"{name}.yaml", [f"data.root={tmp_path}", "data.tasks.0.preset=tiny"])
    (path,) = simulate.generate_missing(cfg)
    dataset = open_dataset(cfg)
    task = dataset.task
    assert task.conserved == (0,) and task.symmetries and len(task.channels) == 3
    assert dataset.condition_mask.all() and np.ptp(dataset.conditions[:, 0]) > 0
    # A second time nothing is made, another seed is somebody's choice.
    assert simulate.generate_missing(cfg) == []
    solved, values = finite_volumes.solve(name, replace(chosen, trajectories=2), 0, lambda _: None)
    np.testing.assert_array_equal(read_trajectories(dataset.source, np.arange(2)), solved)
    np.testing.assert_allclose(dataset.conditions[:2, 0], values, rtol=1e-6)
    with h5py.File(path) as file:
        assert file.attrs["boundary"] == ("periodic" if name == "cfd1d" else "wall")
        assert ("density" in file) == (name == "cfd1d") and ("0000" in file) == (name == "swe2d")
    step = chosen.extent / chosen.points
    np.testing.assert_allclose(task.origin[0], chosen.origin + step / 2)
