"""The Well's HDF5 files: scalar, vector and tensor fields in the groups `t0_fields`, `t1_fields` and `t2_fields`.

Its package is not needed. Fields that do not change in time are no channels, grids must be Cartesian.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from jaxtyping import Float, Float32, Int

from ups_jax.core.errors import DataError
from ups_jax.data.sources.base import AXES, Grid, selected, uniform, windows_of
from ups_jax.data.sources.hdf5 import HDF5Source, dataset_of, number_of, text_of

_GROUPS = ("t0_fields", "t1_fields", "t2_fields")
_MEND = "give a file of The Well, as its `data/train` holds them"


@dataclass(frozen=True, kw_only=True)
class _Channel:
    """A component of a field: which dataset, and its place in the axes after space."""

    dataset: str
    component: tuple[int, ...]


class WellSource(HDF5Source):
    """The channels `names`, or all fields that change in time. Raises `DataError` naming file and dataset.

    Components are called `velocity_x` and `stress_xy`, after the axes of the file. Coefficients are the scalars that do
    not change in time, and the numbers among the root attributes.
    """

    def __init__(self, path: str | Path, names: tuple[str, ...] | None = None) -> None:
        super().__init__(path, _MEND)
        with self.reading() as file:
            dimensions = _dimensions(self.name, file)
            self.trajectories = _count(self.name, file)
            found = _channels(self.name, file, dimensions)
            self.channel_names = selected(self.name, tuple(found), names)
            self._channels = [found[name] for name in self.channel_names]
            self.grid, self.frames = _grid(self.name, file, dimensions, self.trajectories)
            for channel in self._channels:
                _check_shape(self.name, file[channel.dataset], self, len(channel.component))
            self._coefficients = _coefficients(self.name, file, self.trajectories)
            self.boundary = _boundary(file, dimensions)
        self.channels = len(self.channel_names)

    def windows(self, ids: Int[np.ndarray, " b"], frames: Int[np.ndarray, "b t"]) -> Float32[np.ndarray, "b t *s c"]:
        """The given frames of the given trajectories; frames are evenly spaced."""
        result = np.empty((*frames.shape, *self.grid.shape, self.channels), np.float32)
        with self.reading() as file:
            for place, channel in enumerate(self._channels):
                dataset = file[channel.dataset]
                lead = _flag(dataset, "sample_varying", True)
                for row, index, times in windows_of(ids, frames):
                    at = (index, times) if lead else (times,)
                    # Axes that do not vary have one entry, and spread over the grid here.
                    result[row, ..., place] = dataset[(*at, ..., *channel.component)]
        return result


def _dimensions(name: str, file: h5py.File) -> tuple[str, ...]:
    """Names of the space axes, in the order of the fields' own."""
    kind = text_of(file.attrs, "grid_type", "cartesian")
    if kind.lower() != "cartesian":
        raise DataError(f"{name}: its grid is {kind}; only Cartesian grids can be read")
    names = _texts(_group(file, "dimensions"), "spatial_dims")
    if not 1 <= len(set(names)) == len(names) <= len(AXES):
        raise DataError(
            f"{name}: its group `dimensions` has the space axes {', '.join(names) or 'none'} (attribute "
            f"`spatial_dims`); 1 to 3 of different names can be read"
        )
    for axis in (*names, "time"):
        dataset_of(name, file, f"dimensions/{axis}", _MEND)
    return names


def _count(name: str, file: h5py.File) -> int:
    count = number_of(file.attrs, "n_trajectories")
    if count is None or count < 1:
        raise DataError(f"{name}: has no number of trajectories as attribute `n_trajectories`; {_MEND}")
    return int(count)


def _channels(name: str, file: h5py.File, dimensions: tuple[str, ...]) -> dict[str, _Channel]:
    """Every component of the fields that change in time: scalars, then vectors, then tensors."""
    found: dict[str, _Channel] = {}
    for order, group in enumerate(_GROUPS):
        members = _group(file, group)
        listed = () if members is None else _texts(members, "field_names") or tuple(members)
        for field in listed:
            if not _flag(dataset_of(name, file, f"{group}/{field}", _MEND), "time_varying", True):
                continue
            for component in itertools.product(range(len(dimensions)), repeat=order):
                suffix = "".join(dimensions[index] for index in component)
                key = f"{field}_{suffix}" if suffix else field
                found[key] = _Channel(dataset=f"{group}/{field}", component=component)
    return found


