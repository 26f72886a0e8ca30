"""PDEBench's compressible flow files: a dataset (N, T, X[, Y[, Z]]) for each channel, on one grid with coordinates.

So are files of any other named fields, such as the predictions of the command `rollout`.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import h5py
import numpy as np
from jaxtyping import Float32, Int

from ups_jax.core.errors import DataError
from ups_jax.data.sources.base import selected, windows_of
from ups_jax.data.sources.hdf5 import HDF5Source, check_float, coefficients, grid_of

# The order in which PDEBench lists them; any other name follows in that of the file.
_ORDER = ("density", "pressure", "Vx", "Vy", "Vz")
_MEND = "give a file with a dataset (N, T, X, ..) for each channel, and its coordinates"


class CFDSource(HDF5Source):
    """The datasets `names`, or all that there are, as channels. Raises `DataError` naming file and dataset."""

    known_in_names = ("eta", "zeta", "M")

    def __init__(self, path: str | Path, names: tuple[str, ...] | None = None) -> None:
        super().__init__(path, _MEND)
        with self.reading() as file:
            self.channel_names = selected(self.name, fields_of(file), names)
            first = self.channel_names[0]
            shape = file[first].shape
            for channel in self.channel_names:
                if file[channel].shape != shape:
                    raise DataError(
                        f"{self.name}: `{channel}` has shape {file[channel].shape}, `{first}` has {shape}; "
                        "give channels of one grid and time, or leave one out of `channels`"
                    )
                check_float(self.name, channel, file[channel], _MEND)
            self.grid = grid_of(self.name, file, first, shape)
            self._coefficients = dict(coefficients(self.name, file, shape[0]))
        self.trajectories, self.frames = shape[:2]
        self.channels = len(self.channel_names)

    def windows(self, ids: Int[np.ndarray, " b"], frames: Int[np.ndarray, "b t"]) -> Float32[np.ndarray, "b t *s c"]:
        """The given frames of the given trajectories; frames are evenly spaced."""
        result = np.empty((*frames.shape, *self.grid.shape, self.channels), np.float32)
        with self.reading() as file:
            for channel, name in enumerate(self.channel_names):
                dataset = file[name]
                for row, index, times in windows_of(ids, frames):
                    result[row, ..., channel] = dataset[index, times]
        return result


def fields_of(file: h5py.File) -> tuple[str, ...]:
    """Names of the datasets with trajectories, frames and space, in PDEBench's order."""
    return ordered(name for name, item in file.items() if isinstance(item, h5py.Dataset) and item.ndim >= 3)


def ordered(names: Iterable[str]) -> tuple[str, ...]:
    """Names in PDEBench's order, all others in the alphabet's, which is that of an HDF5 file."""
    return tuple(sorted(names, key=lambda name: (_ORDER.index(name) if name in _ORDER else len(_ORDER), name)))
