"""Predicted states as HDF5 in PDEBench's layout, written as they come; xarray opens it with named, numbered axes."""

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
    """`tensor` (rows, time, *space) of one channel, of several a dataset each, by its name; given frames come first.

    A row is a trajectory, and one member of it where there are several: its members follow one another, told apart by
    `member-coordinate`. Until `finish` everything lies in `partial`; frames that were not written are NaN.
    StorageError where the file cannot be written, ConfigError where it is there already.
    """

    def __init__(self, path: Path, start: InitialState, task: Task, steps: int, members: int, *, overwrite: bool) -> None:
        self.path, self.partial = path, path.with_name(f"{path.name}.partial")
        if path.is_dir() or (path.exists() and not overwrite):
            raise ConfigError(f"{path}: is there already; give another --output, or replace it with --overwrite")
        self.given = start.fields.shape[1]
        self._members, self._dt, self._start = members, task.dt, start.time
        self._names = self.names(task)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._disk = _Disk(self.partial, "w+")
        except OSError as error:
            raise storage_error(self.partial, error) from None
        with self._storage_errors():
            self._file = h5py.File(self._disk, "w")
            self._lay_out(start, task, self.given + steps)
            self._put(slice(None), 0, np.repeat(start.fields, members, axis=0))

    # The dataset of the times.
    clock = _TIME

    def names(self, task: Task) -> tuple[str, ...]:
        """The dataset of each channel."""
        return names_of(task)

    def write(self, rows: slice, first: int, frames: Float[np.ndarray, "m b t *s c"]) -> None:
        """Frames `first`, .. after the given ones of the samples `rows`, of every member."""
        by_row = np.moveaxis(frames, 0, 1).reshape(-1, *frames.shape[2:])
        with self._storage_errors():
            self._put(slice(rows.start * self._members, rows.stop * self._members), self.given + first, by_row)
            self._file.flush()

    def finish(self, frames: int, attributes: Mapping[str, str | int | float]) -> None:
        """Keep `frames` predicted ones and the attributes, and give the file its name."""
        self.close_partial(frames, attributes)
        with self._storage_errors():
            with self.partial.open("rb+") as file:
                os.fsync(file.fileno())
            os.replace(self.partial, self.path)

    def close_partial(self, frames: int, attributes: Mapping[str, str | int | float]) -> None:
        """Close the file with `frames` predicted ones under its temporary name."""
        with self._storage_errors():
            for name in dict.fromkeys((*self._names, self.clock)):
                axis = 0 if name == self.clock else 1
                self._file[name].resize(self.given + frames, axis=axis)
            self._file.attrs.update(attributes)
            self._file.close()
            self._disk.close()

    def _lay_out(self, start: InitialState, task: Task, frames: int) -> None:
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
        along_rows = {
            f"parameters/{name}": np.repeat(values, self._members) for name, values in start.coefficients.items()
        }
        if self._members > 1:
            along_rows[_MEMBER] = np.tile(np.arange(self._members), len(start.fields))
        for name, values in along_rows.items():
            self._file[name] = values
            self._file[name].dims[0].attach_scale(self._file[_ROW])

    def _put(self, rows: slice, first: int, frames: Float[np.ndarray, "r t *s c"]) -> None:
        for channel, name in enumerate(self._names):
            self._file[name][rows, first : first + frames.shape[1]] = frames[..., channel]

    @contextlib.contextmanager
    def _storage_errors(self) -> Iterator[None]:
        try:
            yield
            if self._disk.error is not None:
                raise self._disk.error
        except (OSError, RuntimeError) as error:
            with contextlib.suppress(OSError, RuntimeError, AttributeError):
                self._file.close()
            cause = error if isinstance(error, OSError) else OSError(str(error))
            raise storage_error(self.partial, cause) from None


class PointStateFile(StateFile):
    """The same of a set of points, in the layout of points, which `ups_jax.data.sources.points` reads again."""

    clock = "time"

    def names(self, task: Task) -> tuple[str, ...]:
        """The dataset of each channel; those that are coordinates share one."""
        moving = {task.channels[channel] for channel in task.moving}
        return tuple("positions" if name in moving else f"fields/{name.replace('/', '_')}" for name in task.channels)

    def _lay_out(self, start: InitialState, task: Task, frames: int) -> None:
        count, points = len(start.fields), start.fields.shape[2]
        # Positions lie by axis in a file, whatever the channels' order.
        self._axes = {channel: AXES.index(task.channels[channel]) for channel in task.moving}
        self._file.attrs["layout"] = LAYOUT
        self._file.create_dataset("time", data=start.time + task.dt * np.arange(frames), maxshape=(None,))
        for name in dict.fromkeys(self._names):
            last = (len(task.moving),) if name == "positions" else ()
            self._file.create_dataset(
                name,
                shape=(count, frames, points, *last),
                maxshape=(count, None, points, *last),
                chunks=(1, min(frames, 16), points, *last),
                dtype=np.float32,
                fillvalue=np.float32(np.nan),
            )
        if not task.moving:
            self._file["points"] = start.point_arrays["coords"]
        self._file["mask"] = start.point_arrays["point_mask"].astype(np.uint8)
        for place, item in enumerate(task.inputs):
            self._file[f"inputs/{item.name}"] = start.point_arrays["inputs"][..., place]
        self._file["box"] = np.stack([task.origin, np.add(task.origin, task.box)])
        for name, values in start.coefficients.items():
            self._file[f"parameters/{name}"] = values

    def _put(self, rows: slice, first: int, frames: Float[np.ndarray, "r t *s c"]) -> None:
        for channel, name in enumerate(self._names):
            place = (rows, slice(first, first + frames.shape[1]))
            if name == "positions":
                self._file[name][(*place, slice(None), self._axes[channel])] = frames[..., channel]
            else:
                self._file[name][place] = frames[..., channel]


class _Disk(io.FileIO):
    """The file below HDF5. The first failure is kept in `error` and nothing is written from then on: HDF5 cannot close
    a file whose writes fail, and ends the process with a crash where it tries.
    """

    error: OSError | None = None

    def write(self, data: Any, /) -> int:
        view = memoryview(data).cast("B")
        self._try(lambda: self._write_all(view))
        return len(view)

    def truncate(self, size: int | None = None, /) -> int:
        self._try(lambda: super(_Disk, self).truncate(size))
        return self.tell() if size is None else size

    def _write_all(self, view: memoryview) -> None:
        while view:
            view = view[super().write(view) :]

    def _try(self, act: Callable[[], object]) -> None:
        if self.error is None:
            try:
                act()
            except OSError as error:
                self.error = error


def names_of(task: Task) -> tuple[str, ...]:
    """The dataset of each channel: PDEBench's `tensor` for a single one, else the channels' own names."""
    if len(task.channels) == 1:
        return ("tensor",)
    return tuple(channel.replace("/", "_") for channel in task.channels)
