"""The Well's HDF5 files: scalar, vector and tensor fields in the groups `t0_fields`, `t1_fields` and `t2_fields`.

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
from ups_jax.data.sources.base import AXES, Grid, iterate_windows, select_channels, uniform_spacing
from ups_jax.data.sources.hdf5 import HDF5Source, get_dataset, number_attribute, text_attribute

_GROUPS = ("t0_fields", "t1_fields", "t2_fields")
_HINT = "give an HDF5 file of The Well, such as those in its folders `data/train`"


@dataclass(frozen=True, kw_only=True)
class _Channel:
    """A component of a field: its dataset, and its index along the axes after space."""

    dataset: str
    component: tuple[int, ...]


class WellSource(HDF5Source):
    """A file of The Well.

    Components are called `velocity_x` and `stress_xy`, after the file's names of the space axes. Coefficients are the
    scalars that do not change in time, and the root attributes that `simulation_parameters` lists.

    Args:
        path: The file.
        channel_names: Channels to read; None reads all fields that change in time.

    Raises:
        DataError: Naming file and dataset, if a dataset or attribute is invalid, or if the grid is not supported.
    """

    def __init__(self, path: str | Path, channel_names: tuple[str, ...] | None = None) -> None:
        super().__init__(path, _HINT)
        with self.reading() as file:
            axes = _space_axes(self.name, file)
            self.trajectories = _trajectory_count(self.name, file)
            channels = _list_channels(self.name, file, axes)
            self.channel_names = select_channels(self.name, tuple(channels), channel_names)
            self._channels = [channels[name] for name in self.channel_names]
            self.grid, self.frames = _read_grid(self.name, file, axes, self.trajectories)
            for channel in self._channels:
                _check_shape(self.name, file[channel.dataset], self, len(channel.component))
            self._coefficients = _read_coefficients(self.name, file, self.trajectories)
            self.boundary = _read_boundary(file, axes)
        self.channels = len(self.channel_names)

    def windows(self, ids: Int[np.ndarray, " b"], frames: Int[np.ndarray, "b t"]) -> Float32[np.ndarray, "b t *s c"]:
        """Return the evenly spaced frames `frames` of the trajectories `ids`."""
        result = np.empty((*frames.shape, *self.grid.shape, self.channels), np.float32)
        with self.reading() as file:
            for column, channel in enumerate(self._channels):
                dataset = file[channel.dataset]
                has_trajectory_axis = _flag(dataset, "sample_varying", True)
                for row, index, times in iterate_windows(ids, frames):
                    key = (index, times) if has_trajectory_axis else (times,)
                    # Axes along which a field is constant have length 1; the assignment broadcasts them.
                    result[row, ..., column] = dataset[(*key, ..., *channel.component)]
        return result


def _space_axes(file_name: str, file: h5py.File) -> tuple[str, ...]:
    """Return the file's names of the space axes, in the order of the fields' axes."""
    kind = text_attribute(file.attrs, "grid_type", "cartesian")
    if kind.lower() != "cartesian":
        raise DataError(f"{file_name}: its grid is {kind}; only Cartesian grids are supported")
    axes = _text_list(_get_group(file, "dimensions"), "spatial_dims")
    if not 1 <= len(set(axes)) == len(axes) <= len(AXES):
        raise DataError(
            f"{file_name}: attribute `spatial_dims` of the group `dimensions` lists {', '.join(axes) or 'nothing'}; it "
            "must list 1 to 3 different axes"
        )
    for axis in (*axes, "time"):
        get_dataset(file_name, file, f"dimensions/{axis}", _HINT)
    return axes


def _trajectory_count(file_name: str, file: h5py.File) -> int:
    count = number_attribute(file.attrs, "n_trajectories")
    if count is None or count < 1:
        raise DataError(f"{file_name}: attribute `n_trajectories` is missing or not a positive number; {_HINT}")
    return int(count)


def _list_channels(file_name: str, file: h5py.File, axes: tuple[str, ...]) -> dict[str, _Channel]:
    """Return every component of the fields that change in time: scalars, then vectors, then tensors."""
    channels: dict[str, _Channel] = {}
    for order, group in enumerate(_GROUPS):
        members = _get_group(file, group)
        fields = () if members is None else _text_list(members, "field_names") or tuple(members)
        for field in fields:
            if not _flag(get_dataset(file_name, file, f"{group}/{field}", _HINT), "time_varying", True):
                continue
            for component in itertools.product(range(len(axes)), repeat=order):
                suffix = "".join(axes[index] for index in component)
                channel_name = f"{field}_{suffix}" if suffix else field
                channels[channel_name] = _Channel(dataset=f"{group}/{field}", component=component)
    return channels


def _read_grid(file_name: str, file: h5py.File, axes: tuple[str, ...], trajectories: int) -> tuple[Grid, int]:
    """Return the grid and the number of frames."""
    lines = []
    for axis in axes:
        values = _read_coordinate(file_name, file, axis, trajectories)
        lines.append(
            (len(values), *uniform_spacing(values, f"{file_name}: `dimensions/{axis}`", "give a uniform grid"))
        )
    times = _read_coordinate(file_name, file, "time", trajectories)
    start, dt = uniform_spacing(times, f"{file_name}: `dimensions/time`", "store frames at evenly spaced times")
    shape, origin, spacing = (tuple(values) for values in zip(*lines, strict=True))
    return Grid(shape=shape, origin=origin, spacing=spacing, start=start, dt=dt), len(times)


def _read_coordinate(file_name: str, file: h5py.File, axis: str, trajectories: int) -> Float[np.ndarray, " n"]:
    """Return the coordinates of an axis, which must be the same for all trajectories and at all times."""
    dataset = file[f"dimensions/{axis}"]
    has_trajectory_axis = _flag(dataset, "sample_varying", False)
    if axis != "time" and _flag(dataset, "time_varying", False):
        raise DataError(
            f"{file_name}: the grid moves (`dimensions/{axis}` is time_varying); only fixed grids are supported"
        )
    if dataset.ndim != 1 + has_trajectory_axis or dataset.dtype.kind != "f":
        raise DataError(f"{file_name}: `dimensions/{axis}` has shape {dataset.shape} and type {dataset.dtype}; {_HINT}")
    values = np.asarray(dataset)
    if has_trajectory_axis:
        if len(values) != trajectories or not np.allclose(values, values[:1], rtol=1e-5):
            raise DataError(
                f"{file_name}: `dimensions/{axis}` differs between trajectories; split it into files with one grid"
            )
        values = values[0]
    return values


def _check_shape(file_name: str, dataset: h5py.Dataset, source: WellSource, order: int) -> None:
    """Raise `DataError` unless a field of tensor order `order` has the shape that its attributes imply."""
    label, rank = f"`{dataset.name.strip('/')}`", len(source.grid.shape)
    is_varying = np.atleast_1d(dataset.attrs.get("dim_varying", np.ones(rank, bool)))
    if is_varying.dtype.kind not in "biu":
        raise DataError(f"{file_name}: {label} has an attribute `dim_varying` of type {is_varying.dtype}; {_HINT}")
    space = tuple(points if varies else 1 for points, varies in zip(source.grid.shape, is_varying, strict=False))
    trajectory_axis = (source.trajectories,) if _flag(dataset, "sample_varying", True) else ()
    expected = (*trajectory_axis, source.frames, *space, *(rank,) * order)
    if len(is_varying) != rank or dataset.shape != expected:
        raise DataError(f"{file_name}: {label} has shape {dataset.shape}; by its attributes it must be {expected}")
    if dataset.dtype.kind != "f":
        raise DataError(
            f"{file_name}: {label} contains {dataset.dtype}, not floating-point numbers; store it as float32"
        )


def _read_coefficients(file_name: str, file: h5py.File, trajectories: int) -> dict[str, Any]:
    """Return the coefficients by lower-case name; a scalar replaces a root attribute of its name."""
    parameters = {key: number_attribute(file.attrs, key) for key in _text_list(file, "simulation_parameters")}
    coefficients: dict[str, Any] = {key.lower(): value for key, value in parameters.items() if value is not None}
    for key in _get_group(file, "scalars") or ():
        dataset = get_dataset(file_name, file, f"scalars/{key}", _HINT)
        if _flag(dataset, "time_varying", False) or dataset.dtype.kind not in "fiu":
            continue
        expected = (trajectories,) if _flag(dataset, "sample_varying", False) else ()
        if dataset.shape != expected:
            raise DataError(
                f"{file_name}: `scalars/{key}` has shape {dataset.shape}; by its attributes it must be {expected}"
            )
        coefficients[key.lower()] = np.asarray(dataset, np.float64)
    return coefficients


def _read_boundary(file: h5py.File, axes: tuple[str, ...]) -> dict[str, str]:
    """Return the kind of boundary of the axes x, y and z: `open` unless the file names another."""
    kinds = dict.fromkeys(AXES[: len(axes)], "open")
    sides = _get_group(file, "boundary_conditions")
    for item in () if sides is None else filter(None, sides.values()):
        for axis in _text_list(item, "associated_dims"):
            if axis in axes:
                kinds[AXES[axes.index(axis)]] = text_attribute(item.attrs, "bc_type", "open").lower()
    return kinds


def _get_group(file: h5py.File, name: str) -> h5py.Group | None:
    group = file.get(name)
    return group if isinstance(group, h5py.Group) else None


def _text_list(item: h5py.HLObject | None, key: str) -> tuple[str, ...]:
    """Return the strings of an attribute; none if the item or the attribute does not exist."""
    values = () if item is None else np.atleast_1d(item.attrs.get(key, ())).ravel()
    return tuple(value.decode(errors="replace") if isinstance(value, bytes) else str(value) for value in values)


def _flag(dataset: h5py.Dataset, key: str, default: bool) -> bool:
    """Return a boolean attribute of a dataset, or the default if it does not exist."""
    value = number_attribute(dataset.attrs, key)
    return default if value is None else bool(value)
