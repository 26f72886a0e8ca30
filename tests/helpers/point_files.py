"""Files in the layout of points, written bit by bit."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np

N, T, P = 6, 5, 7
TIMES = 0.25 + 0.5 * np.arange(T)


def random(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def write_mesh(path: Path, *, mesh_per_trajectory: bool = False) -> dict[str, np.ndarray]:
    """Two fields on one mesh, or on one for each trajectory; what was written."""
    where = (N, P) if mesh_per_trajectory else (P,)
    written = {
        "points": np.random.default_rng(1).random((*where, 2)),
        "fields/p": random(N, T, P),
        "fields/T": 300 + random(N, T, P, seed=2),
        "inputs/side": random(*where, seed=3),
        "time": TIMES,
        "parameters/kappa": np.linspace(0.1, 0.6, N),
        "cells": np.broadcast_to(
            np.array([[0, 1, 2], [-1, -1, -1]], np.int32), (N, 2, 3) if mesh_per_trajectory else (2, 3)
        ),
    }
    if mesh_per_trajectory:
        written["mask"] = (np.arange(P) < np.array([7, 5, 7, 4, 6, 7])[:, None]).astype(np.uint8)
    with h5py.File(path, "w") as file:
        file.attrs["layout"] = "points"
        for name, values in written.items():
            file[name] = values
    return written


def write_particles(path: Path) -> dict[str, np.ndarray]:
    """Particles with one carried field; what was written."""
    written = {
        "positions": 0.1 * random(N, T, P, 2).cumsum(axis=1),
        "fields/c": random(N, T, P, seed=4),
        "time": TIMES,
        "box": np.array([[-1.0, -2.0], [1.0, 2.0]]),
    }
    with h5py.File(path, "w") as file:
        file.attrs["layout"] = "points"
        for name, values in written.items():
            file[name] = values
    return written
