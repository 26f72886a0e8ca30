"""What every source offers, and what all of them share: checks of coordinates and channels, windows of frames."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, Float32, Int

from ups_jax.core.errors import DataError

AXES = ("x", "y", "z")


@dataclass(frozen=True, kw_only=True)
class Grid:
    """Uniform grid and frame times of a source, in physical units."""

    shape: tuple[int, ...]
    origin: tuple[float, ...]
    spacing: tuple[float, ...]
    start: float
    dt: float

    @property
    def axes(self) -> tuple[str, ...]:
        """Names of the space axes."""
        return AXES[: len(self.shape)]


@runtime_checkable
class Source(Protocol):
    """Trajectories of one grid. Windows are read by trajectory and frame; nothing else is loaded."""

    @property
    def name(self) -> str:
        """What messages call it: the path of a file."""
        ...

    @property
    def trajectories(self) -> int:
        """Number of trajectories."""
        ...

    @property
    def frames(self) -> int:
        """Frames in a trajectory."""
        ...

    @property
    def channels(self) -> int:
        """Number of channels."""
        ...

    @property
    def channel_names(self) -> tuple[str, ...]:
        """Names of the channels as the file has them; none where it has no names for them."""
        ...

    @property
    def input_channels(self) -> tuple[str, ...]:
        """Names of the given fields that a steady solution belongs to; none of a trajectory."""
        ...

    @property
    def grid(self) -> Grid:
        """Grid and times."""
        ...

    def windows(self, ids: Int[np.ndarray, " b"], frames: Int[np.ndarray, "b t"]) -> Float32[np.ndarray, "b t *s c"]:
        """The given frames of the given trajectories."""
        ...

    def inputs(self, ids: Int[np.ndarray, " b"]) -> Float32[np.ndarray, "b *s i"]:
        """The given fields of the given solutions, one channel for each of `input_channels`."""
        ...

    def coefficient(self, name: str) -> Float[np.ndarray, " n"] | None:
        """A value for each trajectory (NaN where it is unknown), or None if the source does not know it at all."""
        ...

    def found_coefficients(self) -> tuple[str, ...]:
        """Names of the coefficients that the source seems to hold."""
        ...


def all_coefficients(source: Source) -> dict[str, Float[np.ndarray, " n"]]:
    """The coefficients that a source seems to hold, and the numbers that all of its trajectories share, by name."""
    constants: dict[str, float] = getattr(source, "constants", dict)()
    found = {name: source.coefficient(name) for name in (*source.found_coefficients(), *constants)}
    return {name: values for name, values in found.items() if values is not None}


def uniform(values: Float[np.ndarray, " n"], what: str, mend: str) -> tuple[float, float]:
    """First value and spacing of evenly spaced coordinates. `what` names file and dataset in the `DataError`."""
    if len(values) < 2:
        raise DataError(f"{what}: has {len(values)} entries, 2 are the least")
    if not np.isfinite(values).all():
        raise DataError(f"{what}: holds NaN or Inf; {mend}")
    exact = values.astype(np.float64)
    step = (exact[-1] - exact[0]) / (len(exact) - 1)
    off = np.abs(np.diff(exact) - step)
    # Coordinates far from 0 in float32 are uneven by their own rounding.
    rounding = 4 * np.finfo(values.dtype).eps * np.abs(exact).max()
    if step <= 0 or off.max() > 1e-3 * step + rounding:
        index = int(off.argmax())
        raise DataError(
            f"{what}: is not evenly spaced and ascending (step {exact[index + 1] - exact[index]:.6g} after entry "
            f"{index}, {step:.6g} on average); {mend}"
        )
    if values.dtype == np.float64:
        return float(exact[0]), float(step)
    # 0.05 that was stored as float32 is meant, not 0.05000000074.
    return float(f"{exact[0]:.7g}"), float(f"{step:.7g}")


def windows_of(ids: Int[np.ndarray, " b"], frames: Int[np.ndarray, "b t"]) -> Iterator[tuple[int, int, slice]]:
    """Row, trajectory and evenly spaced frames of each window."""
    for row, (index, times) in enumerate(zip(ids.tolist(), frames.tolist(), strict=True)):
        yield row, index, slice(times[0], times[-1] + 1, times[1] - times[0] if len(times) > 1 else 1)


def read_all(source: Source, ids: Int[np.ndarray, " n"], stride: int = 1) -> Float32[np.ndarray, "n t *s c"]:
    """Whole trajectories, every `stride`-th frame."""
    frames = np.arange(0, source.frames, stride)
    return source.windows(ids, np.broadcast_to(frames, (len(ids), len(frames))))


def selected(file: str, found: Sequence[str], wanted: Sequence[str] | None) -> tuple[str, ...]:
    """`wanted` as the file spells them, in their own order; all that were `found` without it. Raises `DataError`."""
    if not found:
        raise DataError(f"{file}: holds no fields that change in time; give another file")
    if wanted is None:
        return tuple(found)
    if not wanted or len(set(map(str.lower, wanted))) < len(wanted):
        raise DataError(f"{file}: `channels` are {', '.join(wanted) or 'none'}; name one or more, each once")
    spelled = {name.lower(): name for name in found}
    for name in wanted:
        if name.lower() not in spelled:
            near = difflib.get_close_matches(name.lower(), spelled, n=1, cutoff=0.6)
            hint = f", did you mean {spelled[near[0]]!r}?" if near else ""
            raise DataError(
                f"{file}: has no channel {name!r}{hint}; it has {', '.join(found)}: name those to use as `channels`"
            )
    return tuple(spelled[name.lower()] for name in wanted)
