"""What the HDF5 layouts share: a handle per process, coordinates, and where PDE coefficients may stand.

The handle is opened in the process that reads and stays behind when a source is pickled.
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
from jaxtyping import Float

from ups_jax.errors import DataError

_NUMBER = r"([0-9]+\.?[0-9]*(?:[eE][-+]?[0-9]+)?)"
# Names that PDEBench writes into file names; any declared name is looked for there too.
_KNOWN_IN_NAMES = ("nu", "beta", "rho", "eta", "zeta")
# Numbers among the root attributes that say how a file was made.
_NO_COEFFICIENTS = ("seed", "latestIndex", "dt", "members", "given_frames", "checkpoint_step")


class HDF5File:
    """A file of `trajectories` samples, read by several threads and processes; `mend` ends the messages."""

    trajectories: int

    def __init__(self, path: str | Path, mend: str) -> None:
        self.path = Path(path)
        self.name = str(path)
        self._mend = mend
        self._handle: h5py.File | None = None
        self._process = -1
        self._lock = threading.Lock()
        self._coefficients: dict[str, Any] = {}
        if not self.path.is_file():
            raise DataError(f"{path}: there is no such file; {mend}")

    def coefficient(self, name: str) -> Float[np.ndarray, " n"] | None:
        """Looked up as dataset, then root attribute, then number after the name in the file name; any case."""
        found = self._coefficients.get(name.lower())
        if found is None:
            found = from_file_name(self.path, name)
        return None if found is None else np.broadcast_to(np.asarray(found, np.float64), (self.trajectories,))

    def found_coefficients(self) -> tuple[str, ...]:
        """Names of what looks like a coefficient."""
        in_name = (name for name in _KNOWN_IN_NAMES if from_file_name(self.path, name) is not None)
        return tuple(dict.fromkeys((*self._coefficients, *in_name)))

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
                    self._handle, self._process = h5py.File(self.path, "r", locking=False), os.getpid()
                yield self._handle
            except OSError as error:
                raise DataError(f"{self.path}: {_reason(self.path, error, self._mend)}") from None


def coordinate(name: str, file: h5py.File, dataset: str, lengths: tuple[int, ...], why: str) -> Float[np.ndarray, " n"]:
    """A coordinate's values. Raises `DataError` unless it has one of `lengths` and floating-point numbers."""
    values = np.asarray(file[dataset])
    if values.ndim != 1 or len(values) not in lengths:
        raise DataError(f"{name}: `{dataset}` has shape {values.shape}, it must have {lengths[0]} entries ({why})")
    if values.dtype.kind != "f":
        raise DataError(f"{name}: `{dataset}` holds {values.dtype}, not floating-point numbers; store it as float64")
    return values


def coefficients(name: str, file: h5py.File, trajectories: int) -> Iterator[tuple[str, Any]]:
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


def from_file_name(path: Path, name: str) -> float | None:
    found = re.search(rf"(?<![a-z]){re.escape(name)}[=_]?{_NUMBER}", path.stem, re.IGNORECASE)
    return float(found.group(1)) if found else None


def _reason(path: Path, error: OSError, mend: str) -> str:
    text = " ".join(str(error).split())
    if isinstance(error, PermissionError) or "Permission denied" in text:
        return "may not be read by this user; change its permissions"
    if "truncated" in text:
        return "is truncated; copy, download or generate it again"
    if path.is_file() and not h5py.is_hdf5(path):
        return f"is not an HDF5 file; {mend}"
    return f"is damaged ({text}); copy, download or generate it again"
