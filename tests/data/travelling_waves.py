"""Travelling waves in closed form: periodic, with a constant mean and a speed for each trajectory."""

from __future__ import annotations

import numpy as np

SPACING, DT = 0.0625, 0.02


def waves(trajectories=12, frames=9, points=32, seed=0):
    """Advected Fourier series u(x - beta t) on [-1, 1) and their speeds: periodic, mean kept, u -> -u allowed."""
    rng = np.random.default_rng(seed)
    x, t = -1 + SPACING * 32 / points * np.arange(points), DT * np.arange(frames)
    beta = rng.uniform(0.2, 1.0, trajectories)
    phase = np.pi * (x - beta[:, None, None] * t[:, None])
    amplitude, shift = rng.normal(size=(2, 3, trajectories, 1, 1))
    fields = sum(amplitude[k] * np.sin((k + 1) * phase + shift[k] * 9) for k in range(3))
    return fields.astype(np.float32), beta
