"""PDEBench's seed groups: `/0000/data` (T, X[, Y[, Z]], C) with `/0000/grid/{x,y,z,t}` for each trajectory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
from jaxtyping import Float, Float32, Int

from ups_jax.core.errors import DataError
from ups_jax.data.sources.base import AXES, Grid, selected, windows_of
from ups_jax.data.sources.hdf5 import HDF5Source, check_float, coordinate, line, space_axes, text_of
from ups_jax.data.sources.pdebench_incompressible import numbers

_MEND = "give a file with a group for each trajectory, of `data` (T, X, .., C) and `grid`"
# Numbers of a simulation's text that are its own and no coefficients.
_NO_COEFFICIENTS = ("seed",)


class SeedsSource(HDF5Source):
    """A file of seed groups, in the order of their names. Raises `DataError` naming file and group for any defect.

    PDEBench does not name the channels: all are read. Where a root attribute `channels` does ("h, u, v"), those of
    `names` are. Coefficients are the numbers in each group's `config`; those that all groups share are found by name
    only.
    """

    def __init__(self, path: str | Path, names: tuple[str, ...] | None = None) -> None:
        super().__init__(path, _MEND)
        with self.reading() as file:
            self._keys = tuple(sorted(key for key, item in file.items() if isinstance(item, h5py.Group)))
            if not self._keys:
                raise DataError(f"{self.name}: holds no group of a trajectory; {_MEND}")
            shape, self.grid = _header(self.name, file, self._keys[0])
            for key in self._keys:
                found = _data(self.name, file, key).shape
                if found != shape:
                    raise DataError(
                        f"{self.name}: `{key}/data` has shape {found}, `{self._keys[0]}/data` has {shape}; "
                        "remove the group, or write its simulation again"
                    )
            found = _names(self.name, file, shape[-1])
        self.channel_names = selected(self.name, found, names) if found else ()
        self._places = [found.index(name) for name in self.channel_names] or list(range(shape[-1]))
        self.trajectories, self.frames, self.channels = len(self._keys), shape[0], len(self._places)
        self._texts: dict[str, Any] | None = None

    def windows(self, ids: Int[np.ndarray, " b"], frames: Int[np.ndarray, "b t"]) -> Float32[np.ndarray, "b t *s c"]:
        """The given frames of the given trajectories; frames are evenly spaced."""
        result = np.empty((*frames.shape, *self.grid.shape, self.channels), np.float32)
        with self.reading() as file:
            for row, index, times in windows_of(ids, frames):
                result[row] = file[self._keys[index]]["data"][times][..., self._places]
        return result

    def coefficient(self, name: str) -> Float[np.ndarray, " n"] | None:
        """From each group's `config`, NaN where it has none of that name; else as the other layouts do."""
        found = self._in_texts().get(name.lower())
        return super().coefficient(name) if found is None else found

    def found_coefficients(self) -> tuple[str, ...]:
        """Names of the numbers that differ between the groups, and of those in the file name."""
        differing = [
            name
            for name, values in self._in_texts().items()
            if name not in _NO_COEFFICIENTS and not (values == values[0]).all()
        ]
        return tuple(dict.fromkeys((*differing, *super().found_coefficients())))

    def constants(self) -> dict[str, float]:
        """The numbers that all groups share."""
        return {name: float(values[0]) for name, values in self._in_texts().items() if (values == values[0]).all()}

    def _in_texts(self) -> dict[str, Float[np.ndarray, " n"]]:
        # Only where they are asked for: ten thousand texts take seconds.
        if self._texts is None:
            found: dict[str, Float[np.ndarray, " n"]] = {}
            with self.reading() as file:
                for index, key in enumerate(self._keys):
                    text = text_of(file[key].attrs, "config")
                    for name, value in numbers(text, f"{self.name}: group {key}").items():
                        found.setdefault(name.lower(), np.full(self.trajectories, np.nan))[index] = value
            self._texts = found
        return self._texts


def _names(name: str, file: h5py.File, channels: int) -> tuple[str, ...]:
    names = tuple(part.strip() for part in text_of(file.attrs, "channels").split(",") if part)
    if names and len(names) != channels:
        raise DataError(f"{name}: its attribute `channels` names {len(names)}, `data` has {channels}; correct it")
    return names


def _data(name: str, file: h5py.File, key: str) -> h5py.Dataset:
    data = file[key].get("data")
    if not isinstance(data, h5py.Dataset) or data.shape is None:
        raise DataError(f"{name}: group `{key}` has no dataset `data`; remove the group, or write it again")
    check_float(name, f"{key}/data", data, _MEND)
    return data


def _header(name: str, file: h5py.File, key: str) -> tuple[tuple[int, ...], Grid]:
    """Shape of a trajectory, and the grid that all share."""
    shape = _data(name, file, key).shape
    grid = file[key].get("grid")
    axes = [axis for axis in AXES if isinstance(grid, h5py.Group) and axis in grid]
    for axis in ("x", "t"):
        if not isinstance(grid, h5py.Group) or axis not in grid:
            raise DataError(f"{name}: group `{key}` has no dataset `grid/{axis}`; add the coordinates")
    if len(shape) != 2 + len(axes):
        wanted = ", ".join(["T", *"XYZ"[: len(axes)], "C"])
        raise DataError(
            f"{name}: `{key}/data` has shape {shape}, with the axes {', '.join(axes)} it must be ({wanted}); reshape it"
        )
    times = coordinate(name, file, f"{key}/grid/t", (shape[0], shape[0] + 1), f"or one more: `data` is {shape}")
    datasets = [f"{key}/grid/{axis}" for axis in axes]
    origin, spacing = space_axes(name, file, datasets, shape[1:-1], f"as axis of `data` {shape}")
    start, dt = line(file[f"{key}/grid/t"], times[: shape[0]], f"{name}: `{key}/grid/t`", "store frames at even times")
    return shape, Grid(shape=shape[1:-1], origin=origin, spacing=spacing, start=start, dt=dt)
