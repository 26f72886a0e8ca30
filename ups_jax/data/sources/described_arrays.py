"""Arrays of any layout, as a few lines of YAML describe them: what a user writes for a file of their own.

file: mine.npz                              # or .npy, or .hdf5; in the folder of this file, or below
fields: {u: velocity, p: flow/pressure}     # channel: array; or one array, of which `axes` names the channels
axes: [trajectory, time, x, y]              # of each array, in its order
time: [0, 0.05]                             # start and step, or the array with the times
x: [0, 0.01]                                # the same for every axis of space
coefficients: {nu: viscosity, rho: 1.2}     # an array with one number a trajectory, or the number
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Float32, Int

from ups_jax.config import yaml
from ups_jax.core.errors import DataError
from ups_jax.core.files import inside
from ups_jax.data.sources.arrays import ArrayFile, open_arrays
from ups_jax.data.sources.base import AXES, Grid, selected, uniform, windows_of

_KEYS = ("file", "fields", "axes", "time", *AXES, "coefficients", "channels")


class DescribedSource:
    """The arrays of a description, read window by window. Raises `DataError` naming file and key for any defect."""

    input_channels: tuple[str, ...] = ()

    def __init__(self, path: str | Path, names: tuple[str, ...] | None = None) -> None:
        self.name = str(path)
        self.path = Path(path)
        said = _read(self.path)
        self._file = open_arrays(file_of(self.path, said))
        self._axes = _axes(self.name, said)
        self._fields, found = _fields(self.name, said, self._axes)
        self.channel_names = selected(self.name, found, names)
        sizes = _sizes(self.name, self._file, self._fields, self._axes)
        self.trajectories, self.frames = sizes["trajectory"], sizes["time"]
        self.channels = len(self.channel_names)
        self._found = found
        if "channel" in sizes and sizes["channel"] != len(found):
            raise DataError(f"{path}: key `channels` names {len(found)}, the array has {sizes['channel']}")
        self.grid = _grid(self.name, said, self._file, sizes)
        self._coefficients = _coefficients(self.name, said, self._file, self.trajectories)

    def windows(self, ids: Int[np.ndarray, " b"], frames: Int[np.ndarray, "b t"]) -> Float32[np.ndarray, "b t *s c"]:
        """The given frames of the given trajectories; frames are evenly spaced."""
        result = np.empty((*frames.shape, *self.grid.shape, self.channels), np.float32)
        order = [axis for axis in ("time", *self.grid.axes, "channel") if axis in self._axes]
        kept = [axis for axis in self._axes if axis != "trajectory"]
        places = [kept.index(axis) for axis in order]
        for row, index, times in windows_of(ids, frames):
            at: dict[str, int | slice] = {"trajectory": index, "time": times}
            key = tuple(at.get(axis, slice(None)) for axis in self._axes)
            if "channel" in self._axes:
                whole = self._file.read(self._fields[0], key).transpose(places)
                result[row] = whole[..., [self._found.index(name) for name in self.channel_names]]
            else:
                for place, name in enumerate(self.channel_names):
                    array = self._fields[self._found.index(name)]
                    result[row, ..., place] = self._file.read(array, key).transpose(places)
        return result

    def inputs(self, ids: Int[np.ndarray, " b"]) -> Float32[np.ndarray, "b *s i"]:
        """None: the width is 0."""
        return np.empty((len(ids), *self.grid.shape, 0), np.float32)

    def coefficient(self, name: str) -> Float[np.ndarray, " n"] | None:
        """The described one of that name, in any case of letters."""
        return {key.lower(): value for key, value in self._coefficients.items()}.get(name.lower())

    def found_coefficients(self) -> tuple[str, ...]:
        """Names of those that are described."""
        return tuple(self._coefficients)


def file_of(path: Path, said: Mapping[str, Any]) -> Path:
    """The file with the arrays, of what a description says. Raises `DataError` for one that is not in its folder."""
    return inside(path, "file", said["file"], DataError)


def _read(path: Path) -> Mapping[str, Any]:
    try:
        said = yaml.parse(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(f"{path}: there is no such file; write the description of your arrays there") from None
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read as YAML ({' '.join(str(error).split())}); correct it") from None
    if not isinstance(said, dict):
        raise DataError(f"{path}: is no description; write the keys {', '.join(_KEYS)}")
    for key in said:
        if key not in _KEYS:
            raise DataError(f"{path}: key `{key}` is none of {', '.join(_KEYS)}")
    for key in ("file", "fields", "axes", "time"):
        if key not in said:
            raise DataError(f"{path}: has no key `{key}`; add it")
    return said


def _axes(name: str, said: Mapping[str, Any]) -> tuple[str, ...]:
    axes = tuple(map(str, said["axes"])) if isinstance(said["axes"], list) else ()
    known = ("trajectory", "time", *AXES, "channel")
    space = [axis for axis in AXES if axis in axes]
    whole = {"trajectory", "time", "x"} <= set(axes) and space == list(AXES[: len(space)])
    if len(set(axes)) != len(axes) or not set(axes) <= set(known) or not whole:
        raise DataError(
            f"{name}: key `axes` is {said['axes']}; list trajectory, time, x (y, z), and channel where the array has "
            "such an axis, in the order of the array"
        )
    return axes


def _fields(name: str, said: Mapping[str, Any], axes: tuple[str, ...]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Names of the arrays, and of the channels."""
    fields = said["fields"]
    if "channel" in axes:
        channels = said.get("channels")
        if not isinstance(fields, str) or not isinstance(channels, list) or not channels:
            raise DataError(f"{name}: with an axis `channel`, `fields` is one array and `channels` lists their names")
        return (fields,), tuple(map(str, channels))
    if isinstance(fields, str):
        fields = {fields.rsplit("/", 1)[-1]: fields}
    if not isinstance(fields, dict) or not fields or "channels" in said:
        raise DataError(f"{name}: key `fields` is channel: array, for each channel; `channels` goes with that axis")
    return tuple(map(str, fields.values())), tuple(map(str, fields))


