"""What the HDF5 layouts share: a handle per process, coordinates, and where PDE coefficients may stand.

The handle is opened in the process that reads and stays behind when a source is pickled.
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
from ups_jax.data.sources.base import AXES, Grid, uniform

# What is to be done about values in other files.
_COPY = "which is not opened; copy the values into this file"
_NUMBER = r"([0-9]+\.?[0-9]*(?:[eE][-+]?[0-9]+)?)"
# Numbers among the root attributes that say how a file was made.
_NO_COEFFICIENTS = ("seed", "latestIndex", "dt", "members", "given_frames", "checkpoint_step")


class HDF5File:
    """A file that several threads and processes read; `mend` ends the messages."""

    def __init__(self, path: str | Path, mend: str) -> None:
        self.path = Path(path)
        self.name = str(path)
        self._mend = mend
        self._handle: h5py.File | None = None
        self._process = -1
        self._is_own = False
        self._lock = threading.Lock()
        if not self.path.is_file():
            raise DataError(f"{path}: there is no such file; {mend}")

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_handle": None, "_process": -1, "_lock": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state | {"_lock": threading.Lock()})

    @contextmanager
    def reading(self) -> Iterator[h5py.File]:
        """The open file, for one thread at a time."""
        with self._lock:
            try:
                # An HDF5 handle that came through a fork shares its file position with the parent.
                if self._handle is None or self._process != os.getpid():
                    handle = h5py.File(self.path, "r", locking=False)
                    if not self._is_own:
                        _check_own(self.path, handle)
                        # Once for a file with many groups, not in each process again.
                        self._is_own = True
                    self._handle, self._process = handle, os.getpid()
                yield self._handle
            except Exception as error:
                # HDF5 answers a damaged file in many ways: OSError, RuntimeError, KeyError, ValueError.
                if not is_of_hdf5(error):
                    raise
                raise DataError(f"{self.path}: {_reason(self.path, error, self._mend)}") from None


class HDF5Source(HDF5File):
    """What the sources of HDF5 files share; without further ado they have no given fields."""

    trajectories: int
    grid: Grid
    input_channels: tuple[str, ...] = ()
    # Names that PDEBench writes into file names; any declared name is looked for there too.
    known_in_names: tuple[str, ...] = ("nu", "beta", "rho", "eta", "zeta")

    def __init__(self, path: str | Path, mend: str) -> None:
        super().__init__(path, mend)
        self._coefficients: dict[str, Any] = {}

    def inputs(self, ids: Int[np.ndarray, " b"]) -> Float32[np.ndarray, "b *s i"]:
        """The given fields of the given solutions; none here, so that the width is 0."""
        return np.empty((len(ids), *self.grid.shape, 0), np.float32)

    def coefficient(self, name: str) -> Float[np.ndarray, " n"] | None:
        """Looked up as dataset, then root attribute, then number after the name in the file name; any case."""
        found = self._coefficients.get(name.lower())
        if found is None:
            found = from_file_name(self.path, name)
        return None if found is None else np.broadcast_to(np.asarray(found, np.float64), (self.trajectories,))

    def found_coefficients(self) -> tuple[str, ...]:
        """Names of what looks like a coefficient."""
        in_name = (name.lower() for name in self.known_in_names if from_file_name(self.path, name) is not None)
        return tuple(dict.fromkeys((*self._coefficients, *in_name)))


def dataset_of(name: str, file: h5py.Group, key: str, mend: str) -> h5py.Dataset:
    """A dataset that there is, with a shape. Raises `DataError`."""
    found = file.get(key)
    if not isinstance(found, h5py.Dataset) or found.shape is None:
        raise DataError(f"{name}: has no dataset `{key}`; {mend}")
    return found


def check_float(name: str, label: str, dataset: h5py.Dataset, mend: str) -> None:
    """Raise `DataError` for a dataset of other than floating-point numbers."""
    if dataset.dtype.kind != "f":
        raise DataError(f"{name}: `{label}` holds {dataset.dtype}, not floating-point numbers; {mend}")


def number_of(attributes: h5py.AttributeManager, key: str) -> float | None:
    """A finite number among attributes, None where there is none of that name, or something else."""
    value = np.asarray(attributes.get(key, ""))
    usable = value.size == 1 and value.dtype.kind in "fiub" and bool(np.isfinite(value).all())
    return float(value.item()) if usable else None


def text_of(attributes: h5py.AttributeManager, key: str, default: str = "") -> str:
    """An attribute as text, which may be stored as bytes."""
    value = attributes.get(key, default)
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)


def coordinate(name: str, file: h5py.File, dataset: str, lengths: tuple[int, ...], why: str) -> Float[np.ndarray, " n"]:
    """A coordinate's values. Raises `DataError` unless it has one of `lengths` and floating-point numbers."""
    found = dataset_of(name, file, dataset, "add the coordinates")
    if found.ndim != 1 or len(found) not in lengths:
        raise DataError(f"{name}: `{dataset}` has shape {found.shape}, it must have {lengths[0]} entries ({why})")
    check_float(name, dataset, found, "store it as float64")
    return np.asarray(found)


