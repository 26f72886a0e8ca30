"""The built-in shallow water as a file of The Well: a reader's true layout, with dynamics that can be learned."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np

from ups_jax.core.files import atomic_file
from ups_jax.data.sources import open_file

_AXES = ("x", "y")


def write_well(source: Path, out: Path) -> None:
    """Height as a scalar field and velocity as a vector field, a scalar `gravity` of each trajectory, walls all around.

    `source` is the generator's file of `swe2d`.
    """
    data = open_file(source, "transient")
    count, frames, shape = data.trajectories, data.frames, data.grid.shape
    with atomic_file(out) as partial, h5py.File(partial, "w", locking=False) as file:
        file.attrs.update({"dataset_name": "shallow_water", "grid_type": "cartesian", "n_spatial_dims": len(shape)})
        file.attrs.update({"n_trajectories": count, "simulation_parameters": np.array([b"gravity"])})
        dimensions = file.create_group("dimensions")
        dimensions.attrs["spatial_dims"] = np.array([axis.encode() for axis in _AXES])
        grid = data.grid
        for axis, points, origin, spacing in zip(_AXES, shape, grid.origin, grid.spacing, strict=True):
            dimensions[axis] = (origin + spacing * np.arange(points)).astype(np.float32)
            dimensions[axis].attrs.update({"sample_varying": False, "time_varying": False})
        dimensions["time"] = (grid.start + grid.dt * np.arange(frames)).astype(np.float32)
        dimensions["time"].attrs["sample_varying"] = False
        varying = {"dim_varying": [True, True], "sample_varying": True, "time_varying": True}
        for group, name, part in (("t0_fields", "height", ()), ("t1_fields", "velocity", (len(shape),))):
            fields = file.create_group(group)
            fields.attrs["field_names"] = [name]
            fields.create_dataset(name, (count, frames, *shape, *part), np.float32).attrs.update(varying)
        for number in range(count):
            values = data.read(np.array([number]), np.arange(frames)[None])[0]
            file["t0_fields/height"][number] = values[..., 0]
            file["t1_fields/velocity"][number] = values[..., 1:]
        file["scalars/gravity"] = data.coefficient("gravity")
        file["scalars/gravity"].attrs.update({"sample_varying": True, "time_varying": False})
        file["scalars"].attrs["field_names"] = ["gravity"]
        for axis in _AXES:
            wall = file.create_group(f"boundary_conditions/{axis}_boundary")
            wall.attrs.update({"bc_type": "WALL", "associated_dims": np.array([axis.encode()])})
