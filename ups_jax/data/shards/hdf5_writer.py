"""Any source as one HDF5 file, in the layout of PDEBench that keeps its channels and their order."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from pathlib import Path

import h5py
import numpy as np
from jaxtyping import Float32

from ups_jax.core.errors import DataError
from ups_jax.core.files import whole_file
from ups_jax.data.sources import ShardsSource, Source, layout_of
from ups_jax.data.sources.base import all_coefficients
from ups_jax.data.sources.detect import TEXTS, attribute
from ups_jax.data.sources.pdebench_cfd import ordered

_READ_BYTES = 64 * 2**20


def write_hdf5(
    path: Path,
    out: Path,
    channels: tuple[str, ...] | None = None,
    *,
    overwrite: bool = False,
    report: Callable[[str], None] = lambda _: None,
) -> str:
    """Write the file `out` of a folder of shards, or any other data; the name of its layout.

    Raises `DataError` for data that cannot be read or a file that is there, `StorageError` where the disk is full.
    """
    if out.exists() and not overwrite:
        raise DataError(f"{out}: is there already; replace it with --overwrite, or give another name")
    source = layout_of(path).open(path, channels)
    layout = _layout(source)
    with whole_file(out) as temporary, _Watched(temporary) as handle:
        try:
            with h5py.File(handle, "w") as file:
                for name in TEXTS:
                    if text := attribute(path, name):
                        file.attrs[name] = text
                _WRITERS[layout](file, source, report)
        except Exception:
            # HDF5 answers a full disk in many ways; what the disk said is known here.
            if handle.failure is not None:
                raise handle.failure from None
            raise
    return layout


def _layout(source: Source) -> str:
    if source.input_channels:
        if source.input_channels != ("nu",) or source.channels != 1 or len(source.grid.shape) != 2:
            raise DataError(
                f"{source.name}: gives {', '.join(source.input_channels)} on {len(source.grid.shape)} axes; as HDF5 "
                "steady data has one channel for the permeability nu on two axes"
            )
        return "pdebench darcy"
    if min(source.grid.shape) < 2:
        raise DataError(f"{source.name}: an axis has one point, from which an HDF5 file cannot tell the spacing")
    if source.channels == 1 and not source.channel_names:
        return "pdebench tensor"
    kept = source.channel_names and ordered(source.channel_names) == source.channel_names
    return "pdebench cfd" if kept and "tensor" not in source.channel_names else "pdebench seeds"


def _darcy(file: h5py.File, source: Source, report: Callable[[str], None]) -> None:
    shape = source.grid.shape
    given = file.create_dataset("nu", (source.trajectories, *shape), np.float32)
    solved = file.create_dataset("tensor", (source.trajectories, 1, *shape), np.float32)
    for trajectory, _, fields in _pieces(source, report):
        solved[trajectory] = fields[..., 0]
        given[trajectory] = source.inputs(np.array([trajectory]))[0, ..., 0]
    _axes(file, source, "", "-coordinate", 0)
    _parameters(file, source)


def _channels(file: h5py.File, source: Source, report: Callable[[str], None]) -> None:
    shape = (source.trajectories, source.frames, *source.grid.shape)
    datasets = [file.create_dataset(name, shape, np.float32) for name in source.channel_names or ("tensor",)]
    for trajectory, start, fields in _pieces(source, report):
        for channel, dataset in enumerate(datasets):
            dataset[trajectory, start : start + len(fields)] = fields[..., channel]
    # PDEBench stores one time more than there are frames.
    _axes(file, source, "", "-coordinate", source.frames + 1)
    _parameters(file, source)


def _seeds(file: h5py.File, source: Source, report: Callable[[str], None]) -> None:
    if source.channel_names:
        file.attrs["channels"] = ", ".join(source.channel_names)
    known = all_coefficients(source)
    width = max(4, len(str(source.trajectories - 1)))
    for trajectory, start, fields in _pieces(source, report):
        key = f"{trajectory:0{width}d}"
        if start == 0:
            data = file.create_dataset(f"{key}/data", (source.frames, *fields.shape[1:]), np.float32)
            _axes(file, source, f"{key}/grid/", "", source.frames)
            own = {name: values[trajectory] for name, values in known.items() if not np.isnan(values[trajectory])}
            if own:
                file[key].attrs["config"] = "".join(f"{name}: {float(value)!r}\n" for name, value in own.items())
        data[start : start + len(fields)] = fields


_WRITERS = {"pdebench darcy": _darcy, "pdebench tensor": _channels, "pdebench cfd": _channels, "pdebench seeds": _seeds}


def _pieces(source: Source, report: Callable[[str], None]) -> Iterator[tuple[int, int, Float32[np.ndarray, "t *s c"]]]:
    """All fields in their order, some frames at a time: trajectory, first frame, values."""
    step = max(1, _READ_BYTES // (4 * source.channels * int(np.prod(source.grid.shape))))
    if isinstance(source, ShardsSource):
        # Whole records, so that none is read twice.
        each = source.manifest.record_frames
        step = max(each, step // each * each)
    for trajectory in range(source.trajectories):
        report(f"trajectory {trajectory} of {source.trajectories}")
        for start in range(0, source.frames, step):
            frames = np.arange(start, min(start + step, source.frames))
            yield trajectory, start, source.windows(np.array([trajectory]), frames[None])[0]


def _axes(file: h5py.File, source: Source, prefix: str, suffix: str, times: int) -> None:
    """Coordinates with `times` of the frames, each with the start and step that reading takes to the last bit."""
    grid = source.grid
    ends = [*zip(grid.axes, grid.origin, grid.spacing, grid.shape, strict=True), ("t", grid.start, grid.dt, times)]
    for axis, start, step, points in ends[: None if times else -1]:
        file[f"{prefix}{axis}{suffix}"] = start + step * np.arange(points)
        file[f"{prefix}{axis}{suffix}"].attrs.update({"start": start, "step": step})


def _parameters(file: h5py.File, source: Source) -> None:
    for name, values in all_coefficients(source).items():
        file[f"parameters/{name}"] = np.asarray(values, np.float64)


class _Watched(io.FileIO):
    """A file that remembers what the disk answered first where it could not be written."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, "r+")
        self.failure: OSError | None = None

    def write(self, data: object, /) -> int:
        """All of it, where the system takes less at a time."""
        left = memoryview(data).cast("B")  # type: ignore[arg-type]
        size = len(left)
        try:
            while left:
                left = left[super().write(left) :]
        except OSError as error:
            self.failure = self.failure or error
            raise
        return size
