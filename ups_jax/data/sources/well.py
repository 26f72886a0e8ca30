"""HDF5 files of The Well: scalar, vector and tensor fields in the groups `t0_fields`, `t1_fields` and `t2_fields`.

The package `the_well` is not needed. Grids must be Cartesian, and fields that do not change in time are left out.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
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
    origin_and_spacing,
    per_trajectory,
    select_channels,
    start_and_step,
)
from ups_jax.data.sources.hdf5 import HDF5Source, get_dataset, number_attribute, read_coordinate
from ups_jax.data.sources.hdf5_values import Group, Values, text_attribute

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
            channels, constant_fields = _list_channels(self.name, file, axes)
            self._note_constant_fields(constant_fields)
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


def _read_axis_names(file_name: str, file: Group) -> tuple[str, ...]:
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


def _read_trajectory_count(file_name: str, file: Group) -> int:
    count = number_attribute(file.attrs, "n_trajectories")
    if count is None or count < 1:
        raise DataError(f"{file_name}: attribute `n_trajectories` is missing or not a positive number; {_HINT}")
    return int(count)


def _list_channels(file_name: str, file: Group, axes: tuple[str, ...]) -> tuple[dict[str, _Channel], list[str]]:
    """Return the components of all fields that change in time, by name, and the names of all other fields.

    The order is that of the file: scalars, then vectors, then tensors.
    """
    channels: dict[str, _Channel] = {}
    constant_fields = []
    for order, group in enumerate(_GROUPS):
        members = _get_group(file, group)
        fields = () if members is None else _string_list_attribute(members, "field_names") or tuple(members)
        for field in fields:
            if not _bool_attribute(get_dataset(file_name, file, f"{group}/{field}", _HINT), "time_varying", True):
                constant_fields.append(field)
                continue
            for component in itertools.product(range(len(axes)), repeat=order):
                suffix = "".join(axes[index] for index in component)
                channel_name = f"{field}_{suffix}" if suffix else field
                channels[channel_name] = _Channel(dataset=f"{group}/{field}", component=component)
    return channels, constant_fields


def _read_grid_and_frame_count(
    file_name: str, file: Group, axes: tuple[str, ...], trajectories: int
) -> tuple[Grid, int]:
    """Return the grid of a file, and its number of frames."""
    lines = []
    for axis in axes:
        values = _read_coordinate(file_name, file, axis, trajectories)
        label = f"{file_name}: `dimensions/{axis}`"
        lines.append((len(values), *origin_and_spacing(values, label, "interpolate the fields to a uniform grid")))
    times = _read_coordinate(file_name, file, "time", trajectories)
    start, dt = start_and_step(times, f"{file_name}: `dimensions/time`", "store frames at evenly spaced times")
    shape, origin, spacing = (tuple(values) for values in zip(*lines, strict=True))
    return Grid(shape=shape, origin=origin, spacing=spacing, start=start, dt=dt), len(times)


def _read_coordinate(file_name: str, file: Group, axis: str, trajectories: int) -> Float[np.ndarray, " n"]:
    """Return the coordinates of an axis, which must be the same for all trajectories and at all times."""
    dataset = file[f"dimensions/{axis}"]
    has_trajectory_axis = _bool_attribute(dataset, "sample_varying", False)
    if axis != "time" and _bool_attribute(dataset, "time_varying", False):
        raise DataError(
            f"{file_name}: the grid moves (`dimensions/{axis}` is `time_varying`); give a file with a fixed grid"
        )
    if dataset.ndim != 1 + has_trajectory_axis or (has_trajectory_axis and len(dataset) != trajectories):
        raise DataError(f"{file_name}: `dimensions/{axis}` has shape {dataset.shape} and type {dataset.dtype}; {_HINT}")
    return read_coordinate(file_name, file, f"dimensions/{axis}", _HINT)


def _check_field(file_name: str, dataset: Values, source: WellSource, tensor_order: int) -> None:
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
    check_float(f"{file_name}: {label}", dataset.dtype)


def _read_coefficients(file_name: str, file: Group, trajectories: int) -> dict[str, Any]:
    """Return the coefficients by name; a scalar replaces a root attribute of the same name."""
    parameters = {
        key: number_attribute(file.attrs, key) for key in _string_list_attribute(file, "simulation_parameters")
    }
    coefficients: dict[str, Any] = {key: value for key, value in parameters.items() if value is not None}
    for key in _get_group(file, "scalars") or ():
        dataset = get_dataset(file_name, file, f"scalars/{key}", _HINT)
        if _bool_attribute(dataset, "time_varying", False) or dataset.dtype.kind not in "fiu":
            continue
        expected = (trajectories,) if _bool_attribute(dataset, "sample_varying", False) else ()
        longer_axes = tuple(points for points in dataset.shape if points != 1)
        if longer_axes not in ((), expected):
            raise DataError(
                f"{file_name}: `scalars/{key}` has shape {dataset.shape}, but its attributes imply {expected}; {_HINT}"
            )
        coefficients[key] = per_trajectory(dataset[()], trajectories)
    return coefficients


def _read_boundary(file: Group, axes: tuple[str, ...]) -> dict[str, str]:
    """Return the kind of boundary of each axis x, y, z: `open` unless the file states another kind."""
    kinds = dict.fromkeys(AXES[: len(axes)], "open")
    sides = _get_group(file, "boundary_conditions")
    for item in () if sides is None else filter(None, sides.values()):
        for axis in _string_list_attribute(item, "associated_dims"):
            if axis in axes:
                kinds[AXES[axes.index(axis)]] = text_attribute(item.attrs, "bc_type", "open").lower()
    return kinds


def _get_group(file: Group, name: str) -> Group | None:
    group = file.get(name)
    return group if isinstance(group, Group) else None


def _string_list_attribute(item: Group | Values | None, key: str) -> tuple[str, ...]:
    """Return the strings in the attribute `key`, or an empty tuple if the item or the attribute does not exist."""
    values = () if item is None else np.atleast_1d(item.attrs.get(key, ())).ravel()
    return tuple(value.decode(errors="replace") if isinstance(value, bytes) else str(value) for value in values)


def _bool_attribute(dataset: Values, key: str, default: bool) -> bool:
    """Return the boolean attribute `key` of a dataset, or `default` if it does not exist."""
    value = number_attribute(dataset.attrs, key)
    return default if value is None else bool(value)
