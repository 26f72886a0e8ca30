"""Files of predicted states: HDF5 in PDEBench's layout, written while a rollout runs; xarray opens them."""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from jaxtyping import Float

from ups_jax.core.errors import ConfigError
from ups_jax.core.files import storage_error
from ups_jax.core.task import Task
from ups_jax.data.sources.base import AXES
from ups_jax.data.sources.points import LAYOUT
from ups_jax.inference.initial_state import InitialState

_ROW, _TIME, _MEMBER = "trajectory-coordinate", "t-coordinate", "member-coordinate"


class StateFile:
    """An HDF5 file of predicted states on a grid.

    A single channel is the dataset `tensor` (rows, time, *space); several channels are one dataset each. Each row
    is a trajectory, or one member of a trajectory's ensemble: these members have consecutive rows and their indices in
    `member-coordinate`. Frames that were not written are NaN.

    Attributes:
        path: The finished file.
        partial: The temporary file, which `finish` renames to `path`.
        context_frames: Number of context frames, which are stored before the predicted frames.
    """

    def __init__(
        self, path: Path, start: InitialState, task: Task, steps: int, members: int, *, overwrite: bool
    ) -> None:
        """Create the temporary file with the context frames.

        Args:
            steps: Largest number of predicted frames.
            members: Number of ensemble members of each trajectory.
            overwrite: Whether `finish` may replace an existing file.

        Raises:
            ConfigError: The file exists and `overwrite` is False.
            StorageError: The file cannot be written.
        """
        self.path, self.partial = path, path.with_name(f"{path.name}.partial")
        if path.is_dir() or (path.exists() and not overwrite):
            raise ConfigError(f"{path}: already exists; give another --output, or replace it with --overwrite")
        self.context_frames = start.fields.shape[1]
        self._members = members
        self._names = self.dataset_names(task)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._raw_file = _RawFile(self.partial, "w+")
        except OSError as error:
            raise storage_error(self.partial, error) from None
        with self._raise_storage_errors():
            self._file = h5py.File(self._raw_file, "w")
            self._create_datasets(start, task, self.context_frames + steps)
            self._write_rows(slice(None), 0, np.repeat(start.fields, members, axis=0))

    # Name of the dataset that contains the time of each frame.
    time_dataset = _TIME

    def dataset_names(self, task: Task) -> tuple[str, ...]:
        """Return the name of the dataset of each channel."""
        return channel_dataset_names(task)

    def write(self, rows: slice, first: int, frames: Float[np.ndarray, "m b t *s c"]) -> None:
        """Write predicted frames of some trajectories.

        Args:
            rows: The trajectories, as a slice.
            first: Index of the first of these frames among all predicted frames.
            frames: Fields of every ensemble member, in physical units.
        """
        by_row = np.moveaxis(frames, 0, 1).reshape(-1, *frames.shape[2:])
        file_rows = slice(rows.start * self._members, rows.stop * self._members)
        with self._raise_storage_errors():
            self._write_rows(file_rows, self.context_frames + first, by_row)
            self._file.flush()

    def finish(self, frames: int, attributes: Mapping[str, str | int | float]) -> None:
        """Complete the file: cut it after `frames` predicted frames, write the attributes and rename it to `path`."""
        self.close_partial(frames, attributes)
        with self._raise_storage_errors():
            with self.partial.open("rb+") as file:
                os.fsync(file.fileno())
            os.replace(self.partial, self.path)

    def close_partial(self, frames: int, attributes: Mapping[str, str | int | float]) -> None:
        """Cut the temporary file after `frames` predicted frames, write the attributes and close it."""
        with self._raise_storage_errors():
            for name in dict.fromkeys((*self._names, self.time_dataset)):
                axis = 0 if name == self.time_dataset else 1
                self._file[name].resize(self.context_frames + frames, axis=axis)
            self._file.attrs.update(attributes)
            self._file.close()
            self._raw_file.close()

    def _create_datasets(self, start: InitialState, task: Task, frames: int) -> None:
        """Create the datasets of coordinates, coefficients and fields for `frames` frames."""
        count = len(start.fields) * self._members
        axes = [f"{axis}-coordinate" for axis in task.axes]
        coordinates = {
            _ROW: np.repeat(start.sample_ids, self._members),
            _TIME: start.time + task.dt * np.arange(frames),
            **dict(zip(axes, start.coordinates, strict=True)),
        }
        for name, values in coordinates.items():
            limit = (None,) if name == _TIME else values.shape
            self._file.create_dataset(name, data=values, maxshape=limit).make_scale(name)
        for name in self._names:
            dataset = self._file.create_dataset(
                name,
                shape=(count, frames, *task.shape),
                maxshape=(count, None, *task.shape),
                chunks=(1, min(frames, 16), *task.shape),
                dtype=np.float32,
                fillvalue=np.float32(np.nan),
            )
            for axis, scale in enumerate((_ROW, _TIME, *axes)):
                dataset.dims[axis].attach_scale(self._file[scale])
        row_values = {
            f"parameters/{name}": np.repeat(values, self._members) for name, values in start.coefficients.items()
        }
        if self._members > 1:
            row_values[_MEMBER] = np.tile(np.arange(self._members), len(start.fields))
        for name, values in row_values.items():
            self._file[name] = values
            self._file[name].dims[0].attach_scale(self._file[_ROW])

    def _write_rows(self, rows: slice, first: int, frames: Float[np.ndarray, "r t *s c"]) -> None:
        """Write `frames` into the file: to the given rows, from the time index `first` on."""
        for channel, name in enumerate(self._names):
            self._file[name][rows, first : first + frames.shape[1]] = frames[..., channel]

    @contextlib.contextmanager
    def _raise_storage_errors(self) -> Iterator[None]:
        """Raise `StorageError`, and close the file, if a write in this context fails."""
        try:
            yield
            if self._raw_file.error is not None:
                raise self._raw_file.error
        except (OSError, RuntimeError) as error:
            with contextlib.suppress(OSError, RuntimeError, AttributeError):
                self._file.close()
            cause = error if isinstance(error, OSError) else OSError(str(error))
            raise storage_error(self.partial, cause) from None


