"""The initial state of a rollout, read from a NumPy or HDF5 file or taken from a trajectory of the run's data."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import cast

import numpy as np
from jaxtyping import Float, Int

from ups_jax import simulate
from ups_jax.config import Config
from ups_jax.core.errors import DataError, first_line
from ups_jax.core.task import Task
from ups_jax.data import Split, open_dataset
from ups_jax.data.dataset import point_arrays
from ups_jax.data.open import check_points_inside
from ups_jax.data.sources import open_file
from ups_jax.data.sources.arrays import NUMPY_ERRORS
from ups_jax.data.sources.points import PointCloud, PointSet, ScatteredSource
from ups_jax.inference.resolution import grid_coordinates


@dataclass(frozen=True, kw_only=True)
class InitialState:
    """The context frames from which a rollout of some samples starts, with their coordinates and coefficients.

    Attributes:
        name: Name of the input in messages and file attributes.
        fields: Context frames in physical units.
        sample_ids: Indices of the samples in the file that contains them.
        coordinates: Grid coordinates along each space axis; empty for point clouds.
        time: Time of the first context frame.
        coefficients: PDE coefficients by name, in physical units.
        truth: The frames after the context if the input is a trajectory of the run's data, otherwise None.
        point_arrays: Arrays of a batch of point clouds; empty for a grid.
    """

    name: str
    fields: Float[np.ndarray, "n k *s c"]
    sample_ids: Int[np.ndarray, " n"]
    coordinates: tuple[Float[np.ndarray, " _"], ...]
    time: float = 0.0
    coefficients: Mapping[str, Float[np.ndarray, " n"]] = field(default_factory=dict)
    truth: Float[np.ndarray, "n t *s c"] | None = None
    point_arrays: Mapping[str, np.ndarray] = field(default_factory=dict)

    def first_samples(self, count: int | None) -> InitialState:
        """Return the initial state of the first `count` samples, or of all samples if `count` is None."""
        return replace(
            self,
            fields=self.fields[:count],
            sample_ids=self.sample_ids[:count],
            coefficients={name: values[:count] for name, values in self.coefficients.items()},
            point_arrays={name: values[:count] for name, values in self.point_arrays.items()},
        )


def read_initial_state(source: str, task: Task, context: int, cfg: Config) -> InitialState:
    """Return the initial state from a file or from a trajectory of the run's data.

    Args:
        source: Path of a .npy, .npz or HDF5 file, or a split and an index: `test:3` is the fourth trajectory of the
            test split. The other splits are `train` and `val`.
        context: Number of frames that the model takes as input; further frames of a file are ignored.
        cfg: Configuration with the location of the run's data.

    Raises:
        DataError: The input cannot be read, contains NaN or Inf, or its grid, channels or number of frames do not
            fit the model.
    """
    match = re.fullmatch(r"(train|val|test):(\d+)", source)
    path = Path(source)
    if match is not None:
        start = _read_trajectory(cast(Split, match[1]), int(match[2]), task, context, cfg)
    elif not path.is_file():
        raise DataError(
            f"{source}: no such file; give a .npy, .npz or HDF5 file, or test:0 for the first test trajectory"
        )
    elif task.scattered:
        start = _read_points(path, task, context)
    elif path.suffix in (".npy", ".npz"):
        start = _read_numpy(path, task, context)
    else:
        start = _read_hdf5(path, task, context)
    if not np.isfinite(start.fields).all():
        raise DataError(f"{source}: the initial frames contain NaN or Inf; correct the input")
    return start


def _read_trajectory(split: Split, index: int, task: Task, context: int, cfg: Config) -> InitialState:
    """Return the initial state of a trajectory in a split of the run's data, with the later frames as `truth`."""
    simulate.generate_missing(cfg)
    dataset = open_dataset(cfg, task)
    name = dataset.source.name
    if not task.scattered:
        _check_grid(name, dataset.task.shape, dataset.task.spacing, task)
    if not math.isclose(dataset.task.dt, task.dt, rel_tol=1e-3):
        raise DataError(
            f"{name}: has the time step {dataset.task.dt:g}, but the run was trained with "
            f"{task.dt:g}; use the data of the run"
        )
    ids = dataset.splits.ids(split)
    if index >= len(ids):
        raise DataError(f"{name}: has {len(ids)} {split} trajectories; give one of {split}:0 to {split}:{len(ids) - 1}")
    trajectories = dataset.trajectories(split, limit=index + 1)
    has_coefficient = trajectories.cond_mask[index] > 0
    coefficients = {
        item.name: trajectories.cond[index:, column].astype(np.float64)
        for column, item in enumerate(task.coefficients)
        if has_coefficient[column]
    }
    return InitialState(
        name=f"{name}, {split} trajectory {index} (id {trajectories.ids[index]})",
        fields=trajectories.fields[index:, :context],
        sample_ids=trajectories.ids[index:],
        coordinates=() if task.scattered else tuple(grid_coordinates(dataset.task)),
        time=float(trajectories.time[0]),
        coefficients=coefficients,
        truth=trajectories.fields[index:, context:],
        point_arrays={name: values[index:] for name, values in trajectories.point_arrays.items()},
    )


