"""PDEBench's `tensor` files: one scalar field (N, T, X) or (N, T, X, Y) on a uniform grid, with coordinates."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
from jaxtyping import Float32, Int

from ups_jax.data.sources.base import Grid, uniform
from ups_jax.data.sources.hdf5 import HDF5File, coefficients, coordinate
from ups_jax.errors import DataError

_COORDINATES = ("x-coordinate", "y-coordinate")
_MEND = "give a file in PDEBench's tensor layout, such as scripts/generate_data.py writes"


class TensorSource(HDF5File):
    """A `tensor` file, read window by window. Raises `DataError` naming file and dataset for any defect."""

    channels = 1
    input_channels: tuple[str, ...] = ()

    def __init__(self, path: str | Path) -> None:
        super().__init__(path, _MEND)
        with self.reading() as file:
            shape, self.grid = _header(self.name, file)
            self._coefficients = dict(coefficients(self.name, file, shape[0]))
        self.trajectories, self.frames = shape[:2]

    def windows(self, ids: Int[np.ndarray, " b"], frames: Int[np.ndarray, "b t"]) -> Float32[np.ndarray, "b t *s c"]:
        """The given frames of the given trajectories; frames are evenly spaced."""
        result = np.empty((*frames.shape, *self.grid.shape), np.float32)
        with self.reading() as file:
            tensor = file["tensor"]
            for row, (index, times) in enumerate(zip(ids.tolist(), frames.tolist(), strict=True)):
                step = times[1] - times[0] if len(times) > 1 else 1
                result[row] = tensor[index, times[0] : times[-1] + 1 : step]
        return result[..., None]

    def inputs(self, ids: Int[np.ndarray, " b"]) -> Float32[np.ndarray, "b *s i"]:
        """None: the width is 0."""
        return np.empty((len(ids), *self.grid.shape, 0), np.float32)


def _header(name: str, file: h5py.File) -> tuple[tuple[int, ...], Grid]:
    if not isinstance(file.get("tensor"), h5py.Dataset):
        there = ", ".join(list(file)[:6]) or "nothing"
        raise DataError(f"{name}: has no dataset `tensor` (it holds {there}); {_MEND}")
    shape = file["tensor"].shape
    if file["tensor"].dtype.kind != "f":
        raise DataError(f"{name}: `tensor` holds {file['tensor'].dtype}, not floating-point numbers; {_MEND}")
    axes = [axis for axis in _COORDINATES if axis in file]
    if not axes:
        raise DataError(f"{name}: has no dataset `x-coordinate`; add the grid's coordinates, one for each point")
    if "t-coordinate" not in file:
        raise DataError(
            f"{name}: has no dataset `t-coordinate`; add the times of the frames (for steady data set kind: steady)"
        )
    if len(shape) != 2 + len(axes):
        wanted = ", ".join(["N", "T", "X", "Y"][: 2 + len(axes)])
        raise DataError(
            f"{name}: `tensor` has shape {shape}, with {' and '.join(axes)} it must be ({wanted}); "
            "reshape it, or add the coordinates of its other axes"
        )
    origin, spacing = [], []
    for axis, points in zip(axes, shape[2:], strict=True):
        values = coordinate(name, file, axis, (points,), f"as axis of `tensor` {shape}")
        first, step = uniform(values, f"{name}: `{axis}`", "interpolate the fields to a uniform grid")
        origin.append(first)
        spacing.append(step)
    times = coordinate(name, file, "t-coordinate", (shape[1], shape[1] + 1), f"or one more: `tensor` is {shape}")
    start, dt = uniform(times[: shape[1]], f"{name}: `t-coordinate`", "store frames at even times")
    grid = Grid(shape=shape[2:], origin=tuple(origin), spacing=tuple(spacing), start=start, dt=dt)
    return shape, grid
