"""PDEBench's compressible flow files: a dataset (N, T, X[, Y[, Z]]) for each channel, on one grid with coordinates.

Files with other channel names are read as well, such as the predictions of the command `rollout`.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
from jaxtyping import Float32, Int

from ups_jax.core.errors import DataError
from ups_jax.data.sources.base import AXES, check_float, iterate_windows, select_channels
from ups_jax.data.sources.hdf5 import HDF5Source, read_grid
from ups_jax.data.sources.hdf5_values import Group, Values

# PDEBench's order of the channels; other names follow in alphabetical order.
_ORDER = ("density", "pressure", "Vx", "Vy", "Vz")
_HINT = "give a file with a dataset (N, T, X, ..) for each channel, and its coordinates"


class CFDSource(HDF5Source):
    """A file with one dataset for each channel, of which all are read if `channel_names` is None.

    Raises `DataError` if a dataset or the coordinates are invalid.
    """

    file_name_coefficients = ("eta", "zeta", "M")

    def __init__(self, path: str | Path, channel_names: tuple[str, ...] | None = None) -> None:
        super().__init__(path, _HINT)
        with self.open() as file:
            self.channel_names = select_channels(self.name, field_names(file), channel_names)
            first = self.channel_names[0]
            shape = file[first].shape
            for channel in self.channel_names:
                if file[channel].shape != shape:
                    raise DataError(
                        f"{self.name}: `{channel}` has shape {file[channel].shape}, but `{first}` has {shape}; "
                        "list in `channels` only datasets of the same shape"
                    )
                check_float(f"{self.name}: `{channel}`", file[channel].dtype, _HINT)
            self.grid = read_grid(self.name, file, first, shape)
            self.trajectories, self.frames = shape[:2]
            self._read_coefficients(file, self.channel_names)
        self.channels = len(self.channel_names)

    def read(self, ids: Int[np.ndarray, " b"], frames: Int[np.ndarray, "b t"]) -> Float32[np.ndarray, "b t *s c"]:
        """Return the evenly spaced frames `frames[i]` of trajectory `ids[i]` for each window i."""
        result = np.empty((*frames.shape, *self.grid.shape, self.channels), np.float32)
        with self.open() as file:
            for channel, name in enumerate(self.channel_names):
                dataset = file[name]
                for row, index, times in iterate_windows(ids, frames):
                    result[row, ..., channel] = dataset[index, times]
        return result


def field_names(file: Group) -> tuple[str, ...]:
    """Return the names of the datasets with at least three axes, in the order of `sort_channels`.

    Fields that do not change in time are left out if there are others. Their shape is that of the grid, with or without
    an axis of the trajectories before it, and of components after it.
    """
    datasets = {name: item.shape for name, item in file.items() if isinstance(item, Values) and item.ndim >= 3}
    lines = [file[f"{axis}-coordinate"] for axis in AXES if f"{axis}-coordinate" in file]
    space = tuple(max(line.shape, default=0) for line in lines if isinstance(line, Values))
    rank = len(space)
    varying = [
        name
        for name, shape in datasets.items()
        if not space or shape[2:] == space or space not in (shape[:rank], shape[1 : 1 + rank])
    ]
    return sort_channels(varying or datasets)


def sort_channels(names: Iterable[str]) -> tuple[str, ...]:
    """Return channel names: first PDEBench's names in PDEBench's order, then all others in alphabetical order."""
    return tuple(sorted(names, key=lambda name: (_ORDER.index(name) if name in _ORDER else len(_ORDER), name)))
