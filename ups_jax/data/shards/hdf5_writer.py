"""Conversion of any source to one HDF5 file, in a PDEBench layout that preserves the channels and their order."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import h5py
import numpy as np
from jaxtyping import Float32

from ups_jax.core.errors import DataError
from ups_jax.core.files import atomic_file
from ups_jax.data.sources import ShardsSource, Source, detect_layout
from ups_jax.data.sources.base import all_coefficients
from ups_jax.data.sources.detect import TEXT_ATTRIBUTES, root_attribute
from ups_jax.data.sources.pdebench_cfd import sort_channels

_READ_BYTES = 64 * 2**20


def write_hdf5(
    path: Path,
    out: Path,
    channels: tuple[str, ...] | None = None,
    *,
    overwrite: bool = False,
    report: Callable[[str], None] = lambda _: None,
) -> str:
    """Convert a data file or folder to the HDF5 file `out`, and return the name of the HDF5 layout that was written.

    Args:
        channels: Channels to convert, in this order; all by default.
        report: Called with lines of text about the progress.

    Raises:
        DataError: The data cannot be read or do not fit an HDF5 layout, or the HDF5 file exists.
        StorageError: The disk is full.
    """
    if out.exists() and not overwrite:
        raise DataError(f"{out}: exists already; replace it with `--overwrite`, or give another name")
    source = detect_layout(path).open(path, channels)
    layout = _choose_layout(source)
    with atomic_file(out) as temporary, _ErrorRecordingFile(temporary) as handle:
        try:
            with h5py.File(handle, "w") as file:
                for name in TEXT_ATTRIBUTES:
                    if text := root_attribute(path, name):
                        file.attrs[name] = text
                _WRITERS[layout](file, source, report)
        except Exception:
            # HDF5 reports a full disk in many ways. The recorded error has the system's reason.
            if handle.failure is not None:
                raise handle.failure from None
            raise
    return layout


def _choose_layout(source: Source) -> str:
    """Return the name of the HDF5 layout that fits a source. Raises `DataError` if none fits."""
    if source.input_channels:
        if source.input_channels != ("nu",) or source.channels != 1 or len(source.grid.shape) != 2:
            raise DataError(
                f"{source.name}: has the input fields {', '.join(source.input_channels)}, {source.channels} channels "
                f"and {len(source.grid.shape)} axes; convert only steady data with the input field nu, one channel "
                "and two axes to HDF5"
            )
        return "pdebench darcy"
    if min(source.grid.shape) < 2:
        raise DataError(
            f"{source.name}: an axis has a single point, and an HDF5 file cannot store the grid spacing of such an "
            "axis; use the data without conversion"
        )
    if source.channels == 1 and not source.channel_names:
        return "pdebench tensor"
    is_sorted = source.channel_names and sort_channels(source.channel_names) == source.channel_names
    return "pdebench cfd" if is_sorted and "tensor" not in source.channel_names else "pdebench seeds"


def _write_darcy(file: h5py.File, source: Source, report: Callable[[str], None]) -> None:
    """Write steady solutions as the dataset `tensor`, and their permeabilities as `nu`."""
    shape = source.grid.shape
    permeability = file.create_dataset("nu", (source.trajectories, *shape), np.float32)
    solution = file.create_dataset("tensor", (source.trajectories, 1, *shape), np.float32)
    for trajectory, _, fields in _iterate_chunks(source, report):
        solution[trajectory] = fields[..., 0]
        permeability[trajectory] = source.read_input_fields(np.array([trajectory]))[0, ..., 0]
    _write_axes(file, source, "", "-coordinate", 0)
    _write_coefficients(file, source)


def _write_channels(file: h5py.File, source: Source, report: Callable[[str], None]) -> None:
    """Write one dataset for each channel, or the dataset `tensor` for a single channel without a name."""
    shape = (source.trajectories, source.frames, *source.grid.shape)
    datasets = [file.create_dataset(name, shape, np.float32) for name in source.channel_names or ("tensor",)]
    for trajectory, start, fields in _iterate_chunks(source, report):
        for channel, dataset in enumerate(datasets):
            dataset[trajectory, start : start + len(fields)] = fields[..., channel]
    # PDEBench stores one more time than there are frames.
    _write_axes(file, source, "", "-coordinate", source.frames + 1)
    _write_coefficients(file, source)


def _write_seeds(file: h5py.File, source: Source, report: Callable[[str], None]) -> None:
    """Write one group for each trajectory, with its coefficients in the attribute `config`."""
    if source.channel_names:
        file.attrs["channels"] = ", ".join(source.channel_names)
    coefficients = all_coefficients(source)
    width = max(4, len(str(source.trajectories - 1)))
    for trajectory, start, fields in _iterate_chunks(source, report):
        key = f"{trajectory:0{width}d}"
        if start == 0:
            data = file.create_dataset(f"{key}/data", (source.frames, *fields.shape[1:]), np.float32)
            _write_axes(file, source, f"{key}/grid/", "", source.frames)
            numbers = {
                name: values[trajectory] for name, values in coefficients.items() if not np.isnan(values[trajectory])
            }
            if numbers:
                file[key].attrs["config"] = "".join(f"{name}: {float(value)!r}\n" for name, value in numbers.items())
        data[start : start + len(fields)] = fields


_WRITERS = {
    "pdebench darcy": _write_darcy,
    "pdebench tensor": _write_channels,
    "pdebench cfd": _write_channels,
    "pdebench seeds": _write_seeds,
}


class _Chunk(NamedTuple):
    """Consecutive frames of a trajectory."""

    trajectory: int
    first_frame: int
    fields: Float32[np.ndarray, "t *s c"]


def _iterate_chunks(source: Source, report: Callable[[str], None]) -> Iterator[_Chunk]:
    """Yield all frames of all trajectories in chunks of about 64 MiB."""
    step = max(1, _READ_BYTES // (4 * source.channels * int(np.prod(source.grid.shape))))
    if isinstance(source, ShardsSource):
        # Chunks of whole records, so that no record is read twice.
        record_frames = source.manifest.record_frames
        step = max(record_frames, step // record_frames * record_frames)
    for trajectory in range(source.trajectories):
        report(f"trajectory {trajectory} of {source.trajectories}")
        for start in range(0, source.frames, step):
            frames = np.arange(start, min(start + step, source.frames))
            yield _Chunk(trajectory, start, source.read(np.array([trajectory]), frames[None])[0])


def _write_axes(file: h5py.File, source: Source, prefix: str, suffix: str, time_count: int) -> None:
    """Write the coordinates of the grid, and `time_count` times, to datasets with this prefix and suffix.

    The attributes `start` and `step` of the datasets preserve the exact numbers for sources that read the file.
    """
    grid = source.grid
    axes = [*zip(grid.axes, grid.origin, grid.spacing, grid.shape, strict=True), ("t", grid.start, grid.dt, time_count)]
    for axis, start, step, size in axes[: None if time_count else -1]:
        file[f"{prefix}{axis}{suffix}"] = start + step * np.arange(size)
        file[f"{prefix}{axis}{suffix}"].attrs.update({"start": start, "step": step})


def _write_coefficients(file: h5py.File, source: Source) -> None:
    """Write every coefficient as a dataset with one value for each trajectory."""
    for name, values in all_coefficients(source).items():
        file[f"parameters/{name}"] = np.asarray(values, np.float64)


class _ErrorRecordingFile(io.FileIO):
    """A file that keeps the first exception of its method `write` as the attribute `failure`."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, "r+")
        self.failure: OSError | None = None

    def write(self, data: object, /) -> int:
        """Write all bytes, even if the system writes fewer in one call, and return their number."""
        remaining = memoryview(data).cast("B")  # type: ignore[arg-type]
        size = len(remaining)
        try:
            while remaining:
                remaining = remaining[super().write(remaining) :]
        except OSError as error:
            self.failure = self.failure or error
            raise
        return size
