"""Groups and datasets of HDF5 files, with the values that their writers meant.

The attributes of netCDF that mark missing values and unpack integers are applied, and the axes of arrays in MATLAB
v7.3 files, which MATLAB stores in reverse, are in MATLAB's order. Every source reads HDF5 through these classes.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import h5py
import numpy as np

from ups_jax.core.errors import DataError

# netCDF stores a dimension without coordinates as a dataset with this attribute `NAME`.
_BARE_DIMENSION = "This is a netCDF dimension but not a netCDF variable"
# The fill value of floating-point numbers that netCDF stores where nothing was written.
_NETCDF_FILL = np.float32(9.969209968386869e36)


class Group:
    """An HDF5 group, whose members are `Group` and `Values`.

    Attributes:
        notes: Messages about the values by subject, such as reversed axes. All groups and datasets of a file share
            this dictionary.
    """

    def __init__(self, group: h5py.Group, notes: dict[str, str]) -> None:
        self._group = group
        self.notes = notes

    @property
    def attrs(self) -> h5py.AttributeManager:
        """Attributes of the group."""
        return self._group.attrs

    def __getitem__(self, key: str) -> Any:
        """Return the member `key`. Raises KeyError if it does not exist."""
        return self._wrap(self._group[key])

    def get(self, key: str, default: Any = None) -> Any:
        """Return the member `key`, or `default` if it does not exist."""
        item = self._group.get(key)
        return default if item is None else self._wrap(item)

    def __contains__(self, key: str) -> bool:
        return key in self._group

    def __iter__(self) -> Iterator[str]:
        return iter(self._group)

    def items(self) -> Iterator[tuple[str, Any]]:
        """Yield the names and the members."""
        for key in self:
            yield key, self.get(key)

    def values(self) -> Iterator[Any]:
        """Yield the members."""
        for _, item in self.items():
            yield item

    def describe_datasets(self, limit: int = 6) -> str:
        """Return the paths and shapes of the first datasets in the group and below, as text."""
        texts: list[str] = []

        def visit(path: str, item: Any) -> bool | None:
            # MATLAB keeps the elements of cell arrays in groups whose names begin with `#`.
            if isinstance(item, h5py.Dataset) and not path.startswith("#"):
                texts.append(f"{path} {Values(item, {}).shape}")
            # A value other than None ends the visit.
            return True if len(texts) == limit else None

        self._group.visititems(visit)
        return ", ".join(texts) or "no datasets"

    def _wrap(self, item: Any) -> Any:
        """Return an object of h5py as `Group` or `Values`; objects of other classes as they are."""
        if isinstance(item, h5py.Group):
            return Group(item, self.notes)
        return Values(item, self.notes) if isinstance(item, h5py.Dataset) else item


class Values:
    """An HDF5 dataset that is indexed like a NumPy array and read when it is indexed.

    Values that equal `_FillValue` or `missing_value` are NaN. Other values are multiplied by `scale_factor`, and
    `add_offset` is added. The axes of MATLAB arrays are in MATLAB's order.

    Attributes:
        dtype: Type of the values that reading returns: float64 for unpacked numbers and for integers that may be
            missing, otherwise the type in the file. Text of MATLAB, stored as integers, has a text type.
    """

    dtype: np.dtype

    def __init__(self, dataset: h5py.Dataset, notes: dict[str, str]) -> None:
        self._dataset = dataset
        self.dtype = dataset.dtype
        self._fill_values: list[Any] = []
        self._is_packed, self._scale, self._offset = False, 1.0, 0.0
        self._stored_dtype = dataset.dtype
        self._is_reversed = self._is_bare_dimension = False
        # Most datasets have no attributes, and a file may have ten thousand datasets.
        if h5py.h5a.get_num_attrs(dataset.id):
            self._read_attributes(notes)

    @property
    def attrs(self) -> h5py.AttributeManager:
        """Attributes of the dataset."""
        return self._dataset.attrs

    @property
    def name(self) -> str:
        """Path of the dataset in the file."""
        return str(self._dataset.name).strip("/")

    @property
    def is_null(self) -> bool:
        """Whether the dataset has no values at all, such as a dimension of netCDF without coordinates."""
        return self._dataset.shape is None or self._is_bare_dimension

    @property
    def shape(self) -> tuple[int, ...]:
        """Lengths of the axes."""
        shape: tuple[int, ...] = self._dataset.shape or ()
        return shape[::-1] if self._is_reversed else shape

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.shape)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, key: Any) -> np.ndarray:
        """Return the part of the array that integers and slices select. Raises `DataError` if a filter is missing."""
        if not self._is_reversed:
            return self._decode(self._read(key))
        keys = key if isinstance(key, tuple) else (key,)
        if Ellipsis in keys:
            middle = keys.index(Ellipsis)
            keys = (*keys[:middle], *[slice(None)] * (self.ndim + 1 - len(keys)), *keys[middle + 1 :])
        keys = (*keys, *[slice(None)] * (self.ndim - len(keys)))
        return self._decode(self._read(keys[::-1]).transpose())

    def read_into(self, result: np.ndarray, key: tuple[int | slice, ...]) -> None:
        """Read the part `key` into `result`, without a copy if the values need no decoding, in half of the time."""
        is_stored_form = not (self._is_reversed or self._fill_values or self._is_packed)
        if is_stored_form and result.dtype == self.dtype == self._dataset.dtype and result.size:
            try:
                return self._dataset.read_direct(result, key)
            except OSError:
                if not _missing_filters(self._dataset):
                    raise
        result[...] = self[key]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return self[()].astype(dtype or self.dtype, copy=False)

    def _read_attributes(self, notes: dict[str, str]) -> None:
        """Set how values are decoded, from the attributes. Messages for the user are added to `notes`."""
        attributes = self.attrs
        self._is_bare_dimension = text_attribute(attributes, "NAME").startswith(_BARE_DIMENSION)
        is_number = self.dtype.kind in "fiu"
        matlab_class = text_attribute(attributes, "MATLAB_class")
        self._is_reversed = bool(matlab_class) and len(self._dataset.shape or ()) > 1
        if self._is_reversed and sum(points > 1 for points in self._dataset.shape) > 1:
            notes.setdefault(
                "MATLAB",
                "MATLAB stores axes in reverse order; all arrays are read with their axes in MATLAB's order, such as "
                f"`{self.name}` with the shape {self.shape}",
            )
        if matlab_class == "char":
            self.dtype = np.dtype("U1")
        if not is_number or matlab_class == "char":
            return
        if self.dtype.kind == "i" and text_attribute(attributes, "_Unsigned").lower() == "true":
            self.dtype = self._stored_dtype = np.dtype(f"u{self.dtype.itemsize}")
        for key in ("_FillValue", "missing_value"):
            for value in _numbers(attributes, key):
                # NaN needs no mask, and a number that the dataset cannot store marks nothing. With `_Unsigned`, the
                # attribute may be stored with or without its sign.
                with np.errstate(all="ignore"):
                    stored = value.astype(self._dataset.dtype)
                is_stored = self.dtype.kind == "f" or value in (stored, stored.astype(self._stored_dtype))
                if stored == stored and is_stored:
                    self._fill_values.append(stored.astype(self._stored_dtype))
        if self.dtype.kind == "f" and self._dataset.fillvalue == _NETCDF_FILL:
            self._fill_values.append(_NETCDF_FILL.astype(self.dtype))
        scale, offset = _numbers(attributes, "scale_factor"), _numbers(attributes, "add_offset")
        if scale.size == 1:
            self._scale = float(scale[0])
        if offset.size == 1:
            self._offset = float(offset[0])
        self._is_packed = scale.size == 1 or offset.size == 1
        if self._is_packed or (self._fill_values and self.dtype.kind in "iu"):
            self.dtype = np.dtype(np.float64)
        unit = text_attribute(attributes, "units")
        if " since " in unit:
            notes.setdefault(self.name, f"`{self.name}` counts {unit}; the times are in this unit")

    def _read(self, key: Any) -> np.ndarray:
        """Return a part of the dataset as it is stored. Raises `DataError` if it needs a filter that is missing."""
        try:
            return np.asarray(self._dataset[key])
        except OSError:
            if not _missing_filters(self._dataset):
                raise
            # The package registers the common filters when it is imported.
            with suppress(ImportError):
                importlib.import_module("hdf5plugin")
            missing = _missing_filters(self._dataset)
            if not missing:
                return np.asarray(self._dataset[key])
            raise DataError(
                f"{self._dataset.file.filename}: `{self.name}` is compressed with {' and '.join(missing)}, which this "
                "HDF5 library cannot read; run `pip install hdf5plugin`, or write the file again with "
                "`h5repack -f GZIP=4`"
            ) from None

    def _decode(self, values: np.ndarray) -> np.ndarray:
        """Return stored values as values of `dtype`: missing ones NaN, all others unpacked."""
        if self._stored_dtype != self._dataset.dtype:
            values = values.astype(self._stored_dtype)
        if not (self._fill_values or self._is_packed):
            return values
        decoded = values.astype(self.dtype)
        if self._is_packed:
            decoded = decoded * self._scale + self._offset
        for fill_value in self._fill_values:
            decoded = np.where(values == fill_value, decoded.dtype.type(np.nan), decoded)
        return decoded


def text_attribute(attributes: h5py.AttributeManager, key: str, default: str = "") -> str:
    """Return the attribute `key`, stored as a string or as bytes, as a string; `default` if it does not exist."""
    value = attributes.get(key, default)
    value = value.item() if isinstance(value, np.ndarray) and value.size == 1 else value
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)


def _numbers(attributes: h5py.AttributeManager, key: str) -> np.ndarray:
    """Return the numbers in the attribute `key`, or an empty array if it does not exist or has no numbers."""
    values = np.atleast_1d(attributes.get(key, ())).ravel()
    if values.dtype.kind in "fiu":
        return values
    # Some programs write all attributes as text.
    with suppress(ValueError):
        return np.array([float(text_attribute(attributes, key))])
    return np.empty(0)


def _missing_filters(dataset: h5py.Dataset) -> list[str]:
    """Return the numbers and names of the filters of a dataset that the HDF5 library does not have."""
    properties = dataset.id.get_create_plist()
    filters = [properties.get_filter(index) for index in range(properties.get_nfilters())]
    return [
        f"the filter {number} ({name.decode(errors='replace').split(chr(0))[0] or 'no name'})"
        for number, _, _, name in filters
        if not h5py.h5z.filter_avail(number)
    ]
