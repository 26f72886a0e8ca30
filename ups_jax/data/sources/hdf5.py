"""Base classes and helpers for HDF5 layouts: file handles, coordinates and PDE coefficients.

Each process opens its own handle of a file: a pickled source does not contain one.
"""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from jaxtyping import Float, Float32, Int

from ups_jax.core.errors import DataError
from ups_jax.data.sources.base import AXES, Grid, start_and_step

_COPY_HINT = "which is not opened; copy the values into this file"
_NUMBER = r"([0-9]+\.?[0-9]*(?:[eE][-+]?[0-9]+)?)"
# Numeric root attributes that describe how a file was produced.
_NO_COEFFICIENTS = ("seed", "latestIndex", "dt", "members", "given_frames", "checkpoint_step")


class HDF5File:
    """An HDF5 file that several threads and processes read. Raises `DataError` if it does not exist.

    Error messages end with `hint`, which says how to fix the file.
    """

    def __init__(self, path: str | Path, hint: str) -> None:
        self.path = Path(path)
        self.name = str(path)
        self._hint = hint
        self._handle: h5py.File | None = None
        self._process = -1
        self._is_self_contained = False
        self._lock = threading.Lock()
        if not self.path.is_file():
            raise DataError(f"{path}: does not exist; {hint}")

    @property
    def files(self) -> tuple[Path, ...]:
        """The files that are read."""
        return (self.path,)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_handle": None, "_process": -1, "_lock": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state | {"_lock": threading.Lock()})

    @contextmanager
    def open(self) -> Iterator[h5py.File]:
        """Open the file for reading. Only one thread at a time has it open; errors of h5py become a `DataError`."""
        with self._lock:
            try:
                # A handle inherited through a fork shares its file position with the parent process.
                if self._handle is None or self._process != os.getpid():
                    handle = h5py.File(self.path, "r", locking=False)
                    # Pickled with the source: the check takes long for files with many groups.
                    if not self._is_self_contained:
                        _check_self_contained(self.path, handle)
                        self._is_self_contained = True
                    self._handle, self._process = handle, os.getpid()
                yield self._handle
            except Exception as error:
                # h5py raises OSError, RuntimeError, KeyError or ValueError for damaged files.
                if not is_hdf5_error(error):
                    raise
                raise DataError(f"{self.path}: {_error_reason(self.path, error, self._hint)}") from None


class HDF5Source(HDF5File):
    """Base class of sources in HDF5 files, with lookup of coefficients; subclasses may add input fields."""

    trajectories: int
    grid: Grid
    input_channels: tuple[str, ...] = ()
    # Coefficients listed by `coefficient_names` if the file name contains them; PDEBench writes these.
    file_name_coefficients: tuple[str, ...] = ("nu", "beta", "rho", "eta", "zeta")

    def __init__(self, path: str | Path, hint: str) -> None:
        super().__init__(path, hint)
        self._coefficients: dict[str, Any] = {}

    def read_input_fields(self, ids: Int[np.ndarray, " b"]) -> Float32[np.ndarray, "b *s i"]:
        """Return an array without input fields: its last axis has length 0."""
        return np.empty((len(ids), *self.grid.shape, 0), np.float32)

    def coefficient(self, name: str) -> Float[np.ndarray, " n"] | None:
        """Return the values of a coefficient for all trajectories, or None if the source lacks it.

        The value is read from a dataset, else from a root attribute, else from the file name, such as 0.01 for `nu`
        in `burgers_nu0.01.hdf5`. Letter case is ignored.
        """
        value = self._coefficients.get(name.lower())
        if value is None:
            value = number_in_file_name(self.path, name)
        return None if value is None else np.broadcast_to(np.asarray(value, np.float64), (self.trajectories,))

    def coefficient_names(self) -> tuple[str, ...]:
        """Return the names of the numbers in the file and in its name that are probably PDE coefficients."""
        in_name = (
            name.lower() for name in self.file_name_coefficients if number_in_file_name(self.path, name) is not None
        )
        return tuple(dict.fromkeys((*self._coefficients, *in_name)))


def get_dataset(file_name: str, file: h5py.Group, key: str, hint: str) -> h5py.Dataset:
    """Return the dataset `key` of a file. Raises `DataError` if it does not exist or has no values."""
    dataset = file.get(key)
    if not isinstance(dataset, h5py.Dataset) or dataset.shape is None:
        raise DataError(f"{file_name}: has no dataset `{key}`; {hint}")
    return dataset


def read_into(result: Float32[np.ndarray, "..."], dataset: h5py.Dataset, key: tuple[int | slice, ...]) -> None:
    """Read `dataset[key]` into `result`, without a copy if the types are equal, which takes half of the time."""
    if dataset.dtype == result.dtype and result.size:
        dataset.read_direct(result, key)
    else:
        result[...] = dataset[key]


