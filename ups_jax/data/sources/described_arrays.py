"""Arrays of any layout, described by a few lines of YAML that a user writes.

file: mine.npz                              # or .npy, or .hdf5; in the folder of this file, or below
fields: {u: velocity, p: flow/pressure}     # channel: array; or one array with a channel axis, named by `channels`
axes: [trajectory, time, x, y]              # the axes of every array, in order
time: [0, 0.05]                             # start and step, or the array of times
x: [0, 0.01]                                # start and step, or the array of coordinates; likewise for y and z
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
from ups_jax.data.sources.base import AXES, Grid, iterate_windows, select_channels, uniform_spacing

_KEYS = ("file", "fields", "axes", "time", *AXES, "coefficients", "channels")


class DescribedSource:
    """A source of the arrays that a YAML description names.

    Args:
        path: The YAML file.
        channel_names: Channels to read; None reads all.

    Raises:
        DataError: Naming file and key, if the description is invalid or does not match the arrays.
    """

    input_channels: tuple[str, ...] = ()

    def __init__(self, path: str | Path, channel_names: tuple[str, ...] | None = None) -> None:
        self.name = str(path)
        self.path = Path(path)
        description = _read_description(self.path)
        self._file = open_arrays(array_path(self.path, description))
        self._axes = _parse_axes(self.name, description)
        self._arrays, self._available = _parse_fields(self.name, description, self._axes)
        self.channel_names = select_channels(self.name, self._available, channel_names)
        sizes = _axis_sizes(self.name, self._file, self._arrays, self._axes)
        self.trajectories, self.frames = sizes["trajectory"], sizes["time"]
        self.channels = len(self.channel_names)
        if "channel" in sizes and sizes["channel"] != len(self._available):
            raise DataError(
                f"{path}: key `channels` lists {len(self._available)} names, but the array has {sizes['channel']} "
                "channels; list one name for each"
            )
        self.grid = _parse_grid(self.name, description, self._file, sizes)
        self._coefficients = _parse_coefficients(self.name, description, self._file, self.trajectories)

    def windows(self, ids: Int[np.ndarray, " b"], frames: Int[np.ndarray, "b t"]) -> Float32[np.ndarray, "b t *s c"]:
        """Return the evenly spaced frames `frames` of the trajectories `ids`."""
        result = np.empty((*frames.shape, *self.grid.shape, self.channels), np.float32)
        result_axes = [axis for axis in ("time", *self.grid.axes, "channel") if axis in self._axes]
        array_axes = [axis for axis in self._axes if axis != "trajectory"]
        permutation = [array_axes.index(axis) for axis in result_axes]
        for row, index, times in iterate_windows(ids, frames):
            selection: dict[str, int | slice] = {"trajectory": index, "time": times}
            key = tuple(selection.get(axis, slice(None)) for axis in self._axes)
            if "channel" in self._axes:
                all_channels = self._file.read(self._arrays[0], key).transpose(permutation)
                result[row] = all_channels[..., [self._available.index(name) for name in self.channel_names]]
            else:
                for channel, name in enumerate(self.channel_names):
                    array = self._arrays[self._available.index(name)]
                    result[row, ..., channel] = self._file.read(array, key).transpose(permutation)
        return result

    def inputs(self, ids: Int[np.ndarray, " b"]) -> Float32[np.ndarray, "b *s i"]:
        """Return an array without input fields: its last axis has length 0."""
        return np.empty((len(ids), *self.grid.shape, 0), np.float32)

    def coefficient(self, name: str) -> Float[np.ndarray, " n"] | None:
        """Return a coefficient of every trajectory by its name in any letter case, or None."""
        return {key.lower(): value for key, value in self._coefficients.items()}.get(name.lower())

    def coefficient_names(self) -> tuple[str, ...]:
        """Return the names under the key `coefficients`."""
        return tuple(self._coefficients)


def array_path(path: Path, description: Mapping[str, Any]) -> Path:
    """Return the path of the arrays that a description at `path` names.

    Raises `DataError` if it leads out of the description's folder.
    """
    return path_inside(path, "file", description["file"], DataError)


def _read_description(path: Path) -> Mapping[str, Any]:
    try:
        description = yaml.parse(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(f"{path}: does not exist; write the description of your arrays to this file") from None
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read as YAML ({' '.join(str(error).split())}); correct it") from None
    if not isinstance(description, dict):
        raise DataError(f"{path}: is not a description of arrays; write the keys {', '.join(_KEYS)}")
    for key in description:
        if key not in _KEYS:
            raise DataError(f"{path}: unknown key `{key}`; the keys are {', '.join(_KEYS)}")
    for key in ("file", "fields", "axes", "time"):
        if key not in description:
            raise DataError(f"{path}: key `{key}` is missing; add it")
    return description


def _parse_axes(file_name: str, description: Mapping[str, Any]) -> tuple[str, ...]:
    axes = tuple(map(str, description["axes"])) if isinstance(description["axes"], list) else ()
    allowed = {"trajectory", "time", *AXES, "channel"}
    space = [axis for axis in AXES if axis in axes]
    is_complete = {"trajectory", "time", "x"} <= set(axes) and space == list(AXES[: len(space)])
    if len(set(axes)) != len(axes) or not set(axes) <= allowed or not is_complete:
        raise DataError(
            f"{file_name}: key `axes` is {description['axes']}; list trajectory, time, x (y, z), and channel if the "
            "array has a channel axis, in the order of the array"
        )
    return axes


def _parse_fields(
    file_name: str, description: Mapping[str, Any], axes: tuple[str, ...]
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the names of the arrays and the names of the channels."""
    fields = description["fields"]
    if "channel" in axes:
        channels = description.get("channels")
        if not isinstance(fields, str) or not isinstance(channels, list) or not channels:
            raise DataError(
                f"{file_name}: with a `channel` axis, set `fields` to one array and list the names of its channels in "
                "`channels`"
            )
        return (fields,), tuple(map(str, channels))
    if isinstance(fields, str):
        fields = {fields.rsplit("/", 1)[-1]: fields}
    if not isinstance(fields, dict) or not fields or "channels" in description:
        raise DataError(
            f"{file_name}: without a `channel` axis, set `fields` to `channel: array` pairs and remove the key "
            "`channels`"
        )
    return tuple(map(str, fields.values())), tuple(map(str, fields))


