"""The protocol of all data sources, and helpers that they share: coordinate checks, channel selection, windows."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, Float32, Int

from ups_jax.core.errors import DataError

AXES = ("x", "y", "z")


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


def all_coefficients(source: Source) -> dict[str, Float[np.ndarray, " n"]]:
    """Return all coefficients and constants of a source by name, with one value for each trajectory."""
    constants: dict[str, float] = getattr(source, "constants", dict)()
    values = {name: source.coefficient(name) for name in (*source.coefficient_names(), *constants)}
    return {name: value for name, value in values.items() if value is not None}


def start_and_step(values: Float[np.ndarray, " n"], label: str, hint: str) -> tuple[float, float]:
    """Return the first value and the step of coordinates or times.

    Raises `DataError` unless these are at least two finite, ascending and evenly spaced values. The message begins with
    `label`, the file and dataset, and ends with `hint`, which says how to fix the file.
    """
    if len(values) < 2:
        raise DataError(f"{label}: has {len(values)} entries; give at least 2")
    if not np.isfinite(values).all():
        raise DataError(f"{label}: contains NaN or Inf; {hint}")
    exact = values.astype(np.float64)
    step = (exact[-1] - exact[0]) / (len(exact) - 1)
    deviation = np.abs(np.diff(exact) - step)
    # Coordinates far from 0 in float32 are uneven because of their own rounding.
    rounding = 4 * np.finfo(values.dtype).eps * np.abs(exact).max()
    if step <= 0 or deviation.max() > 1e-3 * step + rounding:
        index = int(deviation.argmax())
        raise DataError(
            f"{label}: is not evenly spaced and ascending (step {exact[index + 1] - exact[index]:.6g} after entry "
            f"{index}, {step:.6g} on average); {hint}"
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


def read_trajectories(source: Source, ids: Int[np.ndarray, " n"], stride: int = 1) -> Float32[np.ndarray, "n t *s c"]:
    """Return every `stride`-th frame of the trajectories `ids`, beginning with the first frame."""
    frames = np.arange(0, source.frames, stride)
    return source.read(ids, np.broadcast_to(frames, (len(ids), len(frames))))


def select_channels(file_name: str, available: Sequence[str], requested: Sequence[str] | None) -> tuple[str, ...]:
    """Return the names of the `requested` channels as spelt in the file, or of all channels if `requested` is None.

    Letter case is ignored. Raises `DataError` if there are no channels, or if a requested one is missing or repeated.
    """
    if not available:
        raise DataError(f"{file_name}: contains no fields that change in time; give another file")
    if requested is None:
        return tuple(available)
    if not requested or len(set(map(str.lower, requested))) < len(requested):
        raise DataError(
            f"{file_name}: `channels` is empty or repeats a name ({', '.join(requested) or 'none'}); list each "
            "channel once"
        )
    spelling = {name.lower(): name for name in available}
    for name in requested:
        if name.lower() not in spelling:
            matches = difflib.get_close_matches(name.lower(), spelling, n=1, cutoff=0.6)
            suggestion = f" (did you mean {spelling[matches[0]]!r}?)" if matches else ""
            raise DataError(
                f"{file_name}: has no channel {name!r}{suggestion}; list in `channels` only channels of the file: "
                f"{', '.join(available)}"
            )
    return tuple(spelling[name.lower()] for name in requested)
