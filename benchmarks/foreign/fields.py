"""Fields in the files of the cases: waves on a line and on a plane, and solutions of Poisson's equation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
from jaxtyping import Float64

DT = 0.05
# Axes in descriptions of `line_waves`: as numbers, and as names of arrays.
UNIFORM_LINE = ("time: [0, 0.05]", "x: [0, 0.03125]")
NAMED_LINE = ("fields: {u: u}", "time: time", "x: x")


def line_waves(
    trajectories: int = 12, frames: int = 11, points: int = 32, *, dt: float = DT, seed: int = 0
) -> Float64[np.ndarray, "n t x"]:
    """Return waves of three lengths that travel to the right on a periodic line of length 1, each with its speed."""
    rng = np.random.default_rng(seed)
    speed = rng.uniform(0.3, 0.9, (trajectories, 1, 1))
    x = np.arange(points) / points - speed * dt * np.arange(frames)[:, None]
    waves = np.zeros(x.shape)
    for mode in (1, 2, 3):
        amplitude, phase = rng.uniform(0.3, 1.0, (2, trajectories, 1, 1)) / mode
        waves += amplitude * np.cos(2 * np.pi * (mode * x + 7 * phase))
    return waves


def plane_waves(
    trajectories: int = 12, frames: int = 8, shape: tuple[int, ...] = (16, 12), *, seed: int = 0
) -> Float64[np.ndarray, "n t *s"]:
    """Return waves that travel along the diagonal of a periodic box of side 1."""
    rng = np.random.default_rng(seed)
    points = np.meshgrid(*(np.arange(size) / size for size in shape), indexing="ij")
    times = (DT * np.arange(frames)).reshape(-1, *(1 for _ in shape))
    waves = np.zeros((trajectories, frames, *shape))
    for modes in ((1,) * len(shape), (2,) + (1,) * (len(shape) - 1), (1,) + (0,) * (len(shape) - 1)):
        angle = sum(mode * axis for mode, axis in zip(modes, points, strict=True)) - 0.6 * times
        amplitude, phase = rng.uniform(0.4, 1.0, (2, trajectories, 1, *(1 for _ in shape)))
        waves += amplitude * np.sin(2 * np.pi * (angle + 5 * phase))
    return waves


def poisson(samples: int = 120, points: int = 41) -> tuple[Float64[np.ndarray, "n x y"], Float64[np.ndarray, "n x y"]]:
    """Return sources on a square with walls, and the solutions of -div grad u = source that vanish on the walls.

    The sources have the same statistics everywhere.
    """
    rng = np.random.default_rng(0)
    cells = points - 1
    # A period that is longer than the square: the sources are not periodic on it.
    waves = 2 * np.pi * rng.integers(-4, 5, (2, samples, 8)) / (1.25 * cells)
    x, y = np.meshgrid(np.arange(points), np.arange(points), indexing="ij")
    phase = waves[0, ..., None, None] * x + waves[1, ..., None, None] * y
    source = 1 + 0.4 * np.cos(phase + rng.uniform(0, 2 * np.pi, (samples, 8, 1, 1))).sum(1)
    modes = np.arange(1, cells)
    sines = np.sqrt(2 / cells) * np.sin(np.pi * np.outer(modes, modes) / cells)
    eigenvalues = (2 - 2 * np.cos(np.pi * modes / cells)) * cells**2
    spectrum = sines @ source[:, 1:-1, 1:-1] @ sines / (eigenvalues[:, None] + eigenvalues)
    solution = np.zeros_like(source)
    solution[:, 1:-1, 1:-1] = sines @ spectrum @ sines
    return source, solution


def write_tensor(
    path: str, fields: Float64[np.ndarray, "n t *s"], *, dtype: str = "f4", step: float | None = None, **datasets: Any
) -> None:
    """Write a file in PDEBench's layout of one scalar.

    Args:
        step: Distance of neighbouring points; by default an axis has length 1.
        datasets: Further datasets by name; `_` in a name that begins with `parameters` stands for `/`.
    """
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        file["tensor"] = fields.astype(dtype)
        write_coordinates(file, fields.shape, step)
        for name, values in datasets.items():
            file[name.replace("parameters_", "parameters/")] = values


def write_coordinates(file: h5py.File, shape: tuple[int, ...], step: float | None = None) -> None:
    """Write PDEBench's coordinates of fields of the shape (N, T, *S)."""
    file["t-coordinate"] = DT * np.arange(shape[1])
    for axis, points in zip("xyz", shape[2:], strict=False):
        file[f"{axis}-coordinate"] = (step or 1 / points) * np.arange(points)


def write_description(path: str, file: str, *lines: str, axes: str = "trajectory, time, x") -> None:
    """Write the YAML description of a file of arrays."""
    Path(path).write_text("\n".join([f"file: {file}", *lines, f"axes: [{axes}]", ""]), encoding="utf-8")
