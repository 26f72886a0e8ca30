"""Detection of a file's layout by its content, and the source that reads it."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import h5py

from ups_jax.core.errors import DataError
from ups_jax.data.sources.base import AscendingSource, Source
from ups_jax.data.sources.described_arrays import DescribedSource
from ups_jax.data.sources.hdf5 import HDF5File
from ups_jax.data.sources.hdf5_values import Group, Values, text_attribute
from ups_jax.data.sources.pdebench_cfd import CFDSource
from ups_jax.data.sources.pdebench_incompressible import IncompressibleSource
from ups_jax.data.sources.pdebench_seeds import SeedsSource
from ups_jax.data.sources.pdebench_tensor import DarcySource, TensorSource
from ups_jax.data.sources.points import PointsSource, has_points_layout
from ups_jax.data.sources.shards import ShardsSource, is_shard_folder, read_manifest
from ups_jax.data.sources.vtk import is_vtk_series, open_vtk_series
from ups_jax.data.sources.well import WellSource
from ups_jax.data.sources.zarr import is_zarr, open_zarr

Kind = Literal["transient", "steady"]
# Channels to read; None reads all.
ChannelNames = tuple[str, ...] | None
_DESCRIPTION_SUFFIXES = (".yaml", ".yml")
# Root attributes that name the data.
TEXT_ATTRIBUTES = ("task", "dataset_name", "boundary")
_HINT = "give a file of PDEBench or The Well, or describe it in a YAML file and give that"


@dataclass(frozen=True, kw_only=True)
class Layout:
    """A layout of data files, with functions that recognise and open such files.

    Attributes:
        name: Name of the layout in messages and reports.
        kind: Whether the files contain trajectories or steady solutions.
        matches: Returns whether an open HDF5 file has this layout.
        reader: Returns the source of a file, with the channels in the second argument; its axes may descend.
    """

    name: str
    kind: Kind
    matches: Callable[[Group], bool]
    reader: Callable[[str | Path, ChannelNames], Source]

    def open(self, path: str | Path, channels: ChannelNames) -> Source:
        """Return the source of a file, with all channels if `channels` is None, and with ascending space axes."""
        source = self.reader(path, channels)
        if not source.trajectories:
            raise DataError(f"{path}: contains no trajectories; write the file again")
        return AscendingSource(source) if min(source.grid.spacing) < 0 else source


def _make_dataset_check(*names: str) -> Callable[[Group], bool]:
    """Return a function that returns whether a file has all datasets `names`."""
    return lambda file: all(isinstance(file.get(name), Values) for name in names)


def _has_seed_groups(file: Group) -> bool:
    groups = [item for item in file.values() if isinstance(item, Group)]
    return any("data" in group and "grid" in group for group in groups)


def _has_dataset_for_each_trajectory(file: Group) -> bool:
    """Return whether the root or one of its groups has at least three datasets whose names differ only in a number."""
    for group in (file, *(item for item in file.values() if isinstance(item, Group))):
        names = [
            re.sub("[0-9]+", "", name) for name, item in group.items() if isinstance(item, Values) and item.ndim > 1
        ]
        if len(names) >= 3 and len(set(names)) == 1:
            return True
    return False


def _has_well_groups(file: Group) -> bool:
    return "dimensions" in file and "t0_fields" in file


# The first match wins: a file may match several.
LAYOUTS = (
    Layout(name="points", kind="transient", matches=has_points_layout, reader=PointsSource),
    Layout(name="well", kind="transient", matches=_has_well_groups, reader=WellSource),
    Layout(
        name="pdebench darcy",
        kind="steady",
        matches=lambda file: _make_dataset_check("tensor", "nu")(file) and file["nu"].ndim == 3,
        reader=lambda path, _: DarcySource(path),
    ),
    Layout(
        name="pdebench tensor",
        kind="transient",
        matches=_make_dataset_check("tensor"),
        reader=lambda path, _: TensorSource(path),
    ),
    Layout(name="pdebench seeds", kind="transient", matches=_has_seed_groups, reader=SeedsSource),
    Layout(
        name="pdebench incompressible",
        kind="transient",
        matches=_make_dataset_check("velocity", "particles", "t"),
        reader=IncompressibleSource,
    ),
    Layout(
        name="pdebench cfd",
        kind="transient",
        matches=_make_dataset_check("x-coordinate", "t-coordinate"),
        reader=CFDSource,
    ),
)
ZARR = Layout(name="zarr points", kind="transient", matches=lambda _: False, reader=open_zarr)
SERIES = Layout(name="vtk series", kind="transient", matches=lambda _: False, reader=open_vtk_series)
DESCRIBED = Layout(name="described", kind="transient", matches=lambda _: False, reader=DescribedSource)
SHARDS = {
    kind: Layout(name="shards", kind=kind, matches=lambda _: False, reader=ShardsSource) for kind in get_args(Kind)
}


def detect_layout(path: str | Path) -> Layout:
    """Return the layout of a file or folder. Raises `DataError` if it cannot be read or its layout is unknown."""
    if is_shard_folder(path):
        return SHARDS[read_manifest(path).kind]
    if Path(path).suffix.lower() in _DESCRIPTION_SUFFIXES:
        return DESCRIBED
    if is_zarr(Path(path)):
        return ZARR
    if is_vtk_series(Path(path)):
        return SERIES
    with HDF5File(path, _HINT).open() as file:
        for layout in LAYOUTS:
            if layout.matches(file):
                return layout
        content, hint = file.describe_datasets(), _HINT
        if _has_dataset_for_each_trajectory(file):
            hint = (
                "join the arrays of all trajectories to one array (N, T, ..) with np.stack, and describe it in a YAML "
                "file"
            )
    raise DataError(f"{path}: has no supported layout (it contains {content}); {hint}")


def open_file(path: str | Path, kind: Kind, channels: ChannelNames = None) -> Source:
    """Return the source of a data file or folder, with all channels if `channels` is None.

    Raises `DataError` if the file cannot be read, or contains data of another kind than `kind`, which the task needs.
    """
    layout = detect_layout(path)
    if layout.kind != kind:
        raise DataError(
            f"{path}: contains {layout.kind} data ({layout.name} layout), but the task is {kind}; "
            f"set `kind: {layout.kind}` in the task"
        )
    return layout.open(path, channels)


def is_single_dataset(path: Path) -> bool:
    """Return whether a folder is one data set as a whole, rather than a folder with one file for each split."""
    return is_shard_folder(path) or is_zarr(path) or is_vtk_series(path)


def root_attribute(path: str | Path, name: str) -> str:
    """Return the root attribute `name` of a data file as text, or an empty string if the file lacks it."""
    if is_shard_folder(path):
        return read_manifest(path).attributes.get(name, "")
    if not Path(path).is_file() or not h5py.is_hdf5(path):
        return ""
    with HDF5File(path, _HINT).open() as file:
        return text_attribute(file.attrs, name)


def path_before_conversion(path: Path) -> Path:
    """Return the name of the file that was converted to the shard folder `path`, or `path` for other data."""
    return Path(read_manifest(path).origin.name) if is_shard_folder(path) else path