def grid_of(name: str, file: h5py.File, what: str, shape: tuple[int, ...]) -> Grid:
    """Grid and times of a dataset `what` of (N, T, *S), from `x-coordinate`, .. and `t-coordinate`. Raises `DataError`.

    PDEBench stores one time more than there are frames, the end of the last step.
    """
    axes = [f"{axis}-coordinate" for axis in AXES if f"{axis}-coordinate" in file]
    if not axes:
        raise DataError(f"{name}: has no dataset `x-coordinate`; add the grid's coordinates, one for each point")
    if "t-coordinate" not in file:
        raise DataError(
            f"{name}: has no dataset `t-coordinate`; add the times of the frames (for steady data set kind: steady)"
        )
    if len(shape) != 2 + len(axes):
        wanted = ", ".join(["N", "T", "X", "Y", "Z"][: 2 + len(axes)])
        raise DataError(
            f"{name}: `{what}` has shape {shape}, with {' and '.join(axes)} it must be ({wanted}); "
            "reshape it, or add the coordinates of its other axes"
        )
    times = coordinate(name, file, "t-coordinate", (shape[1], shape[1] + 1), f"or one more: `{what}` is {shape}")
    origin, spacing = space_axes(name, file, axes, shape[2:], f"as axis of `{what}` {shape}")
    start, dt = line(file["t-coordinate"], times[: shape[1]], f"{name}: `t-coordinate`", "store frames at even times")
    return Grid(shape=shape[2:], origin=origin, spacing=spacing, start=start, dt=dt)


def space_axes(
    name: str, file: h5py.File, datasets: Sequence[str], shape: tuple[int, ...], why: str
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Origin and spacing of the axes whose coordinates are `datasets`. Raises `DataError`."""
    ends = []
    for dataset, points in zip(datasets, shape, strict=True):
        values = coordinate(name, file, dataset, (points,), why)
        ends.append(line(file[dataset], values, f"{name}: `{dataset}`", "interpolate the fields to a uniform grid"))
    return tuple(first for first, _ in ends), tuple(step for _, step in ends)


def line(dataset: h5py.Dataset, values: Float[np.ndarray, " n"], what: str, mend: str) -> tuple[float, float]:
    """First value and spacing of a dataset's `values`: to the last bit where its attributes say them.

    Differences of rounded coordinates give the spacing back to some digits only.
    """
    found = uniform(values, what, mend)
    start, step = number_of(dataset.attrs, "start"), number_of(dataset.attrs, "step")
    if start is None or step is None or not np.allclose((start, step), found, rtol=1e-6, atol=1e-6 * found[1]):
        return found
    return start, step


def coefficients(name: str, file: h5py.File, trajectories: int) -> Iterator[tuple[str, Any]]:
    """Attributes first, then datasets: of two with one name the dataset wins, under `parameters` before the root."""
    for key, value in file.attrs.items():
        if np.size(value) == 1 and np.asarray(value).dtype.kind in "fiu" and key not in _NO_COEFFICIENTS:
            yield key.lower(), float(np.asarray(value).item())
    for group in (file, file.get("parameters", {})):
        for key, item in group.items() if isinstance(group, h5py.Group) else ():
            reserved = key == "tensor" or key.endswith("-coordinate")
            if not reserved and isinstance(item, h5py.Dataset) and item.dtype.kind in "fiu":
                if item.shape == (trajectories,):
                    yield key.lower(), np.asarray(item, np.float64)
                elif group is not file:
                    raise DataError(
                        f"{name}: `parameters/{key}` has shape {item.shape}, "
                        f"it must be ({trajectories},): one value for each trajectory"
                    )


def _check_own(path: Path, file: h5py.File) -> None:
    """Raise `DataError` where something in a file lies in another one, which HDF5 would open by its name, or has a
    name that is no text, which h5py would give as bytes."""

    def elsewhere(name: bytes, link: Any) -> str | None:
        if not _is_text(name):
            return f"{name!r:.200} is no name in UTF-8; write the file again with another one"
        if link.type == h5py.h5l.TYPE_SOFT:
            # Leads to another name in this file.
            return None
        told = f"`{name.decode()}`"
        if link.type != h5py.h5l.TYPE_HARD:
            return f"{told} is a link to another file, {_COPY}"
        item = h5py.h5o.open(file.id, name)
        if not isinstance(item, h5py.h5d.DatasetID):
            return None
        made = item.get_create_plist()
        if made.get_external_count():
            return f"{told} has its values in another file, {_COPY}"
        # "." is the file itself.
        is_virtual = made.get_layout() == h5py.h5d.VIRTUAL
        if is_virtual and any(made.get_virtual_filename(i) != "." for i in range(made.get_virtual_count())):
            return f"{told} is put together of other files, {_COPY}"
        return None

    found = file.id.links.visit(elsewhere, info=True)
    if found is not None:
        file.close()
        raise DataError(f"{path}: {found}")


def _is_text(name: bytes) -> bool:
    try:
        name.decode()
    except UnicodeDecodeError:
        return False
    return True


def from_file_name(path: Path, name: str) -> float | None:
    found = re.search(rf"(?<![a-z]){re.escape(name)}[=_]?{_NUMBER}", path.stem, re.IGNORECASE)
    return float(found.group(1)) if found else None


def is_of_hdf5(error: BaseException) -> bool:
    """Whether the system or h5py raised it, which says that the file is damaged in more than one way."""
    if isinstance(error, OSError):
        return True
    trace = error.__traceback__
    names = []
    while trace is not None:
        names.append(trace.tb_frame.f_code.co_filename)
        trace = trace.tb_next
    return "h5py" in names[-1]


def _reason(path: Path, error: Exception, mend: str) -> str:
    text = " ".join(str(error).split())
    if isinstance(error, PermissionError) or "Permission denied" in text:
        return "may not be read by this user; change its permissions"
    if "truncated" in text:
        return "is truncated; copy, download or generate it again"
    if path.is_file() and not h5py.is_hdf5(path):
        return f"is not an HDF5 file; {mend}"
    return f"is damaged ({text}); copy, download or generate it again"
