"""PDEBench's `tensor` files: one scalar field (N, T, X[, Y[, Z]]) on a uniform grid, with coordinates."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
from jaxtyping import Float32, Int

from ups_jax.data.sources.base import Grid
from ups_jax.data.sources.hdf5 import HDF5File, coefficients, dataset_of, grid_of
from ups_jax.errors import DataError

_MEND = "give a file in PDEBench's tensor layout, such as scripts/generate_data.py writes"


class TensorSource(HDF5File):
    """A `tensor` file, read window by window. Raises `DataError` naming file and dataset for any defect."""

    channels = 1
    channel_names: tuple[str, ...] = ()
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
    tensor = dataset_of(name, file, "tensor", f"it holds {', '.join(list(file)[:6]) or 'nothing'}; {_MEND}")
    shape = tensor.shape
    if tensor.dtype.kind != "f":
        raise DataError(f"{name}: `tensor` holds {tensor.dtype}, not floating-point numbers; {_MEND}")
    return shape, grid_of(name, file, "tensor", shape)
