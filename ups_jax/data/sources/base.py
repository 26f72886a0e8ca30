"""The protocol of all data sources, and helpers that they share: coordinate checks, channel selection, windows."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, Float32, Float64, Int

from ups_jax.core.errors import DataError

AXES = ("x", "y", "z")
# Coordinates are refused if their rounding may change the mean step by more than this fraction.
_MOST_ROUNDING = 1e-2


@dataclass(frozen=True, kw_only=True)
class Grid:
    """The uniform grid and the frame times of a source, in physical units.

    Attributes:
        shape: Number of points along each space axis.
        origin: Coordinates of the first point.
        spacing: Distance between neighbouring points along each axis.
        start: Time of the first frame.
        dt: Time between two frames.
    """

    shape: tuple[int, ...]
    origin: tuple[float, ...]
    spacing: tuple[float, ...]
    start: float
    dt: float

    @property
    def axes(self) -> tuple[str, ...]:
        """Names of the space axes: `("x",)`, `("x", "y")` or `("x", "y", "z")`."""
        return AXES[: len(self.shape)]


@runtime_checkable
class Source(Protocol):
    """Trajectories on one grid, read window by window from a file or from memory."""

    @property
    def name(self) -> str:
        """Name of the source in messages: the path of its file."""
        ...

    @property
    def trajectories(self) -> int:
        """Number of trajectories."""
        ...

    @property
    def frames(self) -> int:
        """Number of frames in each trajectory."""
        ...

    @property
    def channels(self) -> int:
        """Number of channels."""
        ...

    @property
    def channel_names(self) -> tuple[str, ...]:
        """Names of the channels in the file; empty if the file does not name them."""
        ...

    @property
    def input_channels(self) -> tuple[str, ...]:
        """Names of the input fields of a steady task, such as a permeability; empty if there are none."""
        ...

    @property
    def grid(self) -> Grid:
        """Grid and frame times, shared by all trajectories."""
        ...

    def read(self, ids: Int[np.ndarray, " b"], frames: Int[np.ndarray, "b t"]) -> Float32[np.ndarray, "b t *s c"]:
        """Return windows, each of which consists of some frames of one trajectory.

        Args:
            ids: Index of the trajectory of each window.
            frames: Frame indices of each window, evenly spaced and ascending.
        """
        ...

    def read_input_fields(self, ids: Int[np.ndarray, " b"]) -> Float32[np.ndarray, "b *s i"]:
        """Return the input fields of the trajectories `ids`, ordered as `input_channels`."""
        ...

    def coefficient(self, name: str) -> Float[np.ndarray, " n"] | None:
        """Return a coefficient's values for all trajectories, NaN where unknown, or None if the source lacks it."""
        ...

    def coefficient_names(self) -> tuple[str, ...]:
        """Return the names of the numbers in the source that are probably PDE coefficients."""
        ...

    @property
    def notes(self) -> tuple[str, ...]:
        """Messages for the user about how the source is read and what is left out, each beginning with its file."""
        ...


@dataclass(frozen=True, eq=False)
class WrappedSource:
    """A base class of sources that read another source and change its grid or its fields.

    Attributes:
        source: The source that is read.
    """

    source: Source

    @property
    def name(self) -> str:
        """Name of the source in messages."""
        return self.source.name

    @property
    def trajectories(self) -> int:
        """Number of trajectories."""
        return self.source.trajectories

    @property
    def frames(self) -> int:
        """Number of frames in each trajectory."""
        return self.source.frames

    @property
    def channels(self) -> int:
        """Number of channels."""
        return self.source.channels

    @property
    def channel_names(self) -> tuple[str, ...]:
        """Names of the channels."""
        return self.source.channel_names

    @property
    def input_channels(self) -> tuple[str, ...]:
        """Names of the input fields."""
        return self.source.input_channels

    @property
    def grid(self) -> Grid:
        """Grid and frame times."""
        return self.source.grid

    @property
    def notes(self) -> tuple[str, ...]:
        """Messages for the user."""
        return self.source.notes

    @property
    def boundary(self) -> dict[str, str]:
        """Kind of boundary of each axis by its name, as far as known."""
        return getattr(self.source, "boundary", {})

    def read(self, ids: Int[np.ndarray, " b"], frames: Int[np.ndarray, "b t"]) -> Float32[np.ndarray, "b t *s c"]:
        """Return the frames `frames[i]` of trajectory `ids[i]` for each window i."""
        return self.source.read(ids, frames)

    def read_input_fields(self, ids: Int[np.ndarray, " b"]) -> Float32[np.ndarray, "b *s i"]:
        """Return the input fields of the trajectories `ids`."""
        return self.source.read_input_fields(ids)

    def coefficient(self, name: str) -> Float[np.ndarray, " n"] | None:
        """Return the values of a coefficient for all trajectories, or None if the source lacks it."""
        return self.source.coefficient(name)

    def coefficient_names(self) -> tuple[str, ...]:
        """Return the names of the coefficients."""
        return self.source.coefficient_names()

    def constants(self) -> dict[str, float]:
        """Return the numbers that all trajectories share, such as solver settings, by name."""
        return getattr(self.source, "constants", dict)()


