"""Arrays by name in an .npz, .npy or HDF5 file, of which only what is asked for is read."""

from __future__ import annotations

import math
import struct
import tokenize
import zipfile
import zlib
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import h5py
import numpy as np

from ups_jax.core.errors import DataError, first_line
from ups_jax.data.sources.hdf5 import HDF5File

_MEND = "give an .npz, .npy or HDF5 file"
# What NumPy, zipfile and zlib raise at a damaged file, or one that claims more than there is memory.
NUMPY_ERRORS = (
    *(OSError, ValueError, EOFError, KeyError, SyntaxError, OverflowError, MemoryError, RuntimeError),
    *(struct.error, zlib.error, tokenize.TokenError, zipfile.BadZipFile),
)


@runtime_checkable
class ArrayFile(Protocol):
    """Arrays by name; `DataError` for a name that there is not."""

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of an array."""
        ...

    def kind(self, name: str) -> str:
        """NumPy's letter for the kind of its numbers: `f` for floating point."""
        ...

    def read(self, name: str, key: tuple[int | slice, ...]) -> np.ndarray:
        """The part of an array that a basic index takes."""
        ...


def open_arrays(path: Path) -> ArrayFile:
    """The arrays of a file, told by its suffix. Raises `DataError`."""
    return NumpyFile(path) if path.suffix in (".npz", ".npy") else HDF5Arrays(path)


class HDF5Arrays(HDF5File):
    """The datasets of an HDF5 file."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, _MEND)
        with self.reading():
            pass

    def shape(self, name: str) -> tuple[int, ...]:
        """See `ArrayFile`."""
        with self.reading() as file:
            shape: tuple[int, ...] = self._dataset(file, name).shape
            return shape

    def kind(self, name: str) -> str:
        """See `ArrayFile`."""
        with self.reading() as file:
            return str(self._dataset(file, name).dtype.kind)

    def read(self, name: str, key: tuple[int | slice, ...]) -> np.ndarray:
        """See `ArrayFile`."""
        with self.reading() as file:
            return np.asarray(self._dataset(file, name)[key])

    def _dataset(self, file: h5py.File, name: str) -> h5py.Dataset:
        if not isinstance(file.get(name), h5py.Dataset):
            raise DataError(f"{self.path}: has no dataset `{name}` (it holds {', '.join(list(file)[:6])})")
        return file[name]


class NumpyFile:
    """The arrays of an .npz file, or the one of an .npy file, whatever it is called.

    They are mapped into memory and read as they are needed; a compressed .npz file cannot be, and is read as a whole
    by every process that needs it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._arrays: dict[str, np.ndarray] | None = None
        self._open()

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "_arrays": None}

    def shape(self, name: str) -> tuple[int, ...]:
        """See `ArrayFile`."""
        return self._array(name).shape

    def kind(self, name: str) -> str:
        """See `ArrayFile`."""
        return self._array(name).dtype.kind

    def read(self, name: str, key: tuple[int | slice, ...]) -> np.ndarray:
        """See `ArrayFile`."""
        return np.asarray(self._array(name)[key])

    def _array(self, name: str) -> np.ndarray:
        arrays = self._open()
        if self.path.suffix == ".npy":
            return arrays[""]
        if name not in arrays:
            raise DataError(f"{self.path}: has no array `{name}` (it holds {', '.join(list(arrays)[:6])})")
        return arrays[name]

    def _open(self) -> dict[str, np.ndarray]:
        if self._arrays is None:
            try:
                if self.path.suffix == ".npy":
                    self._arrays = {"": np.load(self.path, mmap_mode="r", allow_pickle=False)}
                else:
                    self._arrays = _members(self.path)
            except FileNotFoundError:
                raise DataError(f"{self.path}: there is no such file; {_MEND}") from None
            except NUMPY_ERRORS as error:
                raise DataError(
                    f"{self.path}: cannot be read ({first_line(error)}); write it again with np.savez"
                ) from None
        return self._arrays


def _members(path: Path) -> dict[str, np.ndarray]:
    arrays = {}
    with zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            name = info.filename.removesuffix(".npy")
            with archive.open(info) as member:
                if info.compress_type != zipfile.ZIP_STORED:
                    arrays[name] = np.lib.format.read_array(member, allow_pickle=False)
                    continue
                version = np.lib.format.read_magic(member)
                read_header = {
                    (1, 0): np.lib.format.read_array_header_1_0,
                    (2, 0): np.lib.format.read_array_header_2_0,
                }[version]
                shape, fortran, dtype = read_header(member)
                if dtype.hasobject:
                    raise ValueError(f"{name} holds Python objects")
                header = member.tell()
            start = _start(path, info) + header
            if start + dtype.itemsize * math.prod(shape) > path.stat().st_size:
                raise ValueError(f"{name} is truncated")
            arrays[name] = _mapped(path, start, dtype, shape, fortran)
    return arrays


def _start(path: Path, info: zipfile.ZipInfo) -> int:
    """Where a stored member's bytes begin: after a header of 30 bytes, its name and what else it says of itself."""
    with path.open("rb") as file:
        file.seek(info.header_offset + 26)
        lengths = np.frombuffer(file.read(4), "<u2")
    return info.header_offset + 30 + int(lengths.sum())


def _mapped(path: Path, start: int, dtype: np.dtype, shape: tuple[int, ...], fortran: bool) -> np.ndarray:
    if not shape or 0 in shape:
        # A single number or an empty array cannot be mapped.
        return np.fromfile(path, dtype, int(np.prod(shape)), offset=start).reshape(shape)
    return np.memmap(path, dtype, mode="r", offset=start, shape=shape, order="F" if fortran else "C")
