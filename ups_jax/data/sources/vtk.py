"""Series of VTK files: a .pvd file, as ParaView writes it, lists the time and the file of each frame of a trajectory.

Several trajectories are a folder of .pvd files. The frames are .vtu or .vtk files of data at the points of one mesh.
All are read into memory with meshio (`pip install 'ups_jax[mesh]'`).
"""

from __future__ import annotations

import contextlib
import io
import warnings
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np

from ups_jax.core.errors import DataError, first_line
from ups_jax.core.files import path_inside
from ups_jax.core.terminal import one_line
from ups_jax.data.sources.in_memory import ScatteredMemorySource
from ups_jax.data.sources.point_trajectories import (
    PointTrajectory,
    drop_zero_axes,
    require_module,
    split_components,
    stack_trajectories,
)


def is_vtk_series(path: Path) -> bool:
    """Return whether a path is a .pvd file or a folder of .pvd files."""
    return path.suffix.lower() == ".pvd" or (path.is_dir() and any(path.glob("*.pvd")))


def open_vtk_series(path: str | Path, channel_names: tuple[str, ...] | None = None) -> ScatteredMemorySource:
    """Return the trajectory of a .pvd file, or the trajectories of all .pvd files in a folder.

    All channels are read if `channel_names` is None. Raises `DataError` if a file cannot be read, or if meshio is not
    installed.
    """
    require_module("meshio", str(path))
    files = sorted(Path(path).glob("*.pvd")) if Path(path).is_dir() else [Path(path)]
    return stack_trajectories(str(path), [_read_trajectory(file) for file in files], channel_names)


def list_frames(path: Path) -> list[tuple[float, Path]]:
    """Return the time and the file of each frame that a .pvd file lists, sorted by time.

    Raises `DataError` if the file cannot be read or lists fewer than two frames.
    """
    try:
        elements = list(ElementTree.parse(path).iter("DataSet"))
        entries = [(float(item.attrib["timestep"]), item.attrib["file"]) for item in elements]
    except FileNotFoundError:
        raise DataError(f"{path}: does not exist; give a .pvd file or a folder of .pvd files") from None
    except (OSError, ElementTree.ParseError, KeyError, ValueError) as error:
        raise DataError(
            f"{path}: cannot be read as a list of frames ({error}); write an element `DataSet` with the attributes "
            "`timestep` and `file` for each frame"
        ) from None
    frames = [(time, path_inside(path, "file", name, DataError)) for time, name in entries]
    if len(frames) < 2:
        raise DataError(f"{path}: lists {len(frames)} frames; list at least 2")
    return sorted(frames)


def _read_trajectory(path: Path) -> PointTrajectory:
    """Return the trajectory whose frames a .pvd file lists."""
    frames = list_frames(path)
    meshes = [_read_mesh(file) for _, file in frames]
    first = meshes[0]
    positions = drop_zero_axes(np.asarray(first.points, np.float64))
    if not first.point_data:
        cell_data = f", only at its cells ({', '.join(first.cell_data)})" if first.cell_data else ""
        raise DataError(f"{frames[0][1]}: has no data at its points{cell_data}; write data at the points")
    fields: dict[str, np.ndarray] = {}
    for name in sorted(first.point_data):
        for mesh, (_, file) in zip(meshes, frames, strict=True):
            if name not in mesh.point_data or not np.array_equal(mesh.points, first.points):
                raise DataError(
                    f"{file}: has no field `{name}`, or has other points than {frames[0][1]}; write all frames of a "
                    "trajectory with the same mesh and fields"
                )
        values = np.stack([np.asarray(mesh.point_data[name]) for mesh in meshes])
        if values.shape[2:] == (1,):
            values = values[..., 0]
        fields |= split_components(name, values, positions.shape[-1])
    return PointTrajectory(
        name=str(path), positions=positions, fields=fields, times=np.array([time for time, _ in frames], np.float64)
    )


def _read_mesh(file: Path) -> Any:
    """Read a frame with meshio and return its mesh; text that meshio prints to stderr becomes a warning."""
    import meshio

    # Not meshio.read: it ends the program where it fails, and supports formats that refer to other files.
    readers = {".vtu": meshio.vtu.read, ".vtk": meshio.vtk.read}
    if file.suffix not in readers:
        raise DataError(f"{file}: is not a supported format of a frame; write {' or '.join(readers)} files")
    stderr = io.StringIO()
    try:
        with contextlib.redirect_stderr(stderr):
            mesh = readers[file.suffix](file)
    # meshio checks little of a file: NumPy, struct, zlib and the XML parser raise exceptions of many types.
    except Exception as error:
        raise DataError(f"{file}: cannot be read by meshio ({first_line(error)}); write it again") from None
    if stderr.getvalue():
        warnings.warn(f"{file}: meshio reports: {one_line(stderr.getvalue())}", stacklevel=2)
    return mesh
