"""The points layout, an HDF5 format of this project for fields on a mesh or on moving particles.

layout                 root attribute with the value "points"
points                 (P, D), or (N, P, D) if every trajectory has its own mesh
positions              (N, T, P, D) instead of `points` if the points move; may leave a periodic box
mask                   (P,) or (N, P), 0 for padding; without it there is no padding
fields/NAME            (N, T, P), one channel each; `positions` become further channels x, y, z
inputs/NAME            (P,) or (N, P), input fields that do not change in time, such as a source or a boundary mask
time                   (T,)
parameters/NAME        (N,), the coefficients
box                    (2, D), lower and upper corner of the domain; by default the bounding box of the points
cells                  (M, K) or (N, M, K), indices of the points of each mesh cell, -1 for padding; only for plots
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, Float32, Int

from ups_jax.core.errors import DataError
from ups_jax.data.sources.base import AXES, Grid, iterate_windows, select_channels, start_and_step
from ups_jax.data.sources.hdf5 import HDF5Source, get_dataset, read_coordinate
from ups_jax.data.sources.hdf5_values import Group, Values, text_attribute

LAYOUT = "points"
_HINT = "see the layout in ups_jax/data/sources/points.py"
# Root datasets that are no coefficients.
_DATASETS = ("points", "positions", "mask", "time", "box", "cells")


def has_points_layout(file: Group) -> bool:
    """Return whether the attribute `layout` of a file names the points layout."""
    return text_attribute(file.attrs, "layout") == LAYOUT


class PointsSource(HDF5Source):
    """A file in the points layout, with all channels if `channel_names` is None.

    Raises `DataError` if `channel_names` lacks the positions x, y, z of moving points, or if a dataset is invalid.
    """

    file_name_coefficients: tuple[str, ...] = ()

    def __init__(self, path: str | Path, channel_names: tuple[str, ...] | None = None) -> None:
        super().__init__(path, _HINT)
        with self.open() as file:
            self._is_moving = "positions" in file
            fields = tuple(f"fields/{name}" for name in _list_group(self.name, file, "fields"))
            first = "positions" if self._is_moving else next(iter(fields), "")
            if not first or ("points" in file) == self._is_moving:
                raise DataError(
                    f"{path}: contains {', '.join(file) or 'nothing'}; write a group `fields`, and a dataset `points`, "
                    "or `positions` if the points move"
                )
            first_shape = _get_numeric_dataset(self.name, file, first).shape
            shape = first_shape[:3]
            if len(first_shape) != 3 + self._is_moving or not all(shape):
                raise DataError(
                    f"{path}: `{first}` has shape {first_shape}; give (trajectories, times, points"
                    f"{', axes' if self._is_moving else ''})"
                )
            self.trajectories, self.frames, self._point_count = shape
            space_axes = _count_axes(self.name, file, shape, is_moving=self._is_moving)
            self._field_datasets = {name: f"fields/{name}" for name in _list_group(self.name, file, "fields")}
            for name, dataset in self._field_datasets.items():
                _check_dataset(self.name, file, dataset, (shape,), "(trajectories, times, points)")
                if name in AXES and self._is_moving:
                    raise DataError(f"{path}: `{dataset}` has the name of a position channel; rename the dataset")
            position_channels = AXES[:space_axes] if self._is_moving else ()
            self.channel_names = select_channels(self.name, (*position_channels, *self._field_datasets), channel_names)
            if any(name not in self.channel_names for name in position_channels):
                raise DataError(
                    f"{path}: the points move, but `channels` is {', '.join(self.channel_names)}; add the positions "
                    f"{', '.join(position_channels)}"
                )
            shared_shape, individual_shape = (self._point_count,), (self.trajectories, self._point_count)
            self.input_channels = _list_group(self.name, file, "inputs")
            for name in self.input_channels:
                _check_dataset(
                    self.name,
                    file,
                    f"inputs/{name}",
                    (shared_shape, individual_shape),
                    "(points,) or (trajectories, points)",
                )
            self._mask = np.ones(shared_shape, np.float32)
            if "mask" in file:
                _check_dataset(
                    self.name,
                    file,
                    "mask",
                    (shared_shape, individual_shape),
                    "(points,) or (trajectories, points)",
                    kinds="buif",
                )
                self._mask = np.asarray(file["mask"]).astype(np.float32)
                if not (self._mask > 0).any(axis=-1).all():
                    raise DataError(f"{path}: `mask` is 0 for all points of a trajectory; set it to 0 only for padding")
                self._mask = (self._mask > 0).astype(np.float32)
            if not self._is_moving and not np.isfinite(np.asarray(file["points"])).all():
                raise DataError(f"{path}: `points` contains NaN or Inf; set the coordinates of padding to 0")
            self.grid = _read_cloud(self.name, file, shape, position_channels, space_axes, self._mask)
            self._read_coefficients(file, _DATASETS)
        self.channels = len(self.channel_names)

    def read(self, ids: Int[np.ndarray, " b"], frames: Int[np.ndarray, "b t"]) -> Float32[np.ndarray, "b t p c"]:
        """Return the evenly spaced frames `frames[i]` of trajectory `ids[i]` for each window i, 0 at padding."""
        result = np.empty((*frames.shape, self._point_count, self.channels), np.float32)
        with self.open() as file:
            for row, index, times in iterate_windows(ids, frames):
                for channel, name in enumerate(self.channel_names):
                    if name in self._field_datasets:
                        result[row, ..., channel] = file[self._field_datasets[name]][(index, times)]
                    else:
                        result[row, ..., channel] = file["positions"][(index, times, slice(None), AXES.index(name))]
        is_point = self._select_rows(self._mask, ids)[:, None, :, None] > 0
        return np.where(is_point, result, np.float32(0))

    def read_input_fields(self, ids: Int[np.ndarray, " b"]) -> Float32[np.ndarray, "b p i"]:
        """Return the input fields of the trajectories `ids`, which are 0 at padding."""
        result = np.zeros((len(ids), self._point_count, len(self.input_channels)), np.float32)
        with self.open() as file:
            for channel, name in enumerate(self.input_channels):
                result[..., channel] = self._select_rows(np.asarray(file[f"inputs/{name}"]), ids)
        return np.where(self._select_rows(self._mask, ids)[..., None] > 0, result, np.float32(0))

    def points(self, ids: Int[np.ndarray, " b"]) -> PointSet:
        """Return the points of the trajectories `ids`; for moving points only their mask, with no coordinates."""
        mask = self._select_rows(self._mask, ids)
        if self._is_moving:
            return PointSet(coords=np.zeros((len(ids), self._point_count, 0), np.float32), mask=mask)
        with self.open() as file:
            points = np.asarray(file["points"], np.float32)
        coords = points[ids] if points.ndim == 3 else np.broadcast_to(points, (len(ids), *points.shape))
        return PointSet(coords=np.where(mask[..., None] > 0, coords, np.float32(0)), mask=mask)

    def cells(self, index: int) -> Int[np.ndarray, "m k"] | None:
        """Return the indices of the points of each mesh cell in a trajectory, or None if the file has no cells."""
        with self.open() as file:
            if "cells" not in file:
                return None
            dataset = _get_numeric_dataset(self.name, file, "cells", "iu")
            if dataset.ndim not in (2, 3) or (dataset.ndim == 3 and len(dataset) != self.trajectories):
                raise DataError(
                    f"{self.path}: `cells` has shape {dataset.shape}; give (cells, corners) or "
                    f"({self.trajectories}, cells, corners)"
                )
            cells = np.asarray(dataset[index] if dataset.ndim == 3 else dataset)
        return cells[(cells >= 0).all(axis=-1)]

    def _select_rows(
        self, values: Float[np.ndarray, "... p"], ids: Int[np.ndarray, " b"]
    ) -> Float32[np.ndarray, "b p"]:
        """Return `values` (N, P) for the trajectories `ids`; `values` (P,), which all share, are repeated for each."""
        rows = values[ids] if values.ndim == 2 else np.broadcast_to(values, (len(ids), len(values)))
        return rows.astype(np.float32)


@dataclass(frozen=True, eq=False, kw_only=True)
class PointSet:
    """The points of several trajectories, padded to one length.

    Attributes:
        coords: Physical coordinates. For moving points, D = 0: their coordinates are channels of the fields.
        mask: 1 for points, 0 for padding.
    """

    coords: Float32[np.ndarray, "b p d"]
    mask: Float32[np.ndarray, "b p"]

    def select_rows(self, rows: Int[np.ndarray, " r"] | slice) -> PointSet:
        """Return the points of the trajectories with the indices `rows` in this set."""
        return PointSet(coords=self.coords[rows], mask=self.mask[rows])


@dataclass(frozen=True, kw_only=True)
class PointCloud(Grid):
    """The `Grid` of scattered points: their number, the box that contains them, and the frame times.

    `shape` is the padded number of points, and `origin` the lower corner of the box. `spacing` is the same along all
    axes: the edge of a cube that has the volume of the box divided by the number of points.

    Attributes:
        box: Lengths of the sides of the box.
        box_from_points: Whether the box was computed from the points because the file does not contain a box.
        position_channels: Names of the channels that are the coordinates of moving points; empty for fixed points.
    """

    box: tuple[float, ...]
    box_from_points: bool = False
    position_channels: tuple[str, ...] = ()

    @staticmethod
    def from_corners(
        corners: Float[np.ndarray, "2 d"],
        point_count: int,
        start_and_dt: tuple[float, float],
        *,
        box_from_points: bool,
        position_channels: tuple[str, ...],
    ) -> PointCloud:
        """Return a cloud of points in the box with these lower and upper `corners`, at evenly spaced times."""
        box = tuple((corners[1] - corners[0]).tolist())
        return PointCloud(
            shape=(point_count,),
            origin=tuple(corners[0].tolist()),
            spacing=(float(np.prod(box) / point_count) ** (1 / len(box)),) * len(box),
            start=start_and_dt[0],
            dt=start_and_dt[1],
            box=box,
            box_from_points=box_from_points,
            position_channels=position_channels,
        )

    @property
    def axes(self) -> tuple[str, ...]:
        """Names of the space axes: `("x",)`, `("x", "y")` or `("x", "y", "z")`."""
        return AXES[: len(self.box)]


@runtime_checkable
class ScatteredSource(Protocol):
    """A `Source` of scattered points: its grid is a `PointCloud`, and it has the further method `points`."""

    def points(self, ids: Int[np.ndarray, " b"]) -> PointSet:
        """Return the points of the trajectories `ids`."""
        ...


def bounding_box(label: str, points: Float[np.ndarray, "p d"]) -> Float[np.ndarray, "2 d"]:
    """Return the lower and the upper corner of the bounding box of points.

    Raises `DataError` if the box has no extent along an axis; the message begins with `label`.
    """
    corners = np.stack([points.min(axis=0), points.max(axis=0)])
    if not (corners[1] > corners[0]).all():
        raise DataError(f"{label}: all points lie in one plane, line or point; leave out the axis without extent")
    return corners


def _count_axes(file_name: str, file: Group, shape: tuple[int, ...], *, is_moving: bool) -> int:
    """Return the number of space axes of the points. Raises `DataError` if the `shape` of their dataset is invalid."""
    dataset = "positions" if is_moving else "points"
    actual = _get_numeric_dataset(file_name, file, dataset).shape
    allowed = [shape] if is_moving else [shape[2:], (shape[0], shape[2])]
    if actual[:-1] not in [tuple(item) for item in allowed] or not 1 <= actual[-1] <= len(AXES):
        raise DataError(
            f"{file_name}: `{dataset}` has shape {actual}; for {shape[0]} trajectories and {shape[2]} points "
            f"give {' or '.join(str((*item, 'axes')) for item in allowed)}".replace("'", "")
        )
    return int(actual[-1])


def _list_group(file_name: str, file: Group, group: str) -> tuple[str, ...]:
    """Return the names in the group `group`, if it exists. Raises `DataError` if `group` is the name of a dataset."""
    members = file.get(group, {})
    if isinstance(members, Values):
        raise DataError(f"{file_name}: `{group}` is a dataset, not a group of datasets; {_HINT}")
    return tuple(members)


def _get_numeric_dataset(file_name: str, file: Group, dataset: str, kinds: str = "fiu") -> Values:
    """Return a dataset. Raises `DataError` unless its `dtype.kind` is one of the letters `kinds`."""
    item = get_dataset(file_name, file, dataset, _HINT)
    if item.dtype.kind not in kinds:
        expected = "floating-point" if kinds == "f" else "integer" if kinds == "iu" else "numeric"
        raise DataError(f"{file_name}: `{dataset}` has type {item.dtype}; give a type that is {expected}")
    return item


def _check_dataset(
    file_name: str, file: Group, dataset: str, shapes: tuple[tuple[int, ...], ...], shape_text: str, kinds: str = "f"
) -> None:
    """Raise `DataError` unless a dataset has one of the `shapes`, which messages describe as `shape_text`."""
    item = _get_numeric_dataset(file_name, file, dataset, kinds)
    if item.shape not in shapes:
        expected = " or ".join(map(str, shapes))
        raise DataError(f"{file_name}: `{dataset}` has shape {item.shape}; give {shape_text}, here {expected}")


def _read_cloud(
    file_name: str,
    file: Group,
    shape: tuple[int, ...],
    position_channels: tuple[str, ...],
    axis_count: int,
    mask: np.ndarray,
) -> PointCloud:
    """Return the point cloud of a file whose fields have the `shape` (trajectories, times, points)."""
    times = read_coordinate(file_name, file, "time", _HINT)
    if times.shape != (shape[1],):
        raise DataError(f"{file_name}: `time` has shape {times.shape}; give {shape[1]} times, one for each frame")
    start, dt = start_and_step(times, f"{file_name}: `time`", "store frames at evenly spaced times")
    if "box" in file:
        corners = np.asarray(_get_numeric_dataset(file_name, file, "box"), np.float64)
        if corners.shape != (2, axis_count) or not (np.isfinite(corners).all() and (corners[1] > corners[0]).all()):
            raise DataError(
                f"{file_name}: `box` is invalid; give an array (2, {axis_count}) of the lower and the upper corner"
            )
    else:
        positions = np.asarray(file["positions" if position_channels else "points"], np.float64)
        point_mask = mask[:, None] if position_channels and mask.ndim == 2 else mask
        corners = bounding_box(file_name, positions[np.broadcast_to(point_mask, positions.shape[:-1]) > 0])
    return PointCloud.from_corners(
        corners, shape[2], (start, dt), box_from_points="box" not in file, position_channels=position_channels
    )
