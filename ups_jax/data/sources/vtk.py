"""Series of VTK files: a .pvd file as ParaView writes it, with the time and the file of each frame, is a trajectory.

Of several trajectories the folder of their .pvd files is given. The frames are VTU or VTK files of one mesh with data
at its points, read with meshio (the extra `mesh`), as a whole.
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
from ups_jax.core.files import inside
from ups_jax.core.terminal import one_line
from ups_jax.data.sources.in_memory import ScatteredMemory
from ups_jax.data.sources.point_trajectories import PointTrajectory, components, flat, gathered, require


def is_series(path: Path) -> bool:
    """Whether this is a .pvd file, or a folder of such."""
    return path.suffix == ".pvd" or (path.is_dir() and any(path.glob("*.pvd")))


def open_series(path: str | Path, names: tuple[str, ...] | None = None) -> ScatteredMemory:
    """All trajectories. Raises `DataError` for what cannot be read."""
    require("meshio", str(path))
    files = sorted(Path(path).glob("*.pvd")) if Path(path).is_dir() else [Path(path)]
    return gathered(str(path), [_trajectory(file) for file in files], names)


def frames_of(path: Path) -> list[tuple[float, Path]]:
    """Time and file of each frame, in the order of time. Raises `DataError`."""
    try:
        listed = list(ElementTree.parse(path).iter("DataSet"))
        named = [(float(item.attrib["timestep"]), item.attrib["file"]) for item in listed]
    except FileNotFoundError:
        raise DataError(f"{path}: there is no such file; give a .pvd file or a folder of such") from None
    except (OSError, ElementTree.ParseError, KeyError, ValueError) as error:
        raise DataError(f"{path}: lists no frames ({error}); write DataSet timestep=.. file=.. for each") from None
    frames = [(time, inside(path, "file", name, DataError)) for time, name in named]
    if len(frames) < 2:
        raise DataError(f"{path}: lists {len(frames)} frames, a trajectory has 2 at the least")
    return sorted(frames)


def _trajectory(path: Path) -> PointTrajectory:
    frames = frames_of(path)
    meshes = [_mesh(file) for _, file in frames]
    first = meshes[0]
    places = flat(np.asarray(first.points, np.float64))
    if not first.point_data:
        kinds = f", only at its cells ({', '.join(first.cell_data)})" if first.cell_data else ""
        raise DataError(f"{frames[0][1]}: has no data at its points{kinds}; write them at the points")
    fields: dict[str, np.ndarray] = {}
    for name in sorted(first.point_data):
        for mesh, (_, file) in zip(meshes, frames, strict=True):
            if name not in mesh.point_data or not np.array_equal(mesh.points, first.points):
                raise DataError(f"{file}: has other points than {frames[0][1]}, or no {name}; give frames of one mesh")
        values = np.stack([np.asarray(mesh.point_data[name]) for mesh in meshes])
        fields |= components(name, values[..., 0] if values.shape[2:] == (1,) else values, places.shape[-1])
    return PointTrajectory(
        name=str(path), places=places, fields=fields, times=np.array([time for time, _ in frames], np.float64)
    )


def _mesh(file: Path) -> Any:
    """A frame as meshio has it, whose complaints on stderr are warnings here. Raises `DataError`."""
    import meshio

    # meshio itself would go by the suffix too, but ends the program where it fails, and knows formats that name files
    # of their own.
    readers = {".vtu": meshio.vtu.read, ".vtk": meshio.vtk.read}
    if file.suffix not in readers:
        raise DataError(f"{file}: is no frame of a series; write {' or '.join(readers)} files")
    told = io.StringIO()
    try:
        with contextlib.redirect_stderr(told):
            mesh = readers[file.suffix](file)
    # It checks little of what a file claims: NumPy, struct, zlib and the XML reader raise what they come upon.
    except Exception as error:
        raise DataError(f"{file}: cannot be read by meshio ({first_line(error)})") from None
    if told.getvalue():
        warnings.warn(f"{file}: {one_line(told.getvalue())}", stacklevel=2)
    return mesh
