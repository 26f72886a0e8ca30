"""Arrays of any layout, described by a few lines of YAML that a user writes.

file: mine.npz                              # or .npy, or .hdf5; in the folder of this file, or below
fields: {u: velocity, p: flow/pressure}     # channel: array; or one array with an axis of the channels in `channels`
axes: [trajectory, time, x, y]              # the axes of every array, in order
time: [0, 0.05]                             # start and step, or the name of an array of times
x: [0, 0.01]                                # start and step, or the name of an array of coordinates; also y and z
coefficients: {nu: viscosity, rho: 1.2}     # an array with one number for each trajectory, or one number for all
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Float32, Int

from ups_jax.config import yaml
from ups_jax.core.errors import DataError
from ups_jax.core.files import path_inside
from ups_jax.data.sources.arrays import ArrayFile, open_arrays
from ups_jax.data.sources.base import (
    AXES,
    Grid,
    check_float,
    coordinate_line,
    iterate_windows,
    match_name,
    origin_and_spacing,
    per_trajectory,
    select_channels,
    start_and_step,
)

_KEYS = ("file", "fields", "axes", "time", *AXES, "coefficients", "channels")
# Names of axes in other programs, and the names in a description.
_OTHER_AXES = {
    **dict.fromkeys(
        ("sample", "samples", "batch", "n", "run", "traj", "trajectories", "ensemble", "member"), "trajectory"
    ),
    **dict.fromkeys(("t", "times", "frame", "frames", "step"), "time"),
    **dict.fromkeys(("lon", "longitude", "i"), "x"),
    **dict.fromkeys(("lat", "latitude", "j"), "y"),
    **dict.fromkeys(("lev", "level", "depth", "height", "k"), "z"),
    **dict.fromkeys(("c", "channels", "variable", "field", "fields", "component"), "channel"),
}
_AXIS_HINT = "give [start, step], or the name of an array with the times or coordinates"


class DescribedSource:
    """A source of the arrays that the YAML file `path` describes, with all channels if `channel_names` is None.

    Raises `DataError` if the description is invalid or does not match the arrays.
    """

    input_channels: tuple[str, ...] = ()

    def __init__(self, path: str | Path, channel_names: tuple[str, ...] | None = None) -> None:
        self.name = str(path)
        self.path = Path(path)
        description = _read_description(self.path)
        self._file = open_arrays(array_path(self.path, description))
        self.files = (self.path, array_path(self.path, description))
        self._axes = _parse_axes(self.name, description["axes"])
        self._array_names, self._available = _parse_array_and_channel_names(self.name, description, self._axes)
        self.channel_names = select_channels(self.name, self._available, channel_names)
        sizes = _read_axis_sizes(self.name, self._file, self._array_names, self._axes)
        self.trajectories, self.frames = sizes["trajectory"], sizes["time"]
        self.channels = len(self.channel_names)
        if "channel" in sizes and sizes["channel"] != len(self._available):
            raise DataError(
                f"{path}: key `channels` lists {len(self._available)} names, but the array has {sizes['channel']} "
                "channels; list one name for each channel"
            )
        self.grid = _parse_grid(self.name, description, self._file, sizes)
        self._coefficients = _parse_coefficients(self.name, description, self._file, self.trajectories)
        self.notes = tuple(f"{path}: {note.removeprefix(f'{self._file.path}: ')}" for note in self._file.notes)

    def read(self, ids: Int[np.ndarray, " b"], frames: Int[np.ndarray, "b t"]) -> Float32[np.ndarray, "b t *s c"]:
        """Return the evenly spaced frames `frames[i]` of trajectory `ids[i]` for each window i."""
        result = np.empty((*frames.shape, *self.grid.shape, self.channels), np.float32)
        result_axes = [axis for axis in ("time", *self.grid.axes, "channel") if axis in self._axes]
        array_axes = [axis for axis in self._axes if axis != "trajectory"]
        permutation = [array_axes.index(axis) for axis in result_axes]
        for row, index, times in iterate_windows(ids, frames):
            selection: dict[str, int | slice] = {"trajectory": index, "time": times}
            key = tuple(selection.get(axis, slice(None)) for axis in self._axes)
            if "channel" in self._axes:
                all_channels = self._file.read(self._array_names[0], key).transpose(permutation)
                result[row] = all_channels[..., [self._available.index(name) for name in self.channel_names]]
            else:
                for channel, name in enumerate(self.channel_names):
                    array = self._array_names[self._available.index(name)]
                    result[row, ..., channel] = self._file.read(array, key).transpose(permutation)
        return result

    def read_input_fields(self, ids: Int[np.ndarray, " b"]) -> Float32[np.ndarray, "b *s i"]:
        """Return an array without input fields: its last axis has length 0."""
        return np.empty((len(ids), *self.grid.shape, 0), np.float32)

    def coefficient(self, name: str) -> Float[np.ndarray, " n"] | None:
        """Return a coefficient's values for all trajectories, or None if it is missing; see `match_name`."""
        match = match_name(f"{self.name}: key `coefficients`", name, self._coefficients)
        return None if match is None else self._coefficients[match]

    def coefficient_names(self) -> tuple[str, ...]:
        """Return the names that the description lists under the key `coefficients`."""
        return tuple(self._coefficients)


