"""Which layout a file has, told by what it holds and never by its size, and the source that reads it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import h5py

from ups_jax.core.errors import DataError
from ups_jax.data.sources.base import Source
from ups_jax.data.sources.described_arrays import DescribedSource
from ups_jax.data.sources.hdf5 import HDF5File, text_of
from ups_jax.data.sources.pdebench_cfd import CFDSource
from ups_jax.data.sources.pdebench_incompressible import IncompressibleSource
from ups_jax.data.sources.pdebench_seeds import SeedsSource
from ups_jax.data.sources.pdebench_tensor import DarcySource, TensorSource
from ups_jax.data.sources.points import PointsSource, is_points
from ups_jax.data.sources.shards import ShardsSource, is_converted, read_manifest
from ups_jax.data.sources.vtk import is_series, open_series
from ups_jax.data.sources.well import WellSource
from ups_jax.data.sources.zarr import is_zarr, open_zarr

Kind = Literal["transient", "steady"]
Names = tuple[str, ...] | None
_DESCRIPTIONS = (".yaml", ".yml")
# Root attributes that say what the data is.
TEXTS = ("task", "dataset_name", "boundary")
_MEND = "give a file of PDEBench or The Well, or describe it in a YAML file and give that"


@dataclass(frozen=True, kw_only=True)
class Layout:
    """`holds` tells whether an HDF5 file has it; `channels` say which of the named fields are read."""

    name: str
    kind: Kind
    holds: Callable[[h5py.File], bool]
    open: Callable[[str | Path, Names], Source]


def _datasets(*names: str) -> Callable[[h5py.File], bool]:
    return lambda file: all(isinstance(file.get(name), h5py.Dataset) for name in names)


def _groups_of_data(file: h5py.File) -> bool:
    groups = [item for item in file.values() if isinstance(item, h5py.Group)]
    return any("data" in group and "grid" in group for group in groups)


def _well(file: h5py.File) -> bool:
    return "dimensions" in file and "t0_fields" in file


# In this order: the first that a file has is its own.
LAYOUTS = (
    Layout(name="points", kind="transient", holds=is_points, open=PointsSource),
    Layout(name="well", kind="transient", holds=_well, open=WellSource),
    Layout(
        name="pdebench darcy",
        kind="steady",
        holds=lambda file: _datasets("tensor", "nu")(file) and file["nu"].ndim == 3,
        open=lambda path, _: DarcySource(path),
    ),
    Layout(
        name="pdebench tensor", kind="transient", holds=_datasets("tensor"), open=lambda path, _: TensorSource(path)
    ),
    Layout(name="pdebench seeds", kind="transient", holds=_groups_of_data, open=SeedsSource),
    Layout(
        name="pdebench incompressible",
        kind="transient",
        holds=_datasets("velocity", "particles", "t"),
        open=IncompressibleSource,
    ),
    Layout(name="pdebench cfd", kind="transient", holds=_datasets("x-coordinate", "t-coordinate"), open=CFDSource),
)
ZARR = Layout(name="zarr points", kind="transient", holds=lambda _: False, open=open_zarr)
SERIES = Layout(name="vtk series", kind="transient", holds=lambda _: False, open=open_series)
DESCRIBED = Layout(name="described", kind="transient", holds=lambda _: False, open=DescribedSource)
SHARDS = {kind: Layout(name="shards", kind=kind, holds=lambda _: False, open=ShardsSource) for kind in get_args(Kind)}


def layout_of(path: str | Path) -> Layout:
    """The layout of a file, or a folder of shards. Raises `DataError` where it has none, or cannot be read."""
    if is_converted(path):
        return SHARDS[read_manifest(path).kind]
    if Path(path).suffix in _DESCRIPTIONS:
        return DESCRIBED
    if is_zarr(Path(path)):
        return ZARR
    if is_series(Path(path)):
        return SERIES
    with HDF5File(path, _MEND).reading() as file:
        for layout in LAYOUTS:
            if layout.holds(file):
                return layout
        there = ", ".join(list(file)[:6]) or "nothing"
    raise DataError(f"{path}: is of no known layout (it holds {there}); {_MEND}")


def open_file(path: str | Path, kind: Kind, channels: Names = None) -> Source:
    """The source of a file of this kind of task. Raises `DataError`."""
    layout = layout_of(path)
    if layout.kind != kind:
        raise DataError(
            f"{path}: is a {layout.kind} file ({layout.name} layout), the task is {kind}; set kind: {layout.kind}"
        )
    return layout.open(path, channels)


def is_whole(path: Path) -> bool:
    """Whether a folder is data by itself, and not one of files for each split."""
    return is_converted(path) or is_zarr(path) or is_series(path)


def attribute(path: str | Path, name: str) -> str:
    """A text among the root attributes of a data file, empty where there is none."""
    if is_converted(path):
        return read_manifest(path).attributes.get(name, "")
    if not Path(path).is_file() or not h5py.is_hdf5(path):
        return ""
    with HDF5File(path, _MEND).reading() as file:
        return text_of(file.attrs, name)


def original(path: Path) -> Path:
    """The file itself, or the one that a folder of shards was converted from, which need not be there any more."""
    return Path(read_manifest(path).origin.name) if is_converted(path) else path