class PointStateFile(StateFile):
    """An HDF5 file of predicted states on a point cloud, in the points layout of `ups_jax.data.sources.points`."""

    time_dataset = "time"

    def dataset_names(self, task: Task) -> tuple[str, ...]:
        """Return the name of the dataset of each channel; coordinates of moving points share `positions`."""
        moving = {task.channels[channel] for channel in task.moving}
        return tuple("positions" if name in moving else f"fields/{name.replace('/', '_')}" for name in task.channels)

    def _create_datasets(self, start: InitialState, task: Task, frames: int) -> None:
        """Create the datasets of times, points, fields and coefficients for `frames` frames."""
        count, points = len(start.fields), start.fields.shape[2]
        # A file contains positions in the order of the axes, which may differ from the order of the channels.
        self._axes = {channel: AXES.index(task.channels[channel]) for channel in task.moving}
        self._file.attrs["layout"] = LAYOUT
        self._file.create_dataset("time", data=start.time + task.dt * np.arange(frames), maxshape=(None,))
        for name in dict.fromkeys(self._names):
            axes = (len(task.moving),) if name == "positions" else ()
            self._file.create_dataset(
                name,
                shape=(count, frames, points, *axes),
                maxshape=(count, None, points, *axes),
                chunks=(1, min(frames, 16), points, *axes),
                dtype=np.float32,
                fillvalue=np.float32(np.nan),
            )
        if not task.moving:
            self._file["points"] = start.point_arrays["coords"]
        self._file["mask"] = start.point_arrays["point_mask"].astype(np.uint8)
        for index, item in enumerate(task.inputs):
            self._file[f"inputs/{item.name}"] = start.point_arrays["inputs"][..., index]
        self._file["box"] = np.stack([task.origin, np.add(task.origin, task.box)])
        for name, values in start.coefficients.items():
            self._file[f"parameters/{name}"] = values

    def _write_rows(self, rows: slice, first: int, frames: Float[np.ndarray, "r t *s c"]) -> None:
        """Write `frames` into the file: to the given rows, from the time index `first` on."""
        for channel, name in enumerate(self._names):
            selection = (rows, slice(first, first + frames.shape[1]))
            if name == "positions":
                self._file[name][(*selection, slice(None), self._axes[channel])] = frames[..., channel]
            else:
                self._file[name][selection] = frames[..., channel]


class _RawFile(io.FileIO):
    """The raw file that HDF5 writes to. It keeps the error of the first failed write and ignores all later writes.

    A failed write must not raise: HDF5 would crash the process when it closes the file.
    """

    error: OSError | None = None

    def write(self, data: Any, /) -> int:
        """Write all bytes of `data`, unless an earlier write has failed, and return their number."""
        view = memoryview(data).cast("B")
        self._run_unless_failed(lambda: self._write_all(view))
        return len(view)

    def truncate(self, size: int | None = None, /) -> int:
        """Resize the file, unless an earlier write has failed, and return the new size."""
        self._run_unless_failed(lambda: super(_RawFile, self).truncate(size))
        return self.tell() if size is None else size

    def _write_all(self, view: memoryview) -> None:
        """Write bytes until none remain, because a single write may be partial."""
        while view:
            view = view[super().write(view) :]

    def _run_unless_failed(self, operation: Callable[[], object]) -> None:
        """Call `operation` unless an earlier one has failed; keep its `OSError` instead of raising it."""
        if self.error is None:
            try:
                operation()
            except OSError as error:
                self.error = error


def channel_dataset_names(task: Task) -> tuple[str, ...]:
    """Return the dataset name of each channel: `tensor` if there is one channel, otherwise the channel's name."""
    if len(task.channels) == 1:
        return ("tensor",)
    return tuple(channel.replace("/", "_") for channel in task.channels)