def array_path(path: Path, description: Mapping[str, Any]) -> Path:
    """Return the path of the array file that is named in `description`, the content of the YAML file `path`.

    Raises `DataError` if the path leads out of the YAML file's folder.
    """
    return path_inside(path, "file", description["file"], DataError)


def _read_description(path: Path) -> Mapping[str, Any]:
    try:
        description = yaml.parse(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(f"{path}: does not exist; write the description of your arrays to this file") from None
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read ({' '.join(str(error).split())}); correct the YAML text") from None
    if not isinstance(description, dict):
        raise DataError(f"{path}: is not a mapping with keys; write the keys {', '.join(_KEYS)}")
    if "axes" in description:
        # Before unknown keys: these may be the coordinates of an axis with another name.
        _parse_axes(str(path), description["axes"])
    for key in description:
        if key not in _KEYS:
            raise DataError(f"{path}: unknown key `{key}`; use the keys {', '.join(_KEYS)}")
    for key in ("file", "fields", "axes", "time"):
        if key not in description:
            raise DataError(f"{path}: key `{key}` is missing; add it")
    return description


def _parse_axes(file_name: str, value: Any) -> tuple[str, ...]:
    axes = tuple(map(str, value)) if isinstance(value, list) else ()
    allowed = ("trajectory", "time", *AXES, "channel")
    label = f"{file_name}: key `axes` is {value}"
    for axis in axes:
        if axis not in allowed:
            name = axis.lower() if axis.lower() in allowed else _OTHER_AXES.get(axis.lower())
            remedy = f"call it {name}" if name else f"use the names {', '.join(allowed)}"
            raise DataError(f"{label}, and an axis cannot be called {axis!r}; {remedy}")
    space = [axis for axis in AXES if axis in axes]
    is_complete = {"trajectory", "time", "x"} <= set(axes) and space == list(AXES[: len(space)])
    if len(set(axes)) != len(axes) or not is_complete:
        remedy = (
            "list the axes of the arrays in their order: trajectory, time, x (and y, z), and channel if there is one"
        )
        if "time" not in axes and "trajectory" in axes:
            remedy += (
                "; steady data cannot be described: store them in PDEBench's Darcy layout, an HDF5 file with the "
                "datasets `nu` (N, X, Y), `tensor` (N, 1, X, Y), `x-coordinate` and `y-coordinate`"
            )
        elif "trajectory" not in axes and axes:
            remedy += "; join trajectories with np.stack to one array, also if there is only one"
        raise DataError(f"{label}; {remedy}")
    return axes


def _parse_array_and_channel_names(
    file_name: str, description: Mapping[str, Any], axes: tuple[str, ...]
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the names of the arrays, and the names of all channels in them."""
    fields = description["fields"]
    if "channel" in axes:
        channels = description.get("channels")
        if not isinstance(fields, str) or not isinstance(channels, list) or not channels:
            raise DataError(
                f"{file_name}: key `axes` lists a channel axis; set `fields` to the name of one array and list its "
                "channels in `channels`"
            )
        return (fields,), tuple(map(str, channels))
    if isinstance(fields, str):
        fields = {fields.rsplit("/", 1)[-1]: fields}
    if not isinstance(fields, dict) or not fields or "channels" in description:
        raise DataError(
            f"{file_name}: key `axes` lists no channel axis; set `fields` to pairs `channel: array` and remove the key "
            "`channels`"
        )
    return tuple(map(str, fields.values())), tuple(map(str, fields))


def _read_axis_sizes(
    file_name: str, file: ArrayFile, array_names: tuple[str, ...], axes: tuple[str, ...]
) -> dict[str, int]:
    """Return the length of each axis. Raises `DataError` unless all arrays have the same shape and contain floats."""
    first = array_names[0]
    shape = file.shape(first)
    for name in array_names:
        if file.shape(name) != shape:
            raise DataError(
                f"{file_name}: `{name}` has shape {file.shape(name)}, but `{first}` has {shape}; "
                "give arrays of one shape"
            )
        check_float(f"{file_name}: `{name}`", file.dtype(name))
    if len(shape) != len(axes):
        raise DataError(
            f"{file_name}: `{first}` has shape {shape}, but key `axes` lists {', '.join(axes)}; list one name for "
            "each axis"
        )
    return dict(zip(axes, shape, strict=True))


def _parse_grid(file_name: str, description: Mapping[str, Any], file: ArrayFile, sizes: Mapping[str, int]) -> Grid:
    axes = [axis for axis in AXES if axis in sizes]
    for axis in AXES:
        if axis in axes and axis not in description:
            raise DataError(f"{file_name}: key `{axis}` is missing; {_AXIS_HINT}")
        if axis in description and axis not in axes:
            raise DataError(
                f"{file_name}: key `{axis}` describes an axis that key `axes` does not list; remove `{axis}` or list it"
            )
    lines = [_parse_line(file_name, axis, description[axis], file, sizes) for axis in axes]
    start, dt = _parse_line(file_name, "time", description["time"], file, sizes)
    return Grid(
        shape=tuple(sizes[axis] for axis in axes),
        origin=tuple(first for first, _ in lines),
        spacing=tuple(step for _, step in lines),
        start=start,
        dt=dt,
    )


def _parse_line(
    file_name: str, axis: str, value: Any, file: ArrayFile, sizes: Mapping[str, int]
) -> tuple[float, float]:
    """Return the start and step of an axis; the step of a space axis is negative if its coordinates descend.

    Args:
        value: [start, step], or the name of an array of coordinates.
        sizes: Length of each axis.
    """
    if isinstance(value, str):
        size, label = sizes[axis], f"{file_name}: `{value}`"
        stored = file.read(value, ())
        values = coordinate_line(stored, label)
        if values.ndim != 1 or len(values) not in (size, size + (axis == "time")):
            lengths = ", ".join(f"{name} {points}" for name, points in sizes.items())
            raise DataError(
                f"{label} has shape {stored.shape}; give {size} numbers for the axis {axis} (the arrays have the axes "
                f"{lengths})"
            )
        if axis == "time":
            return start_and_step(values[:size], label, "store frames at evenly spaced times")
        return origin_and_spacing(values, label, "interpolate the fields to a uniform grid")
    try:
        start, step = (float(item) for item in value)
    except (TypeError, ValueError, OverflowError):
        raise DataError(f"{file_name}: key `{axis}` is {value}; {_AXIS_HINT}") from None
    if not np.isfinite([start, step]).all() or step == 0 or (step < 0 and axis == "time"):
        required = "positive step" if axis == "time" else "step that is not 0"
        raise DataError(f"{file_name}: key `{axis}` is {value}; give a finite start and a finite {required}")
    return start, step


def _parse_coefficients(
    file_name: str, description: Mapping[str, Any], file: ArrayFile, trajectories: int
) -> dict[str, Float[np.ndarray, " n"]]:
    coefficients = {}
    entries = description.get("coefficients") or {}
    if not isinstance(entries, dict):
        raise DataError(f"{file_name}: key `coefficients` is no mapping; give pairs `name: array` or `name: number`")
    for key, value in entries.items():
        try:
            values = np.asarray(float(value))
        except (TypeError, ValueError, OverflowError):
            values = np.asarray(file.read(str(value), ()))
            if values.dtype.kind not in "fiub":
                raise DataError(
                    f"{file_name}: the array `{value}` of coefficient `{key}` must contain numbers"
                ) from None
        coefficient = per_trajectory(values, trajectories)
        if coefficient is None:
            raise DataError(
                f"{file_name}: coefficient `{key}` has shape {values.shape}; give shape ({trajectories},), one number "
                "for each trajectory"
            )
        coefficients[str(key)] = coefficient
    return coefficients