def _read_hdf5(path: Path, task: Task, context: int) -> InitialState:
    """Return the initial state of all trajectories in an HDF5 file."""
    source = open_file(path, "transient", task.channels)
    if len(task.channels) != source.channels:
        raise DataError(
            f"{path}: has {source.channels} channels, but the run has {len(task.channels)} "
            f"({', '.join(task.channels)}); give an HDF5 file with a dataset named after each channel, or a .npy file "
            "with channels as the last axis"
        )
    if not isinstance(source, ScatteredSource):
        _check_grid(source.name, source.grid.shape, source.grid.spacing, task)
    stride = round(task.dt / source.grid.dt)
    if context > 1 and not (stride >= 1 and math.isclose(stride * source.grid.dt, task.dt, rel_tol=1e-3)):
        raise DataError(
            f"{path}: its frames are {source.grid.dt:g} apart, but the run takes {context} frames that are {task.dt:g} "
            f"apart; give a file whose time step is {task.dt:g} or a whole fraction of it"
        )
    frames = np.arange(context) * max(stride, 1)
    if frames[-1] >= source.frames:
        raise DataError(
            f"{path}: has {source.frames} frames per trajectory, but the run takes {context} frames that are "
            f"{task.dt:g} apart; give longer trajectories"
        )
    ids = np.arange(source.trajectories)
    coefficients = {item.name: source.coefficient(item.name) for item in task.equation_coefficients}
    scattered = isinstance(source, ScatteredSource)
    return InitialState(
        name=str(path),
        fields=source.read(ids, np.broadcast_to(frames, (len(ids), context))),
        sample_ids=ids,
        coordinates=()
        if scattered
        else tuple(
            origin + step * np.arange(points)
            for origin, step, points in zip(source.grid.origin, source.grid.spacing, source.grid.shape, strict=True)
        ),
        time=source.grid.start,
        coefficients={name: values for name, values in coefficients.items() if values is not None},
        point_arrays=point_arrays(source.points(ids), source.read_input_fields(ids))
        if isinstance(source, ScatteredSource)
        else {},
    )


def _read_points(path: Path, task: Task, context: int) -> InitialState:
    """Return the initial state of all trajectories in an HDF5 file of point clouds."""
    if path.suffix in (".npy", ".npz"):
        raise DataError(
            f"{path}: a NumPy file has no point positions; give an HDF5 file in the points layout, or test:0 for "
            "the first test trajectory"
        )
    start = _read_hdf5(path, task, context)
    if not start.point_arrays:
        raise DataError(
            f"{path}: its data is on a grid, but the run was trained on point clouds; give an HDF5 file in the "
            "points layout"
        )
    source = open_file(path, "transient", task.channels)
    cloud = cast(PointCloud, source.grid)
    moving = tuple(task.channels[channel] for channel in task.moving)
    if cloud.axes != task.axes or cloud.position_channels != moving:
        file_points, trained_points = ("moving" if names else "fixed" for names in (cloud.position_channels, moving))
        raise DataError(
            f"{path}: has {file_points} points with the axes {', '.join(cloud.axes)}; give a file with "
            f"{trained_points} points and the axes {', '.join(task.axes)}, as the run was trained on"
        )
    if not moving:
        points = PointSet(coords=start.point_arrays["coords"], mask=start.point_arrays["point_mask"])
        check_points_inside(str(path), points, task, tuple(axis for axis, wraps in enumerate(task.periodic) if wraps))
    names = tuple(item.name for item in task.inputs)
    input_channels = source.input_channels
    if input_channels != names:
        raise DataError(
            f"{path}: its group `inputs` contains {', '.join(input_channels) or 'nothing'}; give a file with the input "
            f"fields that the run was trained with: {', '.join(names) or 'none'}"
        )
    return start


