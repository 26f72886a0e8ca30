"""HDF5 files of The Well: scalar, vector and tensor fields in the groups `t0_fields`, `t1_fields` and `t2_fields`.

The package `the_well` is not needed. Grids must be Cartesian, and fields that do not change in time are not read.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from jaxtyping import Float, Float32, Int

from ups_jax.core.errors import DataError
from ups_jax.data.sources.base import AXES, Grid, iterate_windows, same_coordinates, select_channels, start_and_step
from ups_jax.data.sources.hdf5 import HDF5Source, get_dataset, number_attribute, text_attribute

_GROUPS = ("t0_fields", "t1_fields", "t2_fields")
_HINT = "give an HDF5 file of The Well, such as those in its folders `data/train`"


@dataclass(frozen=True, kw_only=True)
class _Channel:
    """A component of a field: the dataset of the field, and the component's index along the axes after space."""

    dataset: str
    component: tuple[int, ...]


class WellSource(HDF5Source):
    """A file of The Well, with all fields that change in time if `channel_names` is None.

    Components of vectors and tensors have names such as `velocity_x` and `stress_xy`, with the file's names of the
    axes. Coefficients are the scalars that do not change in time, and the root attributes that the root attribute
    `simulation_parameters` lists.

    Raises `DataError` if a dataset or attribute is invalid, or if the grid is not supported.
    """

    def __init__(self, path: str | Path, channel_names: tuple[str, ...] | None = None) -> None:
        super().__init__(path, _HINT)
        with self.open() as file:
            axes = _read_axis_names(self.name, file)
            self.trajectories = _read_trajectory_count(self.name, file)
            channels = _list_channels(self.name, file, axes)
            self.channel_names = select_channels(self.name, tuple(channels), channel_names)
            self._channels = [channels[name] for name in self.channel_names]
            self.grid, self.frames = _read_grid_and_frame_count(self.name, file, axes, self.trajectories)
            for channel in self._channels:
                _check_field(self.name, file[channel.dataset], self, len(channel.component))
            self._coefficients = _read_coefficients(self.name, file, self.trajectories)
            self.boundary = _read_boundary(file, axes)
        self.channels = len(self.channel_names)

    def read(self, ids: Int[np.ndarray, " b"], frames: Int[np.ndarray, "b t"]) -> Float32[np.ndarray, "b t *s c"]:
        """Return the evenly spaced frames `frames[i]` of trajectory `ids[i]` for each window i."""
        result = np.empty((*frames.shape, *self.grid.shape, self.channels), np.float32)
        with self.open() as file:
            for column, channel in enumerate(self._channels):
                dataset = file[channel.dataset]
                has_trajectory_axis = _bool_attribute(dataset, "sample_varying", True)
                for row, index, times in iterate_windows(ids, frames):
                    key = (index, times) if has_trajectory_axis else (times,)
                    # Axes along which a field is constant have length 1; the assignment broadcasts them.
                    result[row, ..., column] = dataset[(*key, ..., *channel.component)]
        return result


def _read_axis_names(file_name: str, file: h5py.File) -> tuple[str, ...]:
    """Return the names of the space axes in the file, in the order of the fields' axes."""
    kind = text_attribute(file.attrs, "grid_type", "cartesian")
    if kind.lower() != "cartesian":
        raise DataError(f"{file_name}: the grid is {kind}; give a file with a Cartesian grid")
    axes = _string_list_attribute(_get_group(file, "dimensions"), "spatial_dims")
    if not 1 <= len(set(axes)) == len(axes) <= len(AXES):
        raise DataError(
            f"{file_name}: attribute `spatial_dims` of the group `dimensions` lists {', '.join(axes) or 'nothing'}; "
            "list 1 to 3 different axes"
        )
    for axis in (*axes, "time"):
        get_dataset(file_name, file, f"dimensions/{axis}", _HINT)
    return axes


def _read_trajectory_count(file_name: str, file: h5py.File) -> int:
    count = number_attribute(file.attrs, "n_trajectories")
    if count is None or count < 1:
        raise DataError(f"{file_name}: attribute `n_trajectories` is missing or not a positive number; {_HINT}")
    return int(count)


def _list_channels(file_name: str, file: h5py.File, axes: tuple[str, ...]) -> dict[str, _Channel]:
    """Return the components of all fields that change in time, by name: scalars, then vectors, then tensors."""
    channels: dict[str, _Channel] = {}
    for order, group in enumerate(_GROUPS):
        members = _get_group(file, group)
        fields = () if members is None else _string_list_attribute(members, "field_names") or tuple(members)
        for field in fields:
            if not _bool_attribute(get_dataset(file_name, file, f"{group}/{field}", _HINT), "time_varying", True):
                continue
            for component in itertools.product(range(len(axes)), repeat=order):
                suffix = "".join(axes[index] for index in component)
                channel_name = f"{field}_{suffix}" if suffix else field
                channels[channel_name] = _Channel(dataset=f"{group}/{field}", component=component)
    return channels


