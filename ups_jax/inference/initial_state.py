"""What a rollout starts from: frames of NumPy and HDF5 files or of a trajectory of the run's data, checked."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
from jaxtyping import Float, Int

from ups_jax import simulate
from ups_jax.config import Config
from ups_jax.core.errors import DataError, first_line
from ups_jax.core.task import Task
from ups_jax.data import open_dataset
from ups_jax.data.dataset import place_arrays
from ups_jax.data.open import check_inside
from ups_jax.data.sources import open_file
from ups_jax.data.sources.arrays import NUMPY_ERRORS
from ups_jax.data.sources.points import Cloud, Places, Scattered
from ups_jax.inference.resolution import lines


@dataclass(frozen=True, kw_only=True)
class Start:
    """Given frames of some samples, with what is known of them.

    `numbers` are the samples' in their file, `time` that of the first given frame, `coordinates` an array a space axis.
    `truth` are the frames that follow, where the input is a trajectory of the run's data. `place_arrays` are what a
    batch has of a set of points alone, which has no coordinates by axis.
    """

    name: str
    fields: Float[np.ndarray, "n k *s c"]
    numbers: Int[np.ndarray, " n"]
    coordinates: tuple[Float[np.ndarray, " _"], ...]
    time: float = 0.0
    coefficients: Mapping[str, Float[np.ndarray, " n"]] = field(default_factory=dict)
    truth: Float[np.ndarray, "n t *s c"] | None = None
    place_arrays: Mapping[str, np.ndarray] = field(default_factory=dict)

    def first(self, count: int | None) -> Start:
        """The first `count` samples."""
        coefficients = {name: values[:count] for name, values in self.coefficients.items()}
        places = {name: values[:count] for name, values in self.place_arrays.items()}
        return replace(
            self,
            fields=self.fields[:count],
            numbers=self.numbers[:count],
            coefficients=coefficients,
            place_arrays=places,
        )


def read_start(text: str, task: Task, context: int, cfg: Config) -> Start:
    """`text` is a .npy, .npz or HDF5 file, or `test:3`: the fourth test trajectory (also `val:`, `train:`).

    `context` frames are given of each sample; of more the first are taken. `cfg` says where the run's data lies.
    DataError where the file cannot be read, or grid, channels or number of frames are not the run's.
    """
    split = re.fullmatch(r"(train|val|test):(\d+)", text)
    path = Path(text)
    if split is not None:
        start = _of_run(split[1], int(split[2]), task, context, cfg)
    elif not path.is_file():
        raise DataError(
            f"{text}: there is no such file; give a .npy, .npz or HDF5 file, or test:0 for a test trajectory"
        )
    elif task.scattered:
        start = _of_points(path, task, context)
    elif path.suffix in (".npy", ".npz"):
        start = _of_numpy(path, task, context)
    else:
        start = _of_hdf5(path, task, context)
    if not np.isfinite(start.fields).all():
        raise DataError(f"{text}: the given frames hold NaN or Inf; correct them")
    return start


def _of_run(split: Any, number: int, task: Task, context: int, cfg: Config) -> Start:
    simulate.prepare(cfg)
    dataset = open_dataset(cfg, task)
    name = dataset.source.name
    if not task.scattered:
        _check_grid(name, dataset.task.shape, dataset.task.spacing, task)
    if not math.isclose(dataset.task.dt, task.dt, rel_tol=1e-3):
        raise DataError(f"{name}: its frames are {dataset.task.dt:g} apart, the run was trained on {task.dt:g}")
    ids = dataset.splits.ids(split)
    if number >= len(ids):
        raise DataError(f"{name}: has {len(ids)} {split} trajectories; give {split}:0 to {split}:{len(ids) - 1}")
    held = dataset.trajectories(split, limit=number + 1)
    known = held.cond_mask[number] > 0
    coefficients = {
        item.name: held.cond[number:, column].astype(np.float64)
        for column, item in enumerate(task.coefficients)
        if known[column]
    }
    return Start(
        name=f"{name}, {split} trajectory {number} (id {held.ids[number]})",
        fields=held.fields[number:, :context],
        numbers=held.ids[number:],
        coordinates=() if task.scattered else tuple(lines(dataset.task)),
        time=float(held.time[0]),
        coefficients=coefficients,
        truth=held.fields[number:, context:],
        place_arrays={name: values[number:] for name, values in held.place_arrays.items()},
    )


def _of_hdf5(path: Path, task: Task, context: int) -> Start:
    source = open_file(path, "transient", task.channels)
    if len(task.channels) != source.channels:
        raise DataError(
            f"{path}: holds {source.channels} channels, the run has {len(task.channels)} ({', '.join(task.channels)}); "
            "give a file with a dataset for each by its name, or all as the last axis of a .npy file"
        )
    if not isinstance(source, Scattered):
        _check_grid(source.name, source.grid.shape, source.grid.spacing, task)
    stride = round(task.dt / source.grid.dt)
    if context > 1 and not (stride >= 1 and math.isclose(stride * source.grid.dt, task.dt, rel_tol=1e-3)):
        raise DataError(
            f"{path}: its frames are {source.grid.dt:g} apart; the run takes {context} frames {task.dt:g} apart, which "
            "must be a whole multiple of that"
        )
    frames = np.arange(context) * max(stride, 1)
    if frames[-1] >= source.frames:
        raise DataError(
            f"{path}: holds {source.frames} frames a trajectory, the run takes {context} frames {task.dt:g} apart"
        )
    ids = np.arange(source.trajectories)
    found = {item.name: source.coefficient(item.name) for item in task.own_coefficients}
    scattered = isinstance(source, Scattered)
    return Start(
        name=str(path),
        fields=source.windows(ids, np.broadcast_to(frames, (len(ids), context))),
        numbers=ids,
        coordinates=()
        if scattered
        else tuple(
            origin + step * np.arange(points)
            for origin, step, points in zip(source.grid.origin, source.grid.spacing, source.grid.shape, strict=True)
        ),
        time=source.grid.start,
        coefficients={name: values for name, values in found.items() if values is not None},
        place_arrays=place_arrays(source.places(ids), source.inputs(ids)) if isinstance(source, Scattered) else {},
    )


def _of_points(path: Path, task: Task, context: int) -> Start:
    if path.suffix in (".npy", ".npz"):
        raise DataError(
            f"{path}: does not say where its points are; give a file in the layout of points, or test:0 for a test "
            "trajectory"
        )
    start = _of_hdf5(path, task, context)
    if not start.place_arrays:
        raise DataError(f"{path}: is of a grid, the run was trained on points; give a file in the layout of points")
    source = open_file(path, "transient", task.channels)
    cloud = cast(Cloud, source.grid)
    moving = tuple(task.channels[channel] for channel in task.moving)
    if cloud.axes != task.axes or cloud.moving != moving:
        own, trained = ("move" if names else "rest" for names in (cloud.moving, moving))
        raise DataError(
            f"{path}: has the axes {', '.join(cloud.axes)} and points that {own}; the run was trained on "
            f"{', '.join(task.axes)} and points that {trained}"
        )
    if not moving:
        places = Places(coords=start.place_arrays["coords"], mask=start.place_arrays["point_mask"])
        check_inside(str(path), places, task, tuple(axis for axis, wraps in enumerate(task.periodic) if wraps))
    names = tuple(item.name for item in task.inputs)
    found = source.input_channels
    if found != names:
        raise DataError(
            f"{path}: gives the fields {', '.join(found) or 'none'}, the run was trained with "
            f"{', '.join(names) or 'none'}; write those as `inputs`"
        )
    return start


def _of_numpy(path: Path, task: Task, context: int) -> Start:
    arrays = _load(path)
    names = [item.name for item in task.own_coefficients]
    fields = {name: values for name, values in arrays.items() if name not in names}
    if len(fields) != 1:
        raise DataError(
            f"{path}: holds the arrays {', '.join(arrays) or 'none'}; give one array of fields"
            + (f", and the coefficients {', '.join(names)} by name" if names else "")
        )
    samples = _samples(str(path), next(iter(fields.values())), task, context)
    coefficients = {}
    for name in arrays.keys() & set(names):
        if arrays[name].shape not in ((), (len(samples),)):
            raise DataError(f"{path}: {name} has shape {arrays[name].shape}; give one number, or one a sample")
        coefficients[name] = np.broadcast_to(arrays[name].astype(np.float64), (len(samples),))
    return Start(
        name=str(path),
        fields=samples,
        numbers=np.arange(len(samples)),
        coordinates=tuple(lines(task)),
        coefficients=coefficients,
    )


def _load(path: Path) -> dict[str, np.ndarray]:
    try:
        # Opened here, as NumPy leaves one that it cannot read open.
        with path.open("rb") as file:
            loaded = np.load(file, allow_pickle=False)
            arrays = {"fields": loaded} if isinstance(loaded, np.ndarray) else {key: loaded[key] for key in loaded}
    except NUMPY_ERRORS as error:
        raise DataError(f"{path}: is not a NumPy file of plain numbers ({first_line(error)})") from None
    for name, values in arrays.items():
        if values.dtype.kind not in "fiu":
            raise DataError(f"{path}: {name} holds {values.dtype}, not real numbers")
    return arrays


def _samples(name: str, array: np.ndarray, task: Task, context: int) -> Float[np.ndarray, "n k *s c"]:
    """The array with all its axes; samples, frames and a single channel may be left out."""
    frame = (*task.shape, len(task.channels))
    fields = array.astype(np.float32)
    if fields.shape[-len(frame) :] != frame and len(task.channels) == 1:
        fields = fields[..., None]
    leading = fields.ndim - len(frame)
    if fields.shape[-len(frame) :] != frame or leading not in (0, 1, 2):
        axes = ", ".join(f"{axis}={points}" for axis, points in zip(task.axes, task.shape, strict=True))
        channels = f"channels={len(task.channels)} ({', '.join(task.channels)})"
        raise DataError(
            f"{name}: has shape {array.shape}; this run takes (samples, frames={context}, {axes}, {channels}); "
            "the first two and a single channel may be left out"
        )
    if leading == 0:
        fields = fields[None, None]
    elif leading == 1:
        # Without a frames axis there is one frame a sample; a run that takes more is given one sample.
        fields = fields[:, None] if context == 1 else fields[None]
    if fields.shape[1] < context or len(fields) == 0:
        raise DataError(
            f"{name}: has shape {array.shape}, {fields.shape[1]} frame(s) of {len(fields)} sample(s); this run takes "
            f"{context} frame(s) of each"
        )
    return fields[:, :context]


def _check_grid(name: str, shape: tuple[int, ...], spacing: tuple[float, ...], task: Task) -> None:
    if shape != task.shape or not np.allclose(spacing, task.spacing, rtol=1e-3, atol=0):
        raise DataError(
            f"{name}: its grid is {_grid(shape, spacing)}, the run was trained on {_grid(task.shape, task.spacing)}; "
            "interpolate the fields to that"
        )


def _grid(shape: tuple[int, ...], spacing: tuple[float, ...]) -> str:
    return " x ".join(map(str, shape)) + f" points {' and '.join(f'{step:.4g}' for step in spacing)} apart"