def innermost_source(source: Source) -> Source:
    """Return the source of a file that a `WrappedSource` reads, or any other source itself."""
    while isinstance(source, WrappedSource):
        source = source.source
    return source


class AscendingSource(WrappedSource):
    """A source whose descending space axes are flipped, so that all coordinates ascend."""

    @property
    def grid(self) -> Grid:
        """The grid of the source, with ascending axes."""
        grid = self.source.grid
        lines = list(zip(grid.origin, grid.spacing, grid.shape, strict=True))
        return replace(
            grid,
            origin=tuple(first + step * (points - 1) if step < 0 else first for first, step, points in lines),
            spacing=tuple(map(abs, grid.spacing)),
        )

    @property
    def notes(self) -> tuple[str, ...]:
        """Messages for the user, the last of which names the flipped axes."""
        axes = [axis for axis, step in zip(self.source.grid.axes, self.source.grid.spacing, strict=True) if step < 0]
        subject = f"axis {axes[0]} is" if len(axes) == 1 else f"axes {' and '.join(axes)} are"
        return (
            *self.source.notes,
            f"{self.name}: {subject} stored descending; the fields are flipped, so that coordinates ascend",
        )

    def read(self, ids: Int[np.ndarray, " b"], frames: Int[np.ndarray, "b t"]) -> Float32[np.ndarray, "b t *s c"]:
        """Return the frames `frames[i]` of trajectory `ids[i]` for each window i, with ascending axes."""
        return self._flip(self.source.read(ids, frames), 2)

    def read_input_fields(self, ids: Int[np.ndarray, " b"]) -> Float32[np.ndarray, "b *s i"]:
        """Return the input fields of the trajectories `ids`, with ascending axes."""
        return self._flip(self.source.read_input_fields(ids), 1)

    def _flip(self, values: Float32[np.ndarray, "..."], first_axis: int) -> Float32[np.ndarray, "..."]:
        """Return an array with its descending space axes flipped; the first space axis is the array's `first_axis`."""
        axes = tuple(first_axis + axis for axis, step in enumerate(self.source.grid.spacing) if step < 0)
        return np.ascontiguousarray(np.flip(values, axes))


def all_coefficients(source: Source) -> dict[str, Float[np.ndarray, " n"]]:
    """Return all coefficients and constants of a source by name, with one value for each trajectory."""
    constants: dict[str, float] = getattr(source, "constants", dict)()
    values = {name: source.coefficient(name) for name in (*source.coefficient_names(), *constants)}
    return {name: value for name, value in values.items() if value is not None}


def start_and_step(values: Float[np.ndarray, " n"], label: str, hint: str) -> tuple[float, float]:
    """Return the first value and the step of times.

    Raises `DataError` unless these are at least two finite, ascending and evenly spaced values. The message begins with
    `label`, the file and dataset, and ends with `hint`, which says how to fix the file.
    """
    if len(values) < 2:
        raise DataError(f"{label}: the number of frames is {len(values)}; give trajectories of at least 2 frames")
    start, step = origin_and_spacing(values, label, hint)
    if step < 0:
        raise DataError(f"{label}: descends (step {step:.6g}); write the frames in the order of their times")
    return start, step


