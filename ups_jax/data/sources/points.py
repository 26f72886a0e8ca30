"""The layout of points, an HDF5 file of this project: fields on a mesh, or on particles that move.

layout                 root attribute, "points"
points                 (P, D), or (N, P, D) where every trajectory has a mesh of its own
positions              (N, T, P, D) in its place where the points move; beyond a periodic box they go on
mask                   (P,) or (N, P), 0 for what only fills a row up; without it all points are there
fields/NAME            (N, T, P), a channel each; `positions` are the channels x, y, z
inputs/NAME            (P,) or (N, P), given fields that do not change: a source, the points of a side
time                   (T,)
parameters/NAME        (N,), the coefficients
box                    (2, D), two corners; without it that of the points
cells                  (M, K) or (N, M, K), the points of each cell, -1 where there is none: for pictures
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

import h5py
import numpy as np
from jaxtyping import Float, Float32, Int

from ups_jax.core.errors import DataError
from ups_jax.data.sources.base import AXES, Grid, selected, uniform, windows_of
from ups_jax.data.sources.hdf5 import HDF5Source, coefficients, dataset_of, text_of

LAYOUT = "points"
_MEND = "write it as ups_jax/data/sources/points.py says"
_NO_COEFFICIENTS = ("time", "mask")


def is_points(file: h5py.File) -> bool:
    """Whether a file says that it has this layout."""
    return text_of(file.attrs, "layout") == LAYOUT


class PointsSource(HDF5Source):
    """The channels `names` of such a file, or all. Raises `DataError` naming file and dataset for any defect."""

    known_in_names: tuple[str, ...] = ()

    def __init__(self, path: str | Path, names: tuple[str, ...] | None = None) -> None:
        super().__init__(path, _MEND)
        with self.reading() as file:
            self._moves = "positions" in file
            fields = tuple(f"fields/{name}" for name in _names_in(self.name, file, "fields"))
            first = "positions" if self._moves else next(iter(fields), "")
            if not first or ("points" in file) == self._moves:
                raise DataError(
                    f"{path}: holds {', '.join(file) or 'nothing'}; a file of points has a group `fields`, and either "
                    "`points` or, where they move, `positions`"
                )
            whole = _numbers(self.name, file, first).shape
            shape = whole[:3]
            if len(whole) != 3 + self._moves or not all(shape):
                raise DataError(
                    f"{path}: `{first}` has shape {whole}, it must be (trajectories, times, points"
                    f"{', axes' if self._moves else ''})"
                )
            self.trajectories, self.frames, self._points = shape
            self._place_axes = _axes(self.name, file, shape, moves=self._moves)
            self._where = {name: f"fields/{name}" for name in _names_in(self.name, file, "fields")}
            for name, dataset in self._where.items():
                _check(self.name, file, dataset, (shape,), "(trajectories, times, points)")
                if name in AXES and self._moves:
                    raise DataError(f"{path}: `{dataset}` has the name of a position's channel; call it otherwise")
            moving = AXES[: self._place_axes] if self._moves else ()
            self.channel_names = selected(self.name, (*moving, *self._where), names)
            missing = [name for name in moving if name not in self.channel_names]
            if missing:
                raise DataError(
                    f"{path}: its points move, so that their positions {', '.join(moving)} must be among the channels "
                    f"({', '.join(self.channel_names)})"
                )
            every, each = (self._points,), (self.trajectories, self._points)
            self.input_channels = _names_in(self.name, file, "inputs")
            for name in self.input_channels:
                _check(self.name, file, f"inputs/{name}", (every, each), "(points,) or (trajectories, points)")
            self._mask = np.ones(every, np.float32)
            if "mask" in file:
                _check(self.name, file, "mask", (every, each), "(points,) or (trajectories, points)", kinds="buif")
                self._mask = np.asarray(file["mask"]).astype(np.float32)
                if not (self._mask > 0).any(axis=-1).all():
                    raise DataError(f"{path}: `mask` leaves a trajectory without points")
                self._mask = (self._mask > 0).astype(np.float32)
            if not self._moves and not np.isfinite(np.asarray(file["points"])).all():
                raise DataError(f"{path}: `points` holds NaN or Inf; set the points that only fill up to 0")
            self.grid = _cloud(self.name, file, shape, moving, self._place_axes, self._mask)
            found = coefficients(self.name, file, self.trajectories)
            self._coefficients = {key: value for key, value in found if key not in _NO_COEFFICIENTS}
        self.channels = len(self.channel_names)

    def windows(self, ids: Int[np.ndarray, " b"], frames: Int[np.ndarray, "b t"]) -> Float32[np.ndarray, "b t p c"]:
        """The given frames of the given trajectories, 0 where no point is; frames are evenly spaced."""
        result = np.empty((*frames.shape, self._points, self.channels), np.float32)
        with self.reading() as file:
            for row, index, times in windows_of(ids, frames):
                part = (index, times)
                for channel, name in enumerate(self.channel_names):
                    if name in self._where:
                        result[row, ..., channel] = file[self._where[name]][part]
                    else:
                        result[row, ..., channel] = file["positions"][(*part, slice(None), AXES.index(name))]
        there = self._rows(self._mask, ids)[:, None, :, None] > 0
        return np.where(there, result, np.float32(0))

    def inputs(self, ids: Int[np.ndarray, " b"]) -> Float32[np.ndarray, "b p i"]:
        """The given fields, 0 where no point is."""
        result = np.zeros((len(ids), self._points, len(self.input_channels)), np.float32)
        with self.reading() as file:
            for place, name in enumerate(self.input_channels):
                result[..., place] = self._rows(np.asarray(file[f"inputs/{name}"]), ids)
        return np.where(self._rows(self._mask, ids)[..., None] > 0, result, np.float32(0))

    def places(self, ids: Int[np.ndarray, " b"]) -> Places:
        """Where the points lie; those that move have their positions among the channels."""
        mask = self._rows(self._mask, ids)
        if self._moves:
            return Places(coords=np.zeros((len(ids), self._points, 0), np.float32), mask=mask)
        with self.reading() as file:
            points = np.asarray(file["points"], np.float32)
        coords = points[ids] if points.ndim == 3 else np.broadcast_to(points, (len(ids), *points.shape))
        return Places(coords=np.where(mask[..., None] > 0, coords, np.float32(0)), mask=mask)

    def cells(self, index: int) -> Int[np.ndarray, "m k"] | None:
        """The cells of a trajectory's mesh, or None where the file has none."""
        with self.reading() as file:
            if "cells" not in file:
                return None
            found = _numbers(self.name, file, "cells", "iu")
            if found.ndim not in (2, 3) or (found.ndim == 3 and len(found) != self.trajectories):
                raise DataError(f"{self.path}: `cells` has shape {found.shape}, it must be (cells, corners); {_MEND}")
            cells = np.asarray(found[index] if found.ndim == 3 else found)
        return cells[(cells >= 0).all(axis=-1)]

    def _rows(self, values: Float[np.ndarray, "... p"], ids: Int[np.ndarray, " b"]) -> Float32[np.ndarray, "b p"]:
        """Values of the points, the same or their own in each trajectory, of some trajectories."""
        own = values[ids] if values.ndim == 2 else np.broadcast_to(values, (len(ids), len(values)))
        return own.astype(np.float32)