def check_float(file_name: str, label: str, dataset: h5py.Dataset, hint: str) -> None:
    """Raise `DataError` if a dataset does not contain floating-point numbers."""
    if dataset.dtype.kind != "f":
        raise DataError(f"{file_name}: `{label}` contains {dataset.dtype}, not floating-point numbers; {hint}")


def number_attribute(attributes: h5py.AttributeManager, key: str) -> float | None:
    """Return the attribute `key` as a number, or None if it does not exist or is not one finite number."""
    value = np.asarray(attributes.get(key, ""))
    is_number = value.size == 1 and value.dtype.kind in "fiub" and bool(np.isfinite(value).all())
    return float(value.item()) if is_number else None


def text_attribute(attributes: h5py.AttributeManager, key: str, default: str = "") -> str:
    """Return the attribute `key`, stored as a string or as bytes, as a string; `default` if it does not exist."""
    value = attributes.get(key, default)
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)


def read_coordinate(
    file_name: str, file: h5py.File, dataset: str, lengths: tuple[int, ...], reason: str
) -> Float[np.ndarray, " n"]:
    """Return the values of a dataset of coordinates.

    Raises `DataError` if it does not exist, does not contain floats, or has a length that is not in `lengths`. Then the
    message states only the first of the `lengths`, followed by `reason`, which explains it.
    """
    values = get_dataset(file_name, file, dataset, "add the coordinates")
    if values.ndim != 1 or len(values) not in lengths:
        raise DataError(f"{file_name}: `{dataset}` has shape {values.shape}; give {lengths[0]} entries ({reason})")
    check_float(file_name, dataset, values, "store it as float64")
    return np.asarray(values)


def read_grid(file_name: str, file: h5py.File, dataset: str, shape: tuple[int, ...]) -> Grid:
    """Return the grid and times of a PDEBench file from its datasets `t-coordinate`, `x-coordinate` and so on.

    PDEBench stores one time more than there are frames: the end of the last step.

    Raises `DataError` if coordinates are missing, are not evenly spaced, or do not match `shape`, which is the shape
    (N, T, *S) of the dataset called `dataset`.
    """
    axes = [f"{axis}-coordinate" for axis in AXES if f"{axis}-coordinate" in file]
    if not axes:
        raise DataError(f"{file_name}: has no dataset `x-coordinate`; add the coordinates of the grid points")
    if "t-coordinate" not in file:
        raise DataError(
            f"{file_name}: has no dataset `t-coordinate`; add the times of the frames, or set `kind: steady` if the "
            "data are steady"
        )
    if len(shape) != 2 + len(axes):
        expected = ", ".join(["N", "T", "X", "Y", "Z"][: 2 + len(axes)])
        raise DataError(
            f"{file_name}: `{dataset}` has shape {shape}, but the file has only {' and '.join(axes)}; reshape "
            f"`{dataset}` to ({expected}), or add the coordinates of its other axes"
        )
    times = read_coordinate(
        file_name, file, "t-coordinate", (shape[1], shape[1] + 1), f"or one more; `{dataset}` has shape {shape}"
    )
    origin, spacing = read_origin_and_spacing(file_name, file, axes, shape[2:], f"`{dataset}` has shape {shape}")
    start, dt = axis_start_and_step(
        file["t-coordinate"], times[: shape[1]], f"{file_name}: `t-coordinate`", "store frames at evenly spaced times"
    )
    return Grid(shape=shape[2:], origin=origin, spacing=spacing, start=start, dt=dt)


