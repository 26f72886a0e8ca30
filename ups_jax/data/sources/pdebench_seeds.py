"""PDEBench files with a group for each trajectory: `/0000/data` (T, X[, Y[, Z]], C) and `/0000/grid/{x,y,z,t}`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Float32, Int

from ups_jax.core.errors import DataError
from ups_jax.data.sources.base import (
    AXES,
    Grid,
    check_float,
    iterate_windows,
    match_name,
    same_coordinates,
    select_channels,
)
from ups_jax.data.sources.hdf5 import (
    HDF5Source,
    is_coefficient_name,
    read_coordinate,
    read_origin_and_spacing,
    read_start_and_step,
)
from ups_jax.data.sources.hdf5_values import Group, Values, text_attribute
from ups_jax.data.sources.pdebench_incompressible import parse_numbers

_HINT = "give a file with a group for each trajectory, of `data` (T, X, .., C) and `grid`"


class SeedsSource(HDF5Source):
    """A file with a group for each trajectory, in the order of the groups' names.

    Coefficients are the numbers in the YAML text of each group's attribute `config`. `coefficient_names` lists only
    those that differ between groups. The root attribute `channels` may name the channels, such as "h, u, v"; files
    without it, such as PDEBench's own, are read with all channels, whatever `channel_names` is.

    Raises `DataError` if a group or the attribute `channels` is invalid.
    """

    def __init__(self, path: str | Path, channel_names: tuple[str, ...] | None = None) -> None:
        super().__init__(path, _HINT)
        with self.open() as file:
            self._keys = tuple(sorted(key for key, item in file.items() if isinstance(item, Group)))
            if not self._keys:
                raise DataError(f"{self.name}: contains no groups; {_HINT}")
            shape, self.grid = _read_shape_and_grid(self.name, file, self._keys[0])
            for key in self._keys:
                group_shape = _get_data(self.name, file, key).shape
                if group_shape != shape:
                    raise DataError(
                        f"{self.name}: `{key}/data` has shape {group_shape}, but `{self._keys[0]}/data` has {shape}; "
                        f"remove the group `{key}`, or run its simulation again"
                    )
            _check_same_grid(self.name, file, self._keys, shape)
            available = _read_channel_names(self.name, file, shape[-1])
        self.channel_names = select_channels(self.name, available, channel_names) if available else ()
        self._channel_indices = [available.index(name) for name in self.channel_names] or list(range(shape[-1]))
        self.trajectories, self.frames, self.channels = len(self._keys), shape[0], len(self._channel_indices)
        self._config_numbers: dict[str, Any] | None = None

    def read(self, ids: Int[np.ndarray, " b"], frames: Int[np.ndarray, "b t"]) -> Float32[np.ndarray, "b t *s c"]:
        """Return the evenly spaced frames `frames[i]` of trajectory `ids[i]` for each window i."""
        result = np.empty((*frames.shape, *self.grid.shape, self.channels), np.float32)
        with self.open() as file:
            for row, index, times in iterate_windows(ids, frames):
                result[row] = file[self._keys[index]]["data"][times][..., self._channel_indices]
        return result

    def coefficient(self, name: str) -> Float[np.ndarray, " n"] | None:
        """Return the values of a coefficient in the `config` texts, NaN for groups whose text lacks it.

        If all texts lack it, it is read like in other HDF5 files; None if this fails.
        """
        numbers = self._read_config_numbers()
        match = match_name(f"{self.name}: attributes `config`", name, numbers)
        return super().coefficient(name) if match is None else numbers[match]

    def coefficient_names(self) -> tuple[str, ...]:
        """Return the names of the coefficients that differ between `config` texts or that the file name contains."""
        varying = [
            name
            for name, values in self._read_config_numbers().items()
            if is_coefficient_name(name.rsplit(".", 1)[-1]) and not (values == values[0]).all()
        ]
        return tuple(dict.fromkeys((*varying, *super().coefficient_names())))

    def constants(self) -> dict[str, float]:
        """Return the numbers that are equal in the `config` texts of all groups, by name."""
        config_numbers = self._read_config_numbers()
        return {name: float(values[0]) for name, values in config_numbers.items() if (values == values[0]).all()}

    def _read_config_numbers(self) -> dict[str, Float[np.ndarray, " n"]]:
        """Return the numbers in the `config` texts by name: one for each group, NaN if its text lacks it."""
        # Read at the first use: ten thousand texts take seconds.
        if self._config_numbers is None:
            numbers: dict[str, Float[np.ndarray, " n"]] = {}
            with self.open() as file:
                for index, key in enumerate(self._keys):
                    text = text_attribute(file[key].attrs, "config")
                    for name, value in parse_numbers(text, f"{self.name}: group {key}").items():
                        numbers.setdefault(name, np.full(self.trajectories, np.nan))[index] = value
            self._config_numbers = numbers
        return self._config_numbers


def _read_channel_names(file_name: str, file: Group, channel_count: int) -> tuple[str, ...]:
    """Return the channel names in the root attribute `channels`; an empty tuple if there is no such attribute."""
    names = tuple(part.strip() for part in text_attribute(file.attrs, "channels").split(",") if part)
    if names and len(names) != channel_count:
        raise DataError(
            f"{file_name}: attribute `channels` lists {len(names)} names, but `data` has {channel_count} channels; "
            "list one name for each channel"
        )
    return names


def _get_data(file_name: str, file: Group, key: str) -> Values:
    """Return the dataset `data` of the group `key`. Raises `DataError` if it does not exist or is not of floats."""
    data = file[key].get("data")
    if not isinstance(data, Values) or data.is_null:
        raise DataError(f"{file_name}: group `{key}` has no dataset `data`; remove the group, or write it again")
    check_float(f"{file_name}: `{key}/data`", data.dtype, _HINT)
    return data


def _read_shape_and_grid(file_name: str, file: Group, key: str) -> tuple[tuple[int, ...], Grid]:
    """Return the shape (T, X, .., C) of the trajectory in the group `key`, and its grid."""
    shape = _get_data(file_name, file, key).shape
    grid = file[key].get("grid")
    axes = [axis for axis in AXES if isinstance(grid, Group) and axis in grid]
    for axis in ("x", "t"):
        if not isinstance(grid, Group) or axis not in grid:
            raise DataError(f"{file_name}: group `{key}` has no dataset `grid/{axis}`; add the coordinates")
    if len(shape) != 2 + len(axes):
        expected = ", ".join(["T", *"XYZ"[: len(axes)], "C"])
        raise DataError(
            f"{file_name}: `{key}/data` has shape {shape}, but `{key}/grid` has the space axes {', '.join(axes)}; "
            f"reshape `data` to ({expected})"
        )
    reason = f"`data` has shape {shape}"
    datasets = [f"{key}/grid/{axis}" for axis in axes]
    origin, spacing = read_origin_and_spacing(file_name, file, datasets, shape[1:-1], reason)
    start, dt = read_start_and_step(file_name, file, f"{key}/grid/t", shape[0], reason)
    return shape, Grid(shape=shape[1:-1], origin=origin, spacing=spacing, start=start, dt=dt)


def _check_same_grid(file_name: str, file: Group, keys: tuple[str, ...], shape: tuple[int, ...]) -> None:
    """Raise `DataError` if a group's grid or times differ from those of the first group.

    Args:
        shape: Shape (T, X, .., C) of the trajectory in every group.
    """
    sizes = dict(zip(("t", *AXES), shape[:-1], strict=False))
    for axis, size in sizes.items():
        # PDEBench may store one time more than there are frames.
        first = read_coordinate(file_name, file, f"{keys[0]}/grid/{axis}", "")[:size]
        for key in keys[1:]:
            values = read_coordinate(file_name, file, f"{key}/grid/{axis}", "add the coordinates")[:size]
            if not np.array_equal(values, first) and not same_coordinates(values, first):
                raise DataError(
                    f"{file_name}: `{key}/grid/{axis}` differs from `{keys[0]}/grid/{axis}`; give trajectories with "
                    "the same grid and times, or store each kind in a file of its own"
                )
