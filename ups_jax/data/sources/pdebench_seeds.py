"""PDEBench's seed groups: `/0000/data` (T, X[, Y[, Z]], C) with `/0000/grid/{x,y,z,t}` for each trajectory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
from jaxtyping import Float, Float32, Int

from ups_jax.core.errors import DataError
from ups_jax.data.sources.base import AXES, Grid, iterate_windows, select_channels
from ups_jax.data.sources.hdf5 import (
    HDF5Source,
    axis_start_and_step,
    check_float,
    read_coordinate,
    read_space_axes,
    text_attribute,
)
from ups_jax.data.sources.pdebench_incompressible import parse_numbers

_HINT = "give a file with a group for each trajectory, of `data` (T, X, .., C) and `grid`"
# Numbers in the `config` texts that differ between trajectories but are not coefficients.
_NO_COEFFICIENTS = ("seed",)


class SeedsSource(HDF5Source):
    """A file of seed groups; the trajectories are in the order of the groups' names.

    Coefficients are the numbers in the `config` text of each group. Those that are equal in all groups can be read with
    `coefficient`, but `coefficient_names` does not list them.

    Args:
        path: The file.
        channel_names: Channels to read, out of those that the root attribute `channels` lists, such as "h, u, v".
            Files without that attribute, such as PDEBench's own, are read with all channels.

    Raises:
        DataError: Naming file and group, if a group or the attribute `channels` is invalid.
    """

    def __init__(self, path: str | Path, channel_names: tuple[str, ...] | None = None) -> None:
        super().__init__(path, _HINT)
        with self.reading() as file:
            self._keys = tuple(sorted(key for key, item in file.items() if isinstance(item, h5py.Group)))
            if not self._keys:
                raise DataError(f"{self.name}: contains no groups; {_HINT}")
            shape, self.grid = _read_header(self.name, file, self._keys[0])
            for key in self._keys:
                group_shape = _get_data(self.name, file, key).shape
                if group_shape != shape:
                    raise DataError(
                        f"{self.name}: `{key}/data` has shape {group_shape}, but `{self._keys[0]}/data` has {shape}; "
                        "remove the group, or run its simulation again"
                    )
            available = _channel_names(self.name, file, shape[-1])
        self.channel_names = select_channels(self.name, available, channel_names) if available else ()
        self._channel_indices = [available.index(name) for name in self.channel_names] or list(range(shape[-1]))
        self.trajectories, self.frames, self.channels = len(self._keys), shape[0], len(self._channel_indices)
        self._config_numbers: dict[str, Any] | None = None

    def windows(self, ids: Int[np.ndarray, " b"], frames: Int[np.ndarray, "b t"]) -> Float32[np.ndarray, "b t *s c"]:
        """Return the evenly spaced frames `frames` of the trajectories `ids`."""
        result = np.empty((*frames.shape, *self.grid.shape, self.channels), np.float32)
        with self.reading() as file:
            for row, index, times in iterate_windows(ids, frames):
                result[row] = file[self._keys[index]]["data"][times][..., self._channel_indices]
        return result

    def coefficient(self, name: str) -> Float[np.ndarray, " n"] | None:
        """Return a coefficient from the `config` texts, or from the base class if no text contains it.

        It is NaN for groups whose text lacks it.
        """
        values = self._read_config_numbers().get(name.lower())
        return super().coefficient(name) if values is None else values

    def coefficient_names(self) -> tuple[str, ...]:
        """Return the names of the `config` numbers that differ between groups, and of those in the file name."""
        varying = [
            name
            for name, values in self._read_config_numbers().items()
            if name not in _NO_COEFFICIENTS and not (values == values[0]).all()
        ]
        return tuple(dict.fromkeys((*varying, *super().coefficient_names())))

    def constants(self) -> dict[str, float]:
        """Return the `config` numbers that are equal in all groups, by name."""
        config_numbers = self._read_config_numbers()
        return {name: float(values[0]) for name, values in config_numbers.items() if (values == values[0]).all()}

    def _read_config_numbers(self) -> dict[str, Float[np.ndarray, " n"]]:
        """Return the numbers in the `config` texts by lower-case name, one for each group, NaN where missing."""
        # Read at the first use: ten thousand texts take seconds.
        if self._config_numbers is None:
            numbers: dict[str, Float[np.ndarray, " n"]] = {}
            with self.reading() as file:
                for index, key in enumerate(self._keys):
                    text = text_attribute(file[key].attrs, "config")
                    for name, value in parse_numbers(text, f"{self.name}: group {key}").items():
                        numbers.setdefault(name.lower(), np.full(self.trajectories, np.nan))[index] = value
            self._config_numbers = numbers
        return self._config_numbers


def _channel_names(file_name: str, file: h5py.File, channels: int) -> tuple[str, ...]:
    """Return the names in the root attribute `channels`, which is optional."""
    names = tuple(part.strip() for part in text_attribute(file.attrs, "channels").split(",") if part)
    if names and len(names) != channels:
        raise DataError(
            f"{file_name}: attribute `channels` lists {len(names)} names, but `data` has {channels} channels; "
            "correct it"
        )
    return names


def _get_data(file_name: str, file: h5py.File, key: str) -> h5py.Dataset:
    """Return the dataset `data` of a group. Raises `DataError` if it is missing or has no floating-point numbers."""
    data = file[key].get("data")
    if not isinstance(data, h5py.Dataset) or data.shape is None:
        raise DataError(f"{file_name}: group `{key}` has no dataset `data`; remove the group, or write it again")
    check_float(file_name, f"{key}/data", data, _HINT)
    return data


def _read_header(file_name: str, file: h5py.File, key: str) -> tuple[tuple[int, ...], Grid]:
    """Return the shape of a trajectory and the grid, from the group `key`."""
    shape = _get_data(file_name, file, key).shape
    grid = file[key].get("grid")
    axes = [axis for axis in AXES if isinstance(grid, h5py.Group) and axis in grid]
    for axis in ("x", "t"):
        if not isinstance(grid, h5py.Group) or axis not in grid:
            raise DataError(f"{file_name}: group `{key}` has no dataset `grid/{axis}`; add the coordinates")
    if len(shape) != 2 + len(axes):
        expected = ", ".join(["T", *"XYZ"[: len(axes)], "C"])
        raise DataError(
            f"{file_name}: `{key}/data` has shape {shape}; with the axes {', '.join(axes)} it must be ({expected}): "
            "reshape it"
        )
    times = read_coordinate(
        file_name, file, f"{key}/grid/t", (shape[0], shape[0] + 1), f"or one more: `data` is {shape}"
    )
    datasets = [f"{key}/grid/{axis}" for axis in axes]
    origin, spacing = read_space_axes(file_name, file, datasets, shape[1:-1], f"as axis of `data` {shape}")
    start, dt = axis_start_and_step(
        file[f"{key}/grid/t"], times[: shape[0]], f"{file_name}: `{key}/grid/t`", "store frames at evenly spaced times"
    )
    return shape, Grid(shape=shape[1:-1], origin=origin, spacing=spacing, start=start, dt=dt)