@dataclass(frozen=True, eq=False, kw_only=True)
class Places:
    """Physical coordinates, and 1 for each point that is there; the others fill a row up.

    Points that move have no coordinates here (D = 0): theirs are channels of the fields.
    """

    coords: Float32[np.ndarray, "b p d"]
    mask: Float32[np.ndarray, "b p"]

    def rows(self, rows: Int[np.ndarray, " r"] | slice) -> Places:
        """Those of some rows."""
        return Places(coords=self.coords[rows], mask=self.mask[rows])


@dataclass(frozen=True, kw_only=True)
class Cloud(Grid):
    """The times of a set of at most `shape[0]` points in a box with its lower corner at `origin` and sides `box`.

    `spacing` is what a regular grid of as many points would have. Where the points move, `moving` are the names of the
    channels that are their coordinates. `measured` is a box that the data do not state: that of their points.
    """

    box: tuple[float, ...]
    measured: bool = False
    moving: tuple[str, ...] = ()

    @staticmethod
    def between(
        corners: Float[np.ndarray, "2 d"],
        points: int,
        times: tuple[float, float],
        *,
        measured: bool,
        moving: tuple[str, ...],
    ) -> Cloud:
        """So many points in the box between two corners, at times from a start and with a step."""
        box = tuple((corners[1] - corners[0]).tolist())
        return Cloud(
            shape=(points,),
            origin=tuple(corners[0].tolist()),
            spacing=(float(np.prod(box) / points) ** (1 / len(box)),) * len(box),
            start=times[0],
            dt=times[1],
            box=box,
            measured=measured,
            moving=moving,
        )

    @property
    def axes(self) -> tuple[str, ...]:
        """Names of the axes of the box."""
        return AXES[: len(self.box)]


