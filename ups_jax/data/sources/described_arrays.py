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
from ups_jax.data.sources.base import AXES, Grid, iterate_windows, select_channels, start_and_step

_KEYS = ("file", "fields", "axes", "time", *AXES, "coefficients", "channels")
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
        self._axes = _parse_axes(self.name, description)
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
        """Return a coefficient's values for all trajectories, or None if it is missing; letter case is ignored."""
        return {key.lower(): value for key, value in self._coefficients.items()}.get(name.lower())

    def coefficient_names(self) -> tuple[str, ...]:
        """Return the names that the description lists under the key `coefficients`."""
        return tuple(self._coefficients)


def array_path(path: Path, description: Mapping[str, Any]) -> Path:
    """Return the path of the array file that a description, read from the YAML file `path`, names.

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
    for key in description:
        if key not in _KEYS:
            raise DataError(f"{path}: unknown key `{key}`; use the keys {', '.join(_KEYS)}")
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
            f"{file_name}: key `axes` is {description['axes']}; list the axes of the arrays in their order: "
            "trajectory, time, x (and y, z), and channel if there is a channel axis"
        )
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
        if file.dtype_kind(name) != "f":
            raise DataError(f"{file_name}: `{name}` does not contain floating-point numbers; store it as float32")
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
    lines = [_parse_start_and_step(file_name, axis, description[axis], file, sizes[axis]) for axis in axes]
    start, dt = _parse_start_and_step(file_name, "time", description["time"], file, sizes["time"])
    return Grid(
        shape=tuple(sizes[axis] for axis in axes),
        origin=tuple(first for first, _ in lines),
        spacing=tuple(step for _, step in lines),
        start=start,
        dt=dt,
    )


def _parse_start_and_step(file_name: str, axis: str, value: Any, file: ArrayFile, size: int) -> tuple[float, float]:
    """Return the start and step of an axis. `value` is [start, step], or the name of an array of coordinates."""
    if isinstance(value, str):
        values = np.asarray(file.read(value, ()))
        if values.ndim != 1 or len(values) not in (size, size + (axis == "time")) or values.dtype.kind != "f":
            raise DataError(
                f"{file_name}: `{value}` has shape {values.shape} and type {values.dtype}; give {size} floating-point "
                f"numbers for the axis {axis}"
            )
        return start_and_step(values[:size], f"{file_name}: `{value}`", "give evenly spaced times and a uniform grid")
    try:
        start, step = (float(item) for item in value)
    except (TypeError, ValueError, OverflowError):
        raise DataError(f"{file_name}: key `{axis}` is {value}; {_AXIS_HINT}") from None
    if not (np.isfinite([start, step]).all() and step > 0):
        raise DataError(f"{file_name}: key `{axis}` is {value}; give a finite start and a finite, positive step")
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
            if values.dtype.kind not in "fiu":
                raise DataError(
                    f"{file_name}: the array `{value}` of coefficient `{key}` must contain numbers"
                ) from None
        if values.shape not in ((), (trajectories,)):
            raise DataError(
                f"{file_name}: coefficient `{key}` has shape {values.shape}; give shape ({trajectories},), one number "
                "for each trajectory"
            )
        coefficients[str(key)] = np.broadcast_to(values.astype(np.float64), (trajectories,))
    return coefficients
