"""Zarr files of meshes and particles, as the Universal Physics Stack writes them: a group for each trajectory.

Particles have `positions` and `velocities` (T, N, 3); the fields of a mesh, `fields/NAME` (T, N), are at `coords`
(N, 2), and those of its grids, (T, H, W, C), are taken as points too. Times are a dataset `time` (T,) or the attribute
`dt` of the group. They are read with zarr (the extra `mesh`), as a whole, after `zarr_metadata`
has looked at their codecs.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ups_jax.data.sources.gathered import PointTrajectory, components, flat, gathered, require
from ups_jax.data.sources.memory import ScatteredMemory
from ups_jax.data.sources.zarr_metadata import check_metadata
from ups_jax.errors import DataError, first_line

_VELOCITIES = ("u", "v", "w")


def is_zarr(path: Path) -> bool:
    """Whether a folder is a Zarr hierarchy."""
    return path.is_dir() and any((path / name).is_file() for name in ("zarr.json", ".zgroup"))


def open_zarr(path: str | Path, names: tuple[str, ...] | None = None) -> ScatteredMemory:
    """All trajectories of a file. Raises `DataError` for one that cannot be read, or has none."""
    require("zarr", str(path))
    check_metadata(Path(path))
    # Of the files that zarr reads at once and that cannot be read one is told, here; asyncio would print the others.
    logging.getLogger("asyncio").addFilter(_is_retrieved)
    import zarr

    try:
        root = zarr.open_group(str(path), mode="r")
        found = [_trajectory(f"{path}: group {key}", group) for key, group in _samples(root, "")]
    except DataError:
        raise
    # zarr, the codecs and NumPy raise whatever they come upon, down to SystemError, where metadata or chunks are of
    # other content than they claim.
    except Exception as error:
        raise DataError(f"{path}: is no readable Zarr file ({first_line(error)})") from None
    if not found:
        raise DataError(
            f"{path}: no group has `positions`, or `coords` and `fields`: there is nothing in it that changes in time"
        )
    return gathered(str(path), found, names)


def _is_retrieved(record: logging.LogRecord) -> bool:
    return "was never retrieved" not in record.getMessage()


def _samples(group: Any, key: str) -> Iterator[tuple[str, Any]]:
    """The groups that are trajectories, in the order of their names."""
    if "positions" in group or ("coords" in group and "fields" in group):
        yield key or "/", group
        return
    for name, inner in sorted(group.groups()):
        yield from _samples(inner, f"{key}/{name}")


def _trajectory(name: str, group: Any) -> PointTrajectory:
    fields: dict[str, np.ndarray] = {}
    moves = "positions" in group
    places = flat(np.asarray(group["positions" if moves else "coords"][...], np.float64))
    axes = places.shape[-1]
    if moves and "velocities" in group:
        velocities = np.asarray(group["velocities"][...], np.float32)
        fields |= {known: velocities[..., axis] for axis, known in enumerate(_VELOCITIES[:axes])}
    for key, dataset in sorted(group["fields"].arrays()) if "fields" in group else ():
        values = np.asarray(dataset[...], np.float32)
        if values.ndim == 4:
            # A frame of a grid, row by row, as `coords` lists its points.
            values = values.reshape(len(values), -1, values.shape[-1])
        if values.ndim == 3 and values.shape[-1] != axes:
            fields |= {f"{key}_{number}": values[..., number] for number in range(values.shape[-1])}
            if values.shape[-1] == 1:
                fields[key] = fields.pop(f"{key}_0")
        else:
            fields |= components(key, values, axes)
    frames = len(places) if moves else len(next(iter(fields.values()), ()))
    times: np.ndarray
    if "time" in group:
        times = np.asarray(group["time"][...], np.float64)
    elif "dt" in group.attrs:
        times = float(group.attrs["dt"]) * np.arange(frames)
    else:
        raise DataError(f"{name}: has neither `time` nor an attribute `dt`; the times of the frames must be told")
    return PointTrajectory(name=name, places=places, fields=fields, times=times)