@runtime_checkable
class Scattered(Protocol):
    """A source whose grid is a `Cloud`."""

    def places(self, ids: Int[np.ndarray, " b"]) -> Places:
        """Where the points of some trajectories lie."""
        ...


def corners_of(name: str, points: Float[np.ndarray, "p d"]) -> Float[np.ndarray, "2 d"]:
    """The lower and the upper corner of the box of all points. Raises `DataError` for points in a plane."""
    corners = np.stack([points.min(axis=0), points.max(axis=0)])
    if not (corners[1] > corners[0]).all():
        raise DataError(f"{name}: its points lie in a plane or at one place; leave an axis out")
    return corners


def _axes(name: str, file: h5py.File, shape: tuple[int, ...], *, moves: bool) -> int:
    """The number of axes of space."""
    where = "positions" if moves else "points"
    places = _numbers(name, file, where).shape
    allowed = [shape] if moves else [shape[2:], (shape[0], shape[2])]
    if places[:-1] not in [tuple(item) for item in allowed] or not 1 <= places[-1] <= len(AXES):
        raise DataError(
            f"{name}: `{where}` has shape {places}, with fields of {shape[0]} trajectories of {shape[2]} points it "
            f"must be {' or '.join(str((*item, 'axes')) for item in allowed)}".replace("'", "")
        )
    return int(places[-1])


def _names_in(name: str, file: h5py.File, group: str) -> tuple[str, ...]:
    """The names in a group, none where there is no such group. Raises `DataError` where it is something else."""
    found = file.get(group, {})
    if isinstance(found, h5py.Dataset):
        raise DataError(f"{name}: `{group}` is no group; {_MEND}")
    return tuple(found)


def _numbers(name: str, file: h5py.File, dataset: str, kinds: str = "fiu") -> h5py.Dataset:
    found = dataset_of(name, file, dataset, _MEND)
    if found.dtype.kind not in kinds:
        of = "floating-point numbers" if kinds == "f" else "numbers of the right kind"
        raise DataError(f"{name}: `{dataset}` holds no {of}, but {found.dtype}; {_MEND}")
    return found


def _check(
    name: str, file: h5py.File, dataset: str, shapes: tuple[tuple[int, ...], ...], wanted: str, kinds: str = "f"
) -> None:
    item = _numbers(name, file, dataset, kinds)
    if item.shape not in shapes:
        right = " or ".join(map(str, shapes))
        raise DataError(f"{name}: `{dataset}` has shape {item.shape}, it must be {right}: {wanted}")


def _cloud(
    name: str, file: h5py.File, shape: tuple[int, ...], moving: tuple[str, ...], axes: int, mask: np.ndarray
) -> Cloud:
    if _numbers(name, file, "time", "f").shape != (shape[1],):
        raise DataError(f"{name}: `time` must have {shape[1]} floating-point entries, the times of the frames")
    start, dt = uniform(np.asarray(file["time"]), f"{name}: `time`", "store frames at even times")
    if "box" in file:
        corners = np.asarray(_numbers(name, file, "box"), np.float64)
        if corners.shape != (2, axes) or not (np.isfinite(corners).all() and (corners[1] > corners[0]).all()):
            raise DataError(f"{name}: `box` must be (2, {axes}), the lower corner and the upper one")
    else:
        places = np.asarray(file["positions" if moving else "points"], np.float64)
        there = np.broadcast_to(mask[:, None] if moving and mask.ndim == 2 else mask, places.shape[:-1]) > 0
        corners = corners_of(name, places[there])
    return Cloud.between(corners, shape[2], (start, dt), measured="box" not in file, moving=moving)