def _sizes(name: str, file: ArrayFile, fields: tuple[str, ...], axes: tuple[str, ...]) -> dict[str, int]:
    shape = file.shape(fields[0])
    for field in fields:
        if file.shape(field) != shape:
            raise DataError(
                f"{name}: `{field}` has shape {file.shape(field)}, `{fields[0]}` has {shape}; give arrays of one shape"
            )
        if file.kind(field) != "f":
            raise DataError(f"{name}: `{field}` does not hold floating-point numbers; store it as float32")
    if len(shape) != len(axes):
        raise DataError(f"{name}: `{fields[0]}` has shape {shape}, key `axes` names {len(axes)}: {', '.join(axes)}")
    return dict(zip(axes, shape, strict=True))


def _grid(name: str, said: Mapping[str, Any], file: ArrayFile, sizes: Mapping[str, int]) -> Grid:
    axes = [axis for axis in AXES if axis in sizes]
    for axis in AXES:
        if (axis in said) != (axis in axes):
            raise DataError(f"{name}: key `{axis}` must be there exactly if `axes` names {axis}: its start and step")
    ends = [_line(name, axis, said[axis], file, sizes[axis]) for axis in axes]
    start, dt = _line(name, "time", said["time"], file, sizes["time"])
    return Grid(
        shape=tuple(sizes[axis] for axis in axes),
        origin=tuple(first for first, _ in ends),
        spacing=tuple(step for _, step in ends),
        start=start,
        dt=dt,
    )


def _line(name: str, axis: str, value: Any, file: ArrayFile, points: int) -> tuple[float, float]:
    """Start and step of an axis, as written or of an array."""
    if isinstance(value, str):
        values = np.asarray(file.read(value, ()))
        if values.ndim != 1 or len(values) not in (points, points + (axis == "time")) or values.dtype.kind != "f":
            raise DataError(f"{name}: `{value}` has shape {values.shape}, as axis {axis} it must have {points} numbers")
        return uniform(values[:points], f"{name}: `{value}`", "give arrays on even times and a uniform grid")
    try:
        start, step = (float(item) for item in value)
    except (TypeError, ValueError, OverflowError):
        raise DataError(f"{name}: key `{axis}` is {value}; give [start, step], or the array of coordinates") from None
    if not (np.isfinite([start, step]).all() and step > 0):
        raise DataError(f"{name}: key `{axis}` is {value}; the step must be a positive number")
    return start, step


def _coefficients(
    name: str, said: Mapping[str, Any], file: ArrayFile, trajectories: int
) -> dict[str, Float[np.ndarray, " n"]]:
    found = {}
    given = said.get("coefficients") or {}
    if not isinstance(given, dict):
        raise DataError(f"{name}: key `coefficients` is name: array, or name: number, for each of them")
    for key, value in given.items():
        try:
            values = np.asarray(float(value))
        except (TypeError, ValueError, OverflowError):
            values = np.asarray(file.read(str(value), ()))
            if values.dtype.kind not in "fiu":
                raise DataError(f"{name}: coefficient {key} is `{value}`, which holds no numbers") from None
        if values.shape not in ((), (trajectories,)):
            raise DataError(f"{name}: coefficient {key} has shape {values.shape}, it must be ({trajectories},)")
        found[str(key)] = np.broadcast_to(values.astype(np.float64), (trajectories,))
    return found