def _read_grid_and_frame_count(
    file_name: str, file: h5py.File, axes: tuple[str, ...], trajectories: int
) -> tuple[Grid, int]:
    """Return the grid of a file, and its number of frames."""
    lines = []
    for axis in axes:
        values = _read_coordinate(file_name, file, axis, trajectories)
        lines.append((len(values), *start_and_step(values, f"{file_name}: `dimensions/{axis}`", "give a uniform grid")))
    times = _read_coordinate(file_name, file, "time", trajectories)
    start, dt = start_and_step(times, f"{file_name}: `dimensions/time`", "store frames at evenly spaced times")
    shape, origin, spacing = (tuple(values) for values in zip(*lines, strict=True))
    return Grid(shape=shape, origin=origin, spacing=spacing, start=start, dt=dt), len(times)


def _read_coordinate(file_name: str, file: h5py.File, axis: str, trajectories: int) -> Float[np.ndarray, " n"]:
    """Return the coordinates of an axis, which must be the same for all trajectories and at all times."""
    dataset = file[f"dimensions/{axis}"]
    has_trajectory_axis = _bool_attribute(dataset, "sample_varying", False)
    if axis != "time" and _bool_attribute(dataset, "time_varying", False):
        raise DataError(
            f"{file_name}: the grid moves (`dimensions/{axis}` is `time_varying`); give a file with a fixed grid"
        )
    if dataset.ndim != 1 + has_trajectory_axis or dataset.dtype.kind != "f":
        raise DataError(f"{file_name}: `dimensions/{axis}` has shape {dataset.shape} and type {dataset.dtype}; {_HINT}")
    values = np.asarray(dataset)
    if has_trajectory_axis:
        if len(values) != trajectories or not same_coordinates(values, values[0]):
            raise DataError(
                f"{file_name}: `dimensions/{axis}` differs between trajectories; store each grid in a file of its own"
            )
        values = values[0]
    return values


def _check_field(file_name: str, dataset: h5py.Dataset, source: WellSource, tensor_order: int) -> None:
    """Raise `DataError` unless a field consists of floats and has the shape that its attributes imply."""
    label, rank = f"`{dataset.name.strip('/')}`", len(source.grid.shape)
    is_varying = np.atleast_1d(dataset.attrs.get("dim_varying", np.ones(rank, bool)))
    if is_varying.dtype.kind not in "biu":
        raise DataError(f"{file_name}: attribute `dim_varying` of {label} has type {is_varying.dtype}; {_HINT}")
    space = tuple(points if varies else 1 for points, varies in zip(source.grid.shape, is_varying, strict=False))
    trajectory_axis = (source.trajectories,) if _bool_attribute(dataset, "sample_varying", True) else ()
    expected = (*trajectory_axis, source.frames, *space, *(rank,) * tensor_order)
    if len(is_varying) != rank or dataset.shape != expected:
        raise DataError(f"{file_name}: {label} has shape {dataset.shape}, but its attributes imply {expected}; {_HINT}")
    if dataset.dtype.kind != "f":
        raise DataError(
            f"{file_name}: {label} contains {dataset.dtype}, not floating-point numbers; store it as float32"
        )


def _read_coefficients(file_name: str, file: h5py.File, trajectories: int) -> dict[str, Any]:
    """Return the coefficients by lower-case name; a scalar replaces a root attribute of the same name."""
    parameters = {
        key: number_attribute(file.attrs, key) for key in _string_list_attribute(file, "simulation_parameters")
    }
    coefficients: dict[str, Any] = {key.lower(): value for key, value in parameters.items() if value is not None}
    for key in _get_group(file, "scalars") or ():
        dataset = get_dataset(file_name, file, f"scalars/{key}", _HINT)
        if _bool_attribute(dataset, "time_varying", False) or dataset.dtype.kind not in "fiu":
            continue
        expected = (trajectories,) if _bool_attribute(dataset, "sample_varying", False) else ()
        if dataset.shape != expected:
            raise DataError(
                f"{file_name}: `scalars/{key}` has shape {dataset.shape}, but its attributes imply {expected}; {_HINT}"
            )
        coefficients[key.lower()] = np.asarray(dataset, np.float64)
    return coefficients


def _read_boundary(file: h5py.File, axes: tuple[str, ...]) -> dict[str, str]:
    """Return the kind of boundary of each axis x, y, z: `open` unless the file states another kind."""
    kinds = dict.fromkeys(AXES[: len(axes)], "open")
    sides = _get_group(file, "boundary_conditions")
    for item in () if sides is None else filter(None, sides.values()):
        for axis in _string_list_attribute(item, "associated_dims"):
            if axis in axes:
                kinds[AXES[axes.index(axis)]] = text_attribute(item.attrs, "bc_type", "open").lower()
    return kinds


def _get_group(file: h5py.File, name: str) -> h5py.Group | None:
    group = file.get(name)
    return group if isinstance(group, h5py.Group) else None


def _string_list_attribute(item: h5py.HLObject | None, key: str) -> tuple[str, ...]:
    """Return the strings in the attribute `key`, or an empty tuple if the item or the attribute does not exist."""
    values = () if item is None else np.atleast_1d(item.attrs.get(key, ())).ravel()
    return tuple(value.decode(errors="replace") if isinstance(value, bytes) else str(value) for value in values)


def _bool_attribute(dataset: h5py.Dataset, key: str, default: bool) -> bool:
    """Return the boolean attribute `key` of a dataset, or `default` if it does not exist."""
    value = number_attribute(dataset.attrs, key)
    return default if value is None else bool(value)