def origin_and_spacing(values: Float[np.ndarray, " n"], label: str, hint: str) -> tuple[float, float]:
    """Return the first value and the step of coordinates. The step is negative if they descend.

    Raises `DataError` as `start_and_step` does, except for descending values.
    """
    if len(values) < 2:
        raise DataError(f"{label}: the number of points is {len(values)}; leave out the axis, or give at least 2")
    if not np.isfinite(values).all():
        raise DataError(f"{label}: contains NaN or Inf; {hint}")
    exact = values.astype(np.float64)
    extent = exact[-1] - exact[0]
    step = extent / (len(exact) - 1)
    deviation = np.abs(np.diff(exact) - step)
    # Coordinates far from 0 in float32 are uneven because of their own rounding.
    precision = np.finfo(values.dtype).eps * np.abs(exact).max()
    if 0 < _MOST_ROUNDING * abs(extent) < precision:
        raise DataError(
            f"{label}: is rounded to {values.dtype}, which near {exact[0]:.6g} is too coarse for steps of about "
            f"{abs(step):.3g}; store it as float64, or subtract its first value before rounding"
        )
    rounding = 4 * precision
    if step == 0 or deviation.max() > 1e-3 * abs(step) + rounding:
        index = int(deviation.argmax())
        raise DataError(
            f"{label}: is not evenly spaced (step {exact[index + 1] - exact[index]:.6g} after entry {index}, "
            f"{step:.6g} on average); {hint}"
        )
    if values.dtype == np.float64:
        return float(exact[0]), float(step)
    # Round to the digits of float32: 0.05 stored as float32 reads as 0.05000000074.
    return float(f"{exact[0]:.7g}"), float(f"{step:.7g}")


def same_coordinates(values: Float[np.ndarray, "*a m"], expected: Float[np.ndarray, " n"]) -> bool:
    """Return whether coordinates or times equal the `expected` ones, in any unit.

    Differences of up to 1e-3 of the mean step, or 1e-5 of the distance between the first and the last value, count as
    rounding, and so do a few units in the last digit of numbers far from 0.
    """
    if values.shape[-1] != len(expected):
        return False
    if not (len(expected) and np.isfinite(expected).all()):
        return np.array_equal(values, np.broadcast_to(expected, values.shape), equal_nan=True)
    exact = expected.astype(np.float64)
    extent = np.abs(exact[-1] - exact[0])
    precision = max(np.finfo(item.dtype).eps if item.dtype.kind == "f" else 0.0 for item in (values, expected))
    tolerance = 1e-3 * extent / max(1, len(exact) - 1) + 1e-5 * extent + 4 * precision * np.abs(exact).max()
    return bool((np.abs(values.astype(np.float64) - exact) <= tolerance).all())


def coordinate_line(values: np.ndarray, label: str) -> Float[np.ndarray, " n"]:
    """Return coordinates or times, stored as any numbers or dates, as one line of floating-point numbers.

    Dates become seconds from the first one. Axes of length 1 are left out, since MATLAB stores a line as a row or a
    column. Of an array with several axes, such as (N, n) with a line for each trajectory, or the coordinates of a mesh
    grid, the line along the only axis is returned along which the values differ.

    Raises:
        DataError: The values are no numbers, or differ along several axes. The message begins with `label`.
    """
    values = np.atleast_1d(values)
    if values.dtype.kind == "M":
        values = values.astype("datetime64[us]")
        values = (values - values.ravel()[:1]) / np.timedelta64(1, "s")
    elif values.dtype.kind == "m":
        values = values.astype("timedelta64[us]") / np.timedelta64(1, "s")
    elif values.dtype.kind in "iu":
        values = values.astype(np.float64)
    elif values.dtype.kind != "f":
        raise DataError(f"{label} contains {values.dtype}; store the coordinates as numbers")
    if values.ndim < 2 or not values.size:
        return values
    values = values.reshape([points for points in values.shape if points != 1] or [1])
    for axis in reversed(range(values.ndim)):
        lines = np.moveaxis(values, axis, -1)
        line: Float[np.ndarray, " n"] = lines[(0,) * (values.ndim - 1)]
        if values.ndim == 1 or (line[0] != line[-1] and same_coordinates(lines, line)):
            return line
    raise DataError(
        f"{label} differs between trajectories, or along several axes (shape {values.shape}); give the same times "
        "and the same uniform grid for all trajectories"
    )


def per_trajectory(values: np.ndarray, trajectories: int) -> Float64[np.ndarray, " n"] | None:
    """Return a coefficient that is stored as one number, or with one number for each trajectory, as an array (N,).

    Axes of length 1 are left out. Return None for any other shape.
    """
    longer_axes = tuple(points for points in values.shape if points != 1)
    if longer_axes not in ((), (trajectories,)):
        return None
    return np.broadcast_to(values.reshape(longer_axes).astype(np.float64), (trajectories,))


