"""The Gray-Scott solver against another integrator, its symmetries, and the share of trajectories at rest."""

from __future__ import annotations

import zlib
from dataclasses import replace
from pathlib import Path

import h5py
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from commands import CONFIGS
from scipy.integrate import solve_ivp

from ups_jax import simulate
from ups_jax.config import load
from ups_jax.core.task import Symmetry
from ups_jax.data import open_dataset
from ups_jax.data.symmetry_check import apply_symmetry
from ups_jax.simulate import gray_scott
from ups_jax.simulate.presets import PRESETS, ReactionPreset

TASK = "reaction_diffusion2d"
TINY = PRESETS[TASK]["tiny"]
assert isinstance(TINY, ReactionPreset)
SMALL = replace(TINY, trajectories=8)


@pytest.fixture(scope="module")
def trajectories() -> tuple[np.ndarray, dict[str, np.ndarray]]:
    return gray_scott.solve(TASK, SMALL, 0, lambda line: None)


def test_a_frame_is_that_of_another_integrator(trajectories: tuple[np.ndarray, dict[str, np.ndarray]]) -> None:
    fields, rates = trajectories
    size = TINY.solved_points
    waves = 2 * np.pi / TINY.extent * np.fft.fftfreq(size, 1 / size)
    laplacian = -(waves[:, None] ** 2 + waves[None] ** 2)
    feed, kill = float(rates["feed"][0]), float(rates["kill"][0])

    def right_hand_side(_: float, flat: np.ndarray) -> np.ndarray:
        u, v = flat.reshape(2, size, size)
        diffused = [
            d * np.fft.ifft2(laplacian * np.fft.fft2(x)).real for d, x in zip(TINY.diffusivities, (u, v), strict=True)
        ]
        return np.stack([diffused[0] - u * v**2 + feed * (1 - u), diffused[1] + u * v**2 - (feed + kill) * v]).ravel()

    with jax.enable_x64(True), jax.numpy_rank_promotion("allow"):
        key = jax.random.fold_in(jax.random.fold_in(jax.random.key(0), zlib.crc32(TASK.encode())), 0)
        initial = np.asarray(gray_scott.initial_state(TINY, jax.random.split(key, 3)[0]))
    np.testing.assert_allclose(fields[0, 0], np.moveaxis(initial[:, ::2, ::2], 0, -1), atol=1e-6)
    exact = solve_ivp(right_hand_side, (0, TINY.dt), initial.ravel(), rtol=1e-6, atol=1e-8).y[:, -1]
    expected = np.moveaxis(exact.reshape(2, size, size)[:, ::2, ::2], 0, -1)
    error = np.sqrt(np.mean((fields[0, 1] - expected) ** 2, (0, 1))) / fields.std((0, 1, 2, 3))
    assert error.max() < 5e-3


def test_some_trajectories_come_to_rest_and_others_form_patterns(
    trajectories: tuple[np.ndarray, dict[str, np.ndarray]],
) -> None:
    fields, rates = trajectories
    assert fields.shape == (8, 21, 32, 32, 2) and fields.dtype == np.float32
    spread = fields[:, -1].std((1, 2)) / fields.std((0, 1, 2, 3))
    at_rest = spread.max(-1) < 1e-3
    assert 0.2 <= at_rest.mean() <= 0.7
    assert (spread[~at_rest] > 0.2).all()
    # Concentrations, up to the solver's error.
    assert fields.min() > -0.01 and fields.max() < 1.01
    for name, (low, high) in (("feed", TINY.feed_range), ("kill", TINY.kill_range)):
        assert ((rates[name] >= low) & (rates[name] <= high)).all() and len(np.unique(rates[name])) == 8


def test_a_trajectory_depends_on_seed_and_number_only(trajectories: tuple[np.ndarray, dict[str, np.ndarray]]) -> None:
    fields, rates = trajectories
    few, others = gray_scott.solve(TASK, replace(SMALL, trajectories=2), 0, lambda line: None)
    np.testing.assert_array_equal(few, fields[:2])
    np.testing.assert_array_equal(others["feed"], rates["feed"][:2])


def test_the_declared_symmetries_commute_with_the_solver() -> None:
    (task,) = load(CONFIGS / "reaction_diffusion2d.yaml").data.tasks
    with jax.enable_x64(True), jax.numpy_rank_promotion("allow"):
        initial = np.asarray(gray_scott.initial_state(TINY, jax.random.key(3)))
        stepper = gray_scott.make_stepper(TINY, jnp.asarray(0.03), jnp.asarray(0.06), TINY.substeps)
        step = jax.jit(lambda state: stepper(state))
        moved = np.asarray(step(initial))
        for declared in task.symmetries:
            axes = {name: tuple("xy".index(axis) for axis in getattr(declared, name)) for name in ("reflect", "swap")}
            symmetry = Symmetry(**axes)

            def mapped(state: np.ndarray, symmetry: Symmetry = symmetry) -> np.ndarray:
                return np.moveaxis(apply_symmetry(np.moveaxis(state, 0, -1)[None, None], symmetry)[0, 0], -1, 0)

            np.testing.assert_allclose(step(mapped(initial)), mapped(moved), atol=1e-9)


def test_a_generated_file_opens_with_its_rates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PRESETS[TASK], "tiny", replace(TINY, trajectories=12, steps=3))
    cfg = load(CONFIGS / "reaction_diffusion2d.yaml", [f"data.root={tmp_path}", "data.tasks.0.preset=tiny"])
    (path,) = simulate.generate_missing(cfg)
    data = open_dataset(cfg)
    assert data.task.channels == ("u", "v") and data.task.spacing == (1.0, 1.0) and data.task.dt == 40
    assert [item.name for item in data.task.coefficients] == ["feed", "kill"] and data.condition_mask.all()
    with h5py.File(path) as file:
        np.testing.assert_allclose(file["0000/grid/x"], np.arange(32))
        text = file["0003"].attrs["config"]
    assert float(text.split("feed: ")[1].split()[0]) == pytest.approx(data.conditions[3, 0])