def read_origin_and_spacing(
    file_name: str, file: h5py.File, datasets: Sequence[str], shape: tuple[int, ...], reason: str
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return the origin and the spacing of the grid of this `shape` from one dataset of coordinates for each axis.

    Raises `DataError` if a dataset is missing, is not evenly spaced or does not match `shape`. In the last case the
    message contains `reason`, which explains the shape.
    """
    lines = []
    for dataset, points in zip(datasets, shape, strict=True):
        values = read_coordinate(file_name, file, dataset, (points,), reason)
        lines.append(
            axis_start_and_step(
                file[dataset], values, f"{file_name}: `{dataset}`", "interpolate the fields to a uniform grid"
            )
        )
    return tuple(first for first, _ in lines), tuple(step for _, step in lines)


def axis_start_and_step(
    dataset: h5py.Dataset, values: Float[np.ndarray, " n"], label: str, hint: str
) -> tuple[float, float]:
    """Return the first value and the step of a dataset of evenly spaced coordinates.

    If the dataset has attributes `start` and `step` that agree with its `values`, they are returned, because they have
    more digits than differences of rounded coordinates. Otherwise, `start_and_step` is called.
    """
    measured = start_and_step(values, label, hint)
    start, step = number_attribute(dataset.attrs, "start"), number_attribute(dataset.attrs, "step")
    if start is None or step is None or not np.allclose((start, step), measured, rtol=1e-6, atol=1e-6 * measured[1]):
        return measured
    return start, step


def iterate_coefficients(
    file_name: str, file: h5py.File, trajectories: int
) -> Iterator[tuple[str, float | Float[np.ndarray, " n"]]]:
    """Yield the lower-case name and the value of each number in a file that is probably a PDE coefficient.

    These are numeric root attributes, root datasets with one number for each trajectory, and the datasets in the group
    `parameters`, in this order; if a name occurs again, its last value counts. Raises `DataError` if a dataset in
    `parameters` does not have one number for each trajectory.
    """
    for key, value in file.attrs.items():
        if np.size(value) == 1 and np.asarray(value).dtype.kind in "fiu" and key not in _NO_COEFFICIENTS:
            yield key.lower(), float(np.asarray(value).item())
    for group in (file, file.get("parameters", {})):
        for key, item in group.items() if isinstance(group, h5py.Group) else ():
            is_reserved = key == "tensor" or key.endswith("-coordinate")
            if not is_reserved and isinstance(item, h5py.Dataset) and item.dtype.kind in "fiu":
                if item.shape == (trajectories,):
                    yield key.lower(), np.asarray(item, np.float64)
                elif group is not file:
                    raise DataError(
                        f"{file_name}: `parameters/{key}` has shape {item.shape}; "
                        f"give shape ({trajectories},), one value for each trajectory"
                    )


def _check_self_contained(path: Path, file: h5py.File) -> None:
    """Raise `DataError` if a file refers to another file, or contains a name that is not UTF-8.

    HDF5 would open the other file, and h5py would return the name as bytes instead of text.
    """

    def find_fault(name: bytes, link: Any) -> str | None:
        """Return what is wrong with the link `name`, or None to continue with the next link."""
        if not _is_utf8(name):
            return f"the name {name!r:.200} is not UTF-8; write the file again with another name"
        if link.type == h5py.h5l.TYPE_SOFT:
            # A soft link leads to another name in this file.
            return None
        label = f"`{name.decode()}`"
        if link.type != h5py.h5l.TYPE_HARD:
            return f"{label} is a link to another file, {_COPY_HINT}"
        item = h5py.h5o.open(file.id, name)
        if not isinstance(item, h5py.h5d.DatasetID):
            return None
        properties = item.get_create_plist()
        if properties.get_external_count():
            return f"{label} has its values in another file, {_COPY_HINT}"
        is_virtual = properties.get_layout() == h5py.h5d.VIRTUAL
        # "." is the file itself.
        if is_virtual and any(properties.get_virtual_filename(i) != "." for i in range(properties.get_virtual_count())):
            return f"{label} is a virtual dataset of other files, {_COPY_HINT}"
        return None

    fault = file.id.links.visit(find_fault, info=True)
    if fault is not None:
        file.close()
        raise DataError(f"{path}: {fault}")


def _is_utf8(name: bytes) -> bool:
    try:
        name.decode()
    except UnicodeDecodeError:
        return False
    return True


def number_in_file_name(path: Path, name: str) -> float | None:
    """Return the number that follows `name` in a file name (0.01 for `nu` in `burgers_nu0.01.hdf5`), or None."""
    match = re.search(rf"(?<![a-z]){re.escape(name)}[=_]?{_NUMBER}", path.stem, re.IGNORECASE)
    return float(match.group(1)) if match else None


def is_hdf5_error(error: BaseException) -> bool:
    """Return whether an exception comes from the operating system or h5py, which means that a file is at fault."""
    if isinstance(error, OSError):
        return True
    trace = error.__traceback__
    names = []
    while trace is not None:
        names.append(trace.tb_frame.f_code.co_filename)
        trace = trace.tb_next
    return "h5py" in names[-1]


def _error_reason(path: Path, error: Exception, hint: str) -> str:
    """Return what is wrong with a file that cannot be read and how to fix it, from the exception of h5py."""
    text = " ".join(str(error).split())
    if isinstance(error, PermissionError) or "Permission denied" in text:
        return "cannot be read by this user (permission denied); change its permissions"
    if "truncated" in text:
        return "is truncated; copy, download or generate it again"
    if path.is_file() and not h5py.is_hdf5(path):
        return f"is not an HDF5 file; {hint}"
    return f"is damaged ({text}); copy, download or generate it again"