def check_float(label: str, dtype: np.dtype, hint: str = "") -> None:
    """Raise `DataError` if an array does not contain real floating-point numbers.

    Args:
        label: File and name of the array, with which the message begins.
        dtype: Data type of the array.
        hint: How to fix the file, if the array contains no numbers.
    """
    if dtype.kind != "f":
        remedy = hint or "store numbers as float32"
        if dtype.kind in "iub":
            remedy = "store it as float32"
        # MATLAB stores complex numbers as a structure of these two.
        elif dtype.kind == "c" or set(dtype.names or ()) == {"real", "imag"}:
            remedy = "store the real and the imaginary part as two channels"
        raise DataError(f"{label} contains {dtype}, not floating-point numbers; {remedy}")


def match_name(label: str, name: str, available: Iterable[str]) -> str | None:
    """Return `name` as it is spelt in `available`, or None if it is missing there.

    An exact match is preferred; without one, letter case is ignored. Raises `DataError` if several names then match;
    the message begins with `label`.
    """
    names = tuple(available)
    if name in names:
        return name
    matches = [item for item in names if item.lower() == name.lower()]
    if len(matches) > 1:
        raise DataError(f"{label}: has {' and '.join(map(repr, matches))}, but no {name!r}; write one of these names")
    return matches[0] if matches else None


class WindowSlice(NamedTuple):
    """The row of a window in a batch, the index of its trajectory, and its evenly spaced frames."""

    row: int
    trajectory: int
    frames: slice


def iterate_windows(ids: Int[np.ndarray, " b"], frames: Int[np.ndarray, "b t"]) -> Iterator[WindowSlice]:
    """Yield for each window where to read it in the source and where to store it in the batch."""
    for row, (index, times) in enumerate(zip(ids.tolist(), frames.tolist(), strict=True)):
        step = times[1] - times[0] if len(times) > 1 else 1
        yield WindowSlice(row, index, slice(times[0], times[-1] + 1, step))


def frame_counts(source: Source) -> Int[np.ndarray, " n"]:
    """Return the number of frames of each trajectory, which differs only between the files of a concatenated source."""
    counts: Int[np.ndarray, " n"] | None = getattr(source, "frame_counts", None)
    return np.full(source.trajectories, source.frames) if counts is None else counts


def read_trajectories(source: Source, ids: Int[np.ndarray, " n"], stride: int = 1) -> Float32[np.ndarray, "n t *s c"]:
    """Return every `stride`-th frame of the trajectories `ids`, beginning with the first frame.

    Raises:
        ValueError: The trajectories have different numbers of frames.
    """
    counts = np.unique(frame_counts(source)[ids])
    if len(counts) > 1:
        raise ValueError(f"{source.name}: the trajectories have {counts.tolist()} frames")
    frames = np.arange(0, int(counts[0]) if len(counts) else source.frames, stride)
    # Values beyond the range of float32 become Inf, which the checks of the data report.
    with np.errstate(over="ignore"):
        return source.read(ids, np.broadcast_to(frames, (len(ids), len(frames))))


def select_channels(file_name: str, available: Sequence[str], requested: Sequence[str] | None) -> tuple[str, ...]:
    """Return the names of the `requested` channels as spelt in the file, or of all channels if `requested` is None.

    Names are matched as in `match_name`. Raises `DataError` if there are no channels, or if a requested one is missing,
    repeated or ambiguous.
    """
    if not available:
        raise DataError(f"{file_name}: contains no fields that change in time; give another file")
    if requested is None:
        return tuple(available)
    selected = []
    for name in requested:
        match = match_name(file_name, name, available)
        if match is None:
            spelling = {item.lower(): item for item in available}
            similar = difflib.get_close_matches(name.lower(), spelling, n=1, cutoff=0.6)
            suggestion = f" (did you mean {spelling[similar[0]]!r}?)" if similar else ""
            raise DataError(
                f"{file_name}: has no channel {name!r}{suggestion}; list in `channels` only channels of the file: "
                f"{', '.join(available)}"
            )
        selected.append(match)
    if not selected or len(set(selected)) < len(selected):
        raise DataError(
            f"{file_name}: `channels` is empty or repeats a name ({', '.join(requested) or 'none'}); list each "
            "channel once"
        )
    return tuple(selected)
