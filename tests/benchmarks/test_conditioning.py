"""The benchmark of conditioning: its reference is the built-in solver, its numbers are those of closed forms."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from commands import CONFIGS
from conditioning import nrmse, of_last, reference

from ups_jax import simulate
from ups_jax.config import load
from ups_jax.data import open_dataset
from ups_jax.simulate.presets import get_preset


def test_the_reference_goes_on_from_a_stored_frame_as_the_data_do(data_root: Path) -> None:
    cfg = load(CONFIGS / "tiny.yaml", [f"data.root={data_root}"])
    simulate.generate_missing(cfg)
    trajectories = open_dataset(cfg).trajectories("test", limit=1)
    frames = reference(get_preset("burgers1d", "tiny"), trajectories.fields[:, 0], float(trajectories.cond[0, 0]), 20)
    np.testing.assert_allclose(frames, trajectories.fields[:, 1:], atol=2e-5)


def test_energy_and_gradient_of_a_wave() -> None:
    x = np.arange(32) * 2 / 32 - 1
    frames = (3 * np.sin(2 * np.pi * x))[None, None, :, None]
    # Means of sin and cos squared are a half; the slope is 6 pi cos.
    assert of_last("s", frames) == {"energy s": pytest.approx(9 / 4), "gradient s": pytest.approx((6 * np.pi) ** 2 / 2)}
    assert nrmse(1.5 * frames, frames) == pytest.approx(0.5)
