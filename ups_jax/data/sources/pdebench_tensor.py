"""PDEBench's `tensor` files: one scalar field (N, T, X[, Y[, Z]]) on a uniform grid, with coordinates.

Its Darcy files have steady solutions under the same name, (N, 1, X, Y), and the permeabilities `nu`.
"""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
from jaxtyping import Float32, Int

from ups_jax.core.commands import command
from ups_jax.core.errors import DataError
from ups_jax.data.sources.base import Grid, windows_of
from ups_jax.data.sources.hdf5 import HDF5Source, check_float, coefficients, dataset_of, grid_of, space_axes

_MEND = f"give a file in PDEBench's tensor layout, such as `{command('generate')}` writes"
_COORDINATES = ("x-coordinate", "y-coordinate")
_DARCY_HINT = f"give a file in PDEBench's Darcy layout, such as `{command('generate')} --task darcy2d` writes"


class TensorSource(HDF5Source):
    """A `tensor` file, read window by window. Raises `DataError` naming file and dataset for any defect."""

    channels = 1
    channel_names: tuple[str, ...] = ()

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
            for row, index, times in windows_of(ids, frames):
                result[row] = tensor[index, times]
        return result[..., None]


class DarcySource(HDF5Source):
    """A steady file: one frame with `nu` as input. Raises `DataError` naming file and dataset for any defect."""

    channels = 1
    frames = 1
    channel_names: tuple[str, ...] = ()
    input_channels: tuple[str, ...] = ("nu",)

    def __init__(self, path: str | Path) -> None:
        super().__init__(path, _DARCY_HINT)
        with self.reading() as file:
            self.trajectories, self.grid = _darcy_header(self.name, file)
            self._coefficients = dict(coefficients(self.name, file, self.trajectories))

    def windows(self, ids: Int[np.ndarray, " b"], frames: Int[np.ndarray, "b t"]) -> Float32[np.ndarray, "b t *s c"]:
        """The given solutions; the only frame is 0."""
        return self._read("tensor", ids).reshape(*frames.shape, *self.grid.shape, 1)

    def inputs(self, ids: Int[np.ndarray, " b"]) -> Float32[np.ndarray, "b *s i"]:
        """Their permeabilities."""
        return self._read("nu", ids)[..., None]

    def _read(self, name: str, ids: Int[np.ndarray, " b"]) -> Float32[np.ndarray, "b *d"]:
        with self.reading() as file:
            dataset = file[name]
            result = np.empty((len(ids), *dataset.shape[1:]), np.float32)
            for row, index in enumerate(ids.tolist()):
                result[row] = dataset[index]
        return result


def _header(name: str, file: h5py.File) -> tuple[tuple[int, ...], Grid]:
    tensor = dataset_of(name, file, "tensor", f"it holds {', '.join(list(file)[:6]) or 'nothing'}; {_MEND}")
    shape = tensor.shape
    check_float(name, "tensor", tensor, _MEND)
    return shape, grid_of(name, file, "tensor", shape)


def _darcy_header(name: str, file: h5py.File) -> tuple[int, Grid]:
    for dataset in ("tensor", "nu", *_COORDINATES):
        dataset_of(name, file, dataset, f"it holds {', '.join(list(file)[:6]) or 'nothing'}; {_DARCY_HINT}")
    for dataset in ("tensor", "nu"):
        check_float(name, dataset, file[dataset], _DARCY_HINT)
    shape = file["tensor"].shape
    if len(shape) != 4 or shape[1] != 1:
        raise DataError(
            f"{name}: `tensor` has shape {shape}, of steady solutions it must be (N, 1, X, Y); "
            "reshape it, or set kind: transient if its second axis is time"
        )
    given = (shape[0], *shape[2:])
    if file["nu"].shape != given:
        raise DataError(
            f"{name}: `nu` has shape {file['nu'].shape}, with `tensor` {shape} it must be {given}; reshape it"
        )
    origin, spacing = space_axes(name, file, _COORDINATES, shape[2:], f"as axis of `tensor` {shape}")
    # A time step of 1 has no meaning, and no effect where its logarithm is a condition.
    return shape[0], Grid(shape=shape[2:], origin=origin, spacing=spacing, start=0.0, dt=1.0)
