"""PDEBench files with a dataset `tensor` of one scalar field (N, T, X[, Y[, Z]]) on a uniform grid.

In PDEBench's Darcy files, `tensor` (N, 1, X, Y) contains steady solutions, and `nu` (N, X, Y) the permeabilities.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from jaxtyping import Float32, Int

from ups_jax.core.commands import command
from ups_jax.core.errors import DataError
from ups_jax.data.sources.base import Grid, check_float, iterate_windows
from ups_jax.data.sources.hdf5 import HDF5Source, get_dataset, read_grid, read_origin_and_spacing
from ups_jax.data.sources.hdf5_values import Group

_COORDINATES = ("x-coordinate", "y-coordinate")
_TENSOR_HINT = f"give a file in PDEBench's tensor layout, such as `{command('generate')}` writes"
_DARCY_HINT = f"give a file in PDEBench's Darcy layout, such as `{command('generate')} --task darcy2d` writes"


class TensorSource(HDF5Source):
    """A file whose dataset `tensor` contains trajectories. Raises `DataError` if the file is invalid."""

    channels = 1
    channel_names: tuple[str, ...] = ()

    def __init__(self, path: str | Path) -> None:
        super().__init__(path, _TENSOR_HINT)
        with self.open() as file:
            shape, self.grid = _read_shape_and_grid(self.name, file)
            self.trajectories, self.frames = shape[:2]
            self._read_coefficients(file, ("tensor",))

    def read(self, ids: Int[np.ndarray, " b"], frames: Int[np.ndarray, "b t"]) -> Float32[np.ndarray, "b t *s c"]:
        """Return the evenly spaced frames `frames[i]` of trajectory `ids[i]` for each window i."""
        result = np.empty((*frames.shape, *self.grid.shape), np.float32)
        with self.open() as file:
            tensor = file["tensor"]
            for row, index, times in iterate_windows(ids, frames):
                tensor.read_into(result[row], (index, times))
        return result[..., None]


class DarcySource(HDF5Source):
    """A Darcy file: steady solutions as single frames, with the permeability `nu` as input field.

    Raises `DataError` if the file is invalid.
    """

    channels = 1
    frames = 1
    channel_names: tuple[str, ...] = ()
    input_channels: tuple[str, ...] = ("nu",)

    def __init__(self, path: str | Path) -> None:
        super().__init__(path, _DARCY_HINT)
        with self.open() as file:
            self.trajectories, self.grid = _read_count_and_grid(self.name, file)
            self._read_coefficients(file, ("tensor", "nu"))

    def read(self, ids: Int[np.ndarray, " b"], frames: Int[np.ndarray, "b t"]) -> Float32[np.ndarray, "b t *s c"]:
        """Return the solutions `ids`; all values of `frames` must be 0, because a solution is a single frame."""
        return self._read_rows("tensor", ids).reshape(*frames.shape, *self.grid.shape, 1)

    def read_input_fields(self, ids: Int[np.ndarray, " b"]) -> Float32[np.ndarray, "b *s i"]:
        """Return the permeabilities of the solutions `ids`."""
        return self._read_rows("nu", ids)[..., None]

    def _read_rows(self, name: str, ids: Int[np.ndarray, " b"]) -> Float32[np.ndarray, "b *d"]:
        """Return the fields of the solutions `ids` from the dataset `name`, as float32."""
        with self.open() as file:
            dataset = file[name]
            result = np.empty((len(ids), *dataset.shape[1:]), np.float32)
            for row, index in enumerate(ids.tolist()):
                dataset.read_into(result[row], (index,))
        return result


def _read_shape_and_grid(file_name: str, file: Group) -> tuple[tuple[int, ...], Grid]:
    """Return the shape of the dataset `tensor`, and its grid."""
    hint = f"it contains {', '.join(list(file)[:6]) or 'nothing'}; {_TENSOR_HINT}"
    tensor = get_dataset(file_name, file, "tensor", hint)
    shape = tensor.shape
    check_float(f"{file_name}: `tensor`", tensor.dtype, _TENSOR_HINT)
    return shape, read_grid(file_name, file, "tensor", shape)


def _read_count_and_grid(file_name: str, file: Group) -> tuple[int, Grid]:
    """Return the number of solutions in a Darcy file, and their grid."""
    for dataset in ("tensor", "nu", *_COORDINATES):
        get_dataset(file_name, file, dataset, f"it contains {', '.join(list(file)[:6]) or 'nothing'}; {_DARCY_HINT}")
    for dataset in ("tensor", "nu"):
        check_float(f"{file_name}: `{dataset}`", file[dataset].dtype, _DARCY_HINT)
    shape = file["tensor"].shape
    if len(shape) != 4 or shape[1] != 1:
        raise DataError(
            f"{file_name}: `tensor` has shape {shape}, but steady solutions have shape (N, 1, X, Y); reshape it, or "
            "set `kind: transient` if its second axis is time"
        )
    expected = (shape[0], *shape[2:])
    if file["nu"].shape != expected:
        raise DataError(
            f"{file_name}: `nu` has shape {file['nu'].shape}, but `tensor` has {shape}; reshape `nu` to {expected}"
        )
    origin, spacing = read_origin_and_spacing(file_name, file, _COORDINATES, shape[2:], f"`tensor` has shape {shape}")
    # A steady task has no time step; the logarithm of 1 is 0 where models are conditioned on it.
    return shape[0], Grid(shape=shape[2:], origin=origin, spacing=spacing, start=0.0, dt=1.0)
