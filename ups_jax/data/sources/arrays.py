"""Named arrays in .npz, .npy and HDF5 files, of which only the requested slices are read."""

from __future__ import annotations

import math
import struct
import tokenize
import zipfile
import zlib
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np

from ups_jax.core.errors import DataError, first_line
from ups_jax.data.sources.hdf5 import HDF5File
from ups_jax.data.sources.hdf5_values import Group, Values

_OBJECTS = (
    "contains Python objects, such as a list of arrays of different lengths; store numbers in one array, with "
    "trajectories that are cut to the same length"
)
_HINT = "give an .npz, .npy or HDF5 file"
# Exceptions of NumPy, zipfile and zlib for a damaged file, or for one that claims more than the memory.
NUMPY_ERRORS = (
    *(OSError, ValueError, EOFError, KeyError, SyntaxError, OverflowError, MemoryError, RuntimeError),
    *(struct.error, zlib.error, tokenize.TokenError, zipfile.BadZipFile),
)


@runtime_checkable
class ArrayFile(Protocol):
    """A file of named arrays. All methods raise `DataError` for a name that the file does not have."""

    path: Path

    @property
    def notes(self) -> tuple[str, ...]:
        """Messages for the user about how the arrays are read."""
        ...

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of the array `name`."""
        ...

    def dtype(self, name: str) -> np.dtype:
        """Return the data type of the values that `read` returns for the array `name`."""
        ...

    def read(self, name: str, key: tuple[int | slice, ...]) -> np.ndarray:
        """Read the part `array[key]` of the array `name`."""
        ...


def open_arrays(path: Path) -> ArrayFile:
    """Open a file of arrays, as HDF5 unless its suffix is .npz or .npy. Raises `DataError` if that fails."""
    return NumpyFile(path) if path.suffix.lower() in (".npz", ".npy") else HDF5Arrays(path)


class HDF5Arrays(HDF5File):
    """The datasets of an HDF5 file as an `ArrayFile`."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, _HINT)
        with self.open():
            pass

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of the dataset `name`."""
        with self.open() as file:
            return self._get_dataset(file, name).shape

    def dtype(self, name: str) -> np.dtype:
        """Return the data type of the values of the dataset `name`."""
        with self.open() as file:
            return self._get_dataset(file, name).dtype

    def read(self, name: str, key: tuple[int | slice, ...]) -> np.ndarray:
        """Read the part `dataset[key]` of the dataset `name`."""
        with self.open() as file:
            return self._get_dataset(file, name)[key]

    def _get_dataset(self, file: Group, name: str) -> Values:
        item = file.get(name)
        if not isinstance(item, Values):
            raise DataError(f"{self.path}: has no dataset `{name}`, only {', '.join(list(file)[:6])}; correct the name")
        if item.is_null:
            raise DataError(f"{self.path}: the dataset `{name}` has no values; give [start, step] if it is an axis")
        return item


class NumpyFile:
    """An .npz file of named arrays, or an .npy file, whose only array is returned for every name.

    Uncompressed arrays are memory-mapped; compressed ones are loaded into the memory of every process that uses them.
    """

    notes: tuple[str, ...] = ()

    def __init__(self, path: Path) -> None:
        self.path = path
        self._arrays: dict[str, np.ndarray] | None = None
        self._load_arrays()

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "_arrays": None}

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of the array `name`."""
        return self._get_array(name).shape

    def dtype(self, name: str) -> np.dtype:
        """Return the data type of the array `name`."""
        return self._get_array(name).dtype

    def read(self, name: str, key: tuple[int | slice, ...]) -> np.ndarray:
        """Read the part `array[key]` of the array `name`."""
        return np.asarray(self._get_array(name)[key])

    def _get_array(self, name: str) -> np.ndarray:
        arrays = self._load_arrays()
        if self.path.suffix.lower() == ".npy":
            return arrays[""]
        if name not in arrays:
            raise DataError(f"{self.path}: has no array `{name}`, only {', '.join(list(arrays)[:6])}; correct the name")
        if arrays[name].dtype.hasobject:
            raise DataError(f"{self.path}: `{name}` {_OBJECTS}")
        return arrays[name]

    def _load_arrays(self) -> dict[str, np.ndarray]:
        if self._arrays is None:
            try:
                if self.path.suffix.lower() == ".npy":
                    self._arrays = {"": np.load(self.path, mmap_mode="r", allow_pickle=False)}
                else:
                    self._arrays = _open_npz(self.path)
            except FileNotFoundError:
                raise DataError(f"{self.path}: does not exist; {_HINT}") from None
            except NUMPY_ERRORS as error:
                if "object" in str(error).lower():
                    raise DataError(f"{self.path}: {_OBJECTS}") from None
                raise DataError(
                    f"{self.path}: cannot be read ({first_line(error)}); write it again with np.savez"
                ) from None
        return self._arrays


def _open_npz(path: Path) -> dict[str, np.ndarray]:
    """Return the arrays of an .npz file by name: compressed ones in memory, all others memory-mapped."""
    arrays = {}
    with zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            name = info.filename.removesuffix(".npy")
            with archive.open(info) as member:
                version = np.lib.format.read_magic(member)
                read_header = {
                    (1, 0): np.lib.format.read_array_header_1_0,
                    (2, 0): np.lib.format.read_array_header_2_0,
                }[version]
                shape, fortran_order, dtype = read_header(member)
                if dtype.hasobject:
                    # Refused when it is used: other arrays of the file may be numbers.
                    arrays[name] = np.empty(0, dtype)
                    continue
                if info.compress_type != zipfile.ZIP_STORED:
                    with archive.open(info) as start:
                        arrays[name] = np.lib.format.read_array(start, allow_pickle=False)
                    continue
                header_size = member.tell()
            offset = _member_content_offset(path, info) + header_size
            if offset + dtype.itemsize * math.prod(shape) > path.stat().st_size:
                raise ValueError(f"array `{name}` is truncated")
            arrays[name] = _memory_map(path, offset, dtype, shape, fortran_order)
    return arrays


def _member_content_offset(path: Path, info: zipfile.ZipInfo) -> int:
    """Return the position in a zip file at which the content of an uncompressed member begins."""
    # A header precedes the content: 30 bytes, the last four of them the lengths of the two fields that follow.
    with path.open("rb") as file:
        file.seek(info.header_offset + 26)
        lengths = np.frombuffer(file.read(4), "<u2")
    return info.header_offset + 30 + int(lengths.sum())


def _memory_map(path: Path, offset: int, dtype: np.dtype, shape: tuple[int, ...], fortran_order: bool) -> np.ndarray:
    if not shape or 0 in shape:
        # A single number or an empty array cannot be memory-mapped.
        return np.fromfile(path, dtype, int(np.prod(shape)), offset=offset).reshape(shape)
    return np.memmap(path, dtype, mode="r", offset=offset, shape=shape, order="F" if fortran_order else "C")