def _axis_sizes(file_name: str, file: ArrayFile, arrays: tuple[str, ...], axes: tuple[str, ...]) -> dict[str, int]:
    """Return the length of each axis, after a check that all arrays have one shape and floating-point numbers."""
    shape = file.shape(arrays[0])
    for array in arrays:
        if file.shape(array) != shape:
            raise DataError(
                f"{file_name}: `{array}` has shape {file.shape(array)}, but `{arrays[0]}` has {shape}; "
                "give arrays of one shape"
            )
        if file.dtype_kind(array) != "f":
            raise DataError(f"{file_name}: `{array}` does not contain floating-point numbers; store it as float32")
    if len(shape) != len(axes):
        raise DataError(
            f"{file_name}: `{arrays[0]}` has shape {shape}, but key `axes` names {len(axes)} axes: {', '.join(axes)}"
        )
    return dict(zip(axes, shape, strict=True))


def _parse_grid(file_name: str, description: Mapping[str, Any], file: ArrayFile, sizes: Mapping[str, int]) -> Grid:
    axes = [axis for axis in AXES if axis in sizes]
    for axis in AXES:
        if axis in axes and axis not in description:
            raise DataError(f"{file_name}: key `{axis}` is missing; give [start, step] of the axis, or its array")
        if axis in description and axis not in axes:
            raise DataError(
                f"{file_name}: key `{axis}` describes an axis that `axes` does not list; remove it or list it"
            )
    lines = [_parse_axis(file_name, axis, description[axis], file, sizes[axis]) for axis in axes]
    start, dt = _parse_axis(file_name, "time", description["time"], file, sizes["time"])
    return Grid(
        shape=tuple(sizes[axis] for axis in axes),
        origin=tuple(first for first, _ in lines),
        spacing=tuple(step for _, step in lines),
        start=start,
        dt=dt,
    )


def _parse_axis(file_name: str, axis: str, value: Any, file: ArrayFile, points: int) -> tuple[float, float]:
    """Return start and step of an axis, from `value` itself or from the array that it names."""
    if isinstance(value, str):
        values = np.asarray(file.read(value, ()))
        if values.ndim != 1 or len(values) not in (points, points + (axis == "time")) or values.dtype.kind != "f":
            raise DataError(
                f"{file_name}: `{value}` has shape {values.shape} and type {values.dtype}; as axis {axis} it must have "
                f"{points} floating-point numbers"
            )
        return uniform_spacing(
            values[:points], f"{file_name}: `{value}`", "give evenly spaced times and a uniform grid"
        )
    try:
        start, step = (float(item) for item in value)
    except (TypeError, ValueError, OverflowError):
        raise DataError(
            f"{file_name}: key `{axis}` is {value}; give [start, step], or the name of an array of coordinates"
        ) from None
    if not (np.isfinite([start, step]).all() and step > 0):
        raise DataError(f"{file_name}: key `{axis}` is {value}; start and step must be finite and the step positive")
    return start, step


def _parse_coefficients(
    file_name: str, description: Mapping[str, Any], file: ArrayFile, trajectories: int
) -> dict[str, Float[np.ndarray, " n"]]:
    coefficients = {}
    entries = description.get("coefficients") or {}
    if not isinstance(entries, dict):
        raise DataError(f"{file_name}: key `coefficients` must be `name: array` or `name: number` pairs")
    for key, value in entries.items():
        try:
            values = np.asarray(float(value))
        except (TypeError, ValueError, OverflowError):
            values = np.asarray(file.read(str(value), ()))
            if values.dtype.kind not in "fiu":
                raise DataError(f"{file_name}: coefficient {key}: the array `{value}` contains no numbers") from None
        if values.shape not in ((), (trajectories,)):
            raise DataError(
                f"{file_name}: coefficient {key} has shape {values.shape}; it must be ({trajectories},), one number "
                "for each trajectory"
            )
        coefficients[str(key)] = np.broadcast_to(values.astype(np.float64), (trajectories,))
    return coefficients