def _read_numpy(path: Path, task: Task, context: int) -> InitialState:
    """Return the initial state of all samples in a .npy or .npz file."""
    arrays = _load_arrays(path)
    names = [item.name for item in task.equation_coefficients]
    fields = {name: values for name, values in arrays.items() if name not in names}
    if len(fields) != 1:
        raise DataError(
            f"{path}: has the arrays {', '.join(arrays) or 'none'}; give exactly one array of fields"
            + (f" besides the coefficients {', '.join(names)}" if names else "")
        )
    samples = _add_omitted_axes(str(path), next(iter(fields.values())), task, context)
    coefficients = {}
    for name in arrays.keys() & set(names):
        if arrays[name].shape not in ((), (len(samples),)):
            raise DataError(
                f"{path}: {name} has shape {arrays[name].shape}; give one number, or an array of shape "
                f"({len(samples)},) with one number per sample"
            )
        coefficients[name] = np.broadcast_to(arrays[name].astype(np.float64), (len(samples),))
    return InitialState(
        name=str(path),
        fields=samples,
        sample_ids=np.arange(len(samples)),
        coordinates=tuple(grid_coordinates(task)),
        coefficients=coefficients,
    )


def _load_arrays(path: Path) -> dict[str, np.ndarray]:
    """Return the numeric arrays of a NumPy file by name; the array of a .npy file has the name `fields`."""
    try:
        # Opened here, because NumPy does not close a file that it cannot read.
        with path.open("rb") as file:
            loaded = np.load(file, allow_pickle=False)
            arrays = {"fields": loaded} if isinstance(loaded, np.ndarray) else {key: loaded[key] for key in loaded}
    except NUMPY_ERRORS as error:
        raise DataError(f"{path}: cannot be read as a NumPy file of numbers ({first_line(error)})") from None
    for name, values in arrays.items():
        if values.dtype.kind not in "fiu":
            raise DataError(f"{path}: the array {name} has the type {values.dtype}; give real numbers")
    return arrays


def _add_omitted_axes(name: str, array: np.ndarray, task: Task, context: int) -> Float[np.ndarray, "n k *s c"]:
    """Return fields with the axes of samples, frames and channels, which a file may omit if they have length 1."""
    frame = (*task.shape, len(task.channels))
    fields = array.astype(np.float32)
    if fields.shape[-len(frame) :] != frame and len(task.channels) == 1:
        fields = fields[..., None]
    leading = fields.ndim - len(frame)
    if fields.shape[-len(frame) :] != frame or leading not in (0, 1, 2):
        axes = ", ".join(f"{axis}={points}" for axis, points in zip(task.axes, task.shape, strict=True))
        channels = f"channels={len(task.channels)} ({', '.join(task.channels)})"
        raise DataError(
            f"{name}: has shape {array.shape}; this run expects (samples, frames={context}, {axes}, {channels}); "
            "the axes of samples, frames and a single channel may be omitted"
        )
    if leading == 0:
        fields = fields[None, None]
    elif leading == 1:
        # The leading axis contains samples if the context is one frame, otherwise the frames of one sample.
        fields = fields[:, None] if context == 1 else fields[None]
    if fields.shape[1] < context or len(fields) == 0:
        raise DataError(
            f"{name}: has shape {array.shape}, which is {fields.shape[1]} frame(s) of {len(fields)} sample(s); this "
            f"run needs {context} frame(s) per sample"
        )
    return fields[:, :context]


def _check_grid(name: str, shape: tuple[int, ...], spacing: tuple[float, ...], task: Task) -> None:
    """Raise `DataError` if a grid differs from the task's grid in shape or spacing."""
    if shape != task.shape or not np.allclose(spacing, task.spacing, rtol=1e-3, atol=0):
        raise DataError(
            f"{name}: its grid has {_describe_grid(shape, spacing)}, but the run was trained on a grid of "
            f"{_describe_grid(task.shape, task.spacing)}; interpolate the fields to that grid"
        )


def _describe_grid(shape: tuple[int, ...], spacing: tuple[float, ...]) -> str:
    """Return the size of a grid in words, such as `8 x 6 points with spacing 0.1 and 0.2`."""
    return " x ".join(map(str, shape)) + f" points with spacing {' and '.join(f'{step:.4g}' for step in spacing)}"