def _grid(name: str, file: h5py.File, dimensions: tuple[str, ...], trajectories: int) -> tuple[Grid, int]:
    ends = []
    for axis in dimensions:
        values = _shared(name, file, axis, trajectories)
        ends.append((len(values), *uniform(values, f"{name}: `dimensions/{axis}`", "give a uniform grid")))
    times = _shared(name, file, "time", trajectories)
    start, dt = uniform(times, f"{name}: `dimensions/time`", "store frames at even times")
    shape, origin, spacing = (tuple(values) for values in zip(*ends, strict=True))
    return Grid(shape=shape, origin=origin, spacing=spacing, start=start, dt=dt), len(times)


def _shared(name: str, file: h5py.File, axis: str, trajectories: int) -> Float[np.ndarray, " n"]:
    """A coordinate that is the same for all trajectories and at all times."""
    dataset = file[f"dimensions/{axis}"]
    varies = _flag(dataset, "sample_varying", False)
    if axis != "time" and _flag(dataset, "time_varying", False):
        raise DataError(f"{name}: the grid moves (`dimensions/{axis}` is time_varying); only fixed grids can be read")
    if dataset.ndim != 1 + varies or dataset.dtype.kind != "f":
        raise DataError(f"{name}: `dimensions/{axis}` has shape {dataset.shape} and type {dataset.dtype}; {_MEND}")
    values = np.asarray(dataset)
    if varies:
        if len(values) != trajectories or not np.allclose(values, values[:1], rtol=1e-5):
            raise DataError(f"{name}: `dimensions/{axis}` differs between trajectories; split the file by it")
        values = values[0]
    return values


def _check_shape(name: str, dataset: h5py.Dataset, source: WellSource, order: int) -> None:
    size = len(source.grid.shape)
    varying = np.atleast_1d(dataset.attrs.get("dim_varying", np.ones(size, bool)))
    if varying.dtype.kind not in "biu":
        raise DataError(
            f"{name}: `{dataset.name.strip('/')}` has an attribute `dim_varying` of {varying.dtype}; {_MEND}"
        )
    space = tuple(points if varies else 1 for points, varies in zip(source.grid.shape, varying, strict=False))
    lead = (source.trajectories,) if _flag(dataset, "sample_varying", True) else ()
    expected = (*lead, source.frames, *space, *(size,) * order)
    if len(varying) != size or dataset.shape != expected:
        raise DataError(
            f"{name}: `{dataset.name.strip('/')}` has shape {dataset.shape}, by its attributes it must be {expected}"
        )
    if dataset.dtype.kind != "f":
        raise DataError(f"{name}: `{dataset.name.strip('/')}` holds {dataset.dtype}, not floating-point numbers")


def _coefficients(name: str, file: h5py.File, trajectories: int) -> dict[str, Any]:
    named = {key: number_of(file.attrs, key) for key in _texts(file, "simulation_parameters")}
    found: dict[str, Any] = {key.lower(): value for key, value in named.items() if value is not None}
    for key in _group(file, "scalars") or ():
        dataset = dataset_of(name, file, f"scalars/{key}", _MEND)
        if _flag(dataset, "time_varying", False) or dataset.dtype.kind not in "fiu":
            continue
        shape = (trajectories,) if _flag(dataset, "sample_varying", False) else ()
        if dataset.shape != shape:
            raise DataError(f"{name}: `scalars/{key}` has shape {dataset.shape}, by its attributes it must be {shape}")
        found[key.lower()] = np.asarray(dataset, np.float64)
    return found


def _boundary(file: h5py.File, dimensions: tuple[str, ...]) -> dict[str, str]:
    """The kind of boundary of each axis, by the names that Grids have for them; open where nothing is said."""
    kinds = dict.fromkeys(AXES[: len(dimensions)], "open")
    sides = _group(file, "boundary_conditions")
    for item in () if sides is None else filter(None, sides.values()):
        for axis in _texts(item, "associated_dims"):
            if axis in dimensions:
                kinds[AXES[dimensions.index(axis)]] = text_of(item.attrs, "bc_type", "open").lower()
    return kinds


def _group(file: h5py.File, name: str) -> h5py.Group | None:
    found = file.get(name)
    return found if isinstance(found, h5py.Group) else None


def _texts(item: h5py.HLObject | None, key: str) -> tuple[str, ...]:
    """The strings of an attribute, none where it is not there."""
    values = () if item is None else np.atleast_1d(item.attrs.get(key, ())).ravel()
    return tuple(value.decode(errors="replace") if isinstance(value, bytes) else str(value) for value in values)


def _flag(dataset: h5py.Dataset, key: str, default: bool) -> bool:
    """A truth value among a dataset's attributes."""
    value = number_of(dataset.attrs, key)
    return default if value is None else bool(value)
