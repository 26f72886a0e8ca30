"""PDEBench's `tensor` files: one scalar field (N, T, X) or (N, T, X, Y) on a uniform grid, with coordinates beside it.

Read window by window; the handle is opened in the process that reads and stays behind when a source is pickled.
"""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from jaxtyping import Float, Float32, Int

from ups_jax.data.sources.base import Grid, uniform
from ups_jax.errors import DataError

_NUMBER = r"([0-9]+\.?[0-9]*(?:[eE][-+]?[0-9]+)?)"
# Names that PDEBench writes into file names; any declared name is looked for there too.
_KNOWN_IN_NAMES = ("nu", "beta", "rho", "eta", "zeta")
_COORDINATES = ("x-coordinate", "y-coordinate")
# Numbers among the root attributes that say how a file was made.
_NO_COEFFICIENTS = ("seed", "latestIndex")
_MEND = "give a file in PDEBench's tensor layout, such as scripts/generate_data.py writes"


class TensorSource:
    """A `tensor` file. Raises `DataError` naming file and dataset for whatever is not as the layout says."""

    channels = 1

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.name = str(path)
        self._handle: h5py.File | None = None
        self._process = -1
        self._lock = threading.Lock()
        if not self.path.is_file():
            raise DataError(f"{path}: there is no such file; {_MEND}")
        with self._reading() as file:
            shape, self.grid = _header(self.name, file)
            self._coefficients = dict(_coefficients(self.name, file, shape[0]))
        self.trajectories, self.frames = shape[:2]

    def windows(self, ids: Int[np.ndarray, " b"], frames: Int[np.ndarray, "b t"]) -> Float32[np.ndarray, "b t *s c"]:
        """The given frames of the given trajectories; frames are evenly spaced."""
        result = np.empty((*frames.shape, *self.grid.shape), np.float32)
        with self._reading() as file:
            tensor = file["tensor"]
            for row, (index, times) in enumerate(zip(ids.tolist(), frames.tolist(), strict=True)):
                step = times[1] - times[0] if len(times) > 1 else 1
                result[row] = tensor[index, times[0] : times[-1] + 1 : step]
        return result[..., None]

    def coefficient(self, name: str) -> Float[np.ndarray, " n"] | None:
        """Looked up as dataset, then root attribute, then number after the name in the file name; any case."""
        found = self._coefficients.get(name.lower())
        if found is None:
            found = _from_file_name(self.path, name)
        return None if found is None else np.broadcast_to(np.asarray(found, np.float64), (self.trajectories,))

    def found_coefficients(self) -> tuple[str, ...]:
        """Names of what looks like a coefficient."""
        in_name = (name for name in _KNOWN_IN_NAMES if _from_file_name(self.path, name) is not None)
        return tuple(dict.fromkeys((*self._coefficients, *in_name)))

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_handle": None, "_process": -1, "_lock": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state | {"_lock": threading.Lock()})

    @contextmanager
    def _reading(self) -> Iterator[h5py.File]:
        with self._lock:
            try:
                # An HDF5 handle that came through a fork shares its file position with the parent.
                if self._handle is None or self._process != os.getpid():
                    self._handle, self._process = h5py.File(self.path, "r", locking=False), os.getpid()
                yield self._handle
            except OSError as error:
                raise DataError(f"{self.path}: {_reason(self.path, error)}") from None


def _reason(path: Path, error: OSError) -> str:
    text = " ".join(str(error).split())
    if isinstance(error, PermissionError) or "Permission denied" in text:
        return "may not be read by this user; change its permissions"
    if "truncated" in text:
        return "is truncated; copy, download or generate it again"
    if path.is_file() and not h5py.is_hdf5(path):
        return f"is not an HDF5 file; {_MEND}"
    return f"is damaged ({text}); copy, download or generate it again"


def _header(name: str, file: h5py.File) -> tuple[tuple[int, ...], Grid]:
    if not isinstance(file.get("tensor"), h5py.Dataset):
        there = ", ".join(list(file)[:6]) or "nothing"
        raise DataError(f"{name}: has no dataset `tensor` (it holds {there}); {_MEND}")
    shape = file["tensor"].shape
    if file["tensor"].dtype.kind != "f":
        raise DataError(f"{name}: `tensor` holds {file['tensor'].dtype}, not floating-point numbers; {_MEND}")
    axes = [axis for axis in _COORDINATES if axis in file]
    if not axes:
        raise DataError(f"{name}: has no dataset `x-coordinate`; add the grid's coordinates, one for each point")
    if "t-coordinate" not in file:
        raise DataError(f"{name}: has no dataset `t-coordinate`; add the times of the frames (steady data has none)")
    if len(shape) != 2 + len(axes):
        wanted = ", ".join(["N", "T", "X", "Y"][: 2 + len(axes)])
        raise DataError(
            f"{name}: `tensor` has shape {shape}, with {' and '.join(axes)} it must be ({wanted}); "
            "reshape it, or add the coordinates of its other axes"
        )
    origin, spacing = [], []
    for axis, points in zip(axes, shape[2:], strict=True):
        values = _coordinate(name, file, axis, (points,), f"as axis of `tensor` {shape}")
        first, step = uniform(values, f"{name}: `{axis}`", "interpolate the fields to a uniform grid")
        origin.append(first)
        spacing.append(step)
    times = _coordinate(name, file, "t-coordinate", (shape[1], shape[1] + 1), f"or one more: `tensor` is {shape}")
    start, dt = uniform(times[: shape[1]], f"{name}: `t-coordinate`", "store frames at even times")
    grid = Grid(shape=shape[2:], origin=tuple(origin), spacing=tuple(spacing), start=start, dt=dt)
    return shape, grid


def _coordinate(
    name: str, file: h5py.File, dataset: str, lengths: tuple[int, ...], why: str
) -> Float[np.ndarray, " n"]:
    values = np.asarray(file[dataset])
    if values.ndim != 1 or len(values) not in lengths:
        raise DataError(f"{name}: `{dataset}` has shape {values.shape}, it must have {lengths[0]} entries ({why})")
    if values.dtype.kind != "f":
        raise DataError(f"{name}: `{dataset}` holds {values.dtype}, not floating-point numbers; store it as float64")
    return values


def _coefficients(name: str, file: h5py.File, trajectories: int) -> Iterator[tuple[str, Any]]:
    """Attributes first, then datasets: of two with one name the dataset wins, under `parameters` before the root."""
    for key, value in file.attrs.items():
        if np.size(value) == 1 and np.asarray(value).dtype.kind in "fiu" and key not in _NO_COEFFICIENTS:
            yield key.lower(), float(np.asarray(value).item())
    for group in (file, file.get("parameters", {})):
        for key, item in group.items():
            reserved = key == "tensor" or key.endswith("-coordinate")
            if not reserved and isinstance(item, h5py.Dataset) and item.dtype.kind in "fiu":
                if item.shape == (trajectories,):
                    yield key.lower(), np.asarray(item, np.float64)
                elif group is not file:
                    raise DataError(
                        f"{name}: `parameters/{key}` has shape {item.shape}, "
                        f"it must be ({trajectories},): one value for each trajectory"
                    )


def _from_file_name(path: Path, name: str) -> float | None:
    found = re.search(rf"(?<![a-z]){re.escape(name)}[=_]?{_NUMBER}", path.stem, re.IGNORECASE)
    return float(found.group(1)) if found else None
