"""Solutions as an HDF5 file in one of PDEBench's layouts: written atomically, and recognised again."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
from jaxtyping import Float

from ups_jax.core.commands import command
from ups_jax.core.errors import DataError, first_line
from ups_jax.core.files import write_atomically
from ups_jax.data.sources.base import AXES
from ups_jax.data.sources.hdf5 import is_of_hdf5
from ups_jax.data.sources.points import LAYOUT
from ups_jax.simulate.presets import DarcyPreset, MeshPreset, ParticlePreset, Preset, TransportPreset, VolumePreset
from ups_jax.simulate.triangles import HeatedPlate

# To be raised by whoever changes a number that the solvers write.
VERSION = "1"
CHECKED = ("task", "preset", "generator_version", "seed", "trajectories")


@dataclass(frozen=True, kw_only=True)
class Origin:
    """Where a file comes from; two files of the same origin hold the same bytes."""

    task: str
    preset: str
    seed: int
    trajectories: int

    @property
    def attributes(self) -> dict[str, str | int]:
        """What a file says of itself."""
        return {"task": self.task, "preset": self.preset, "seed": self.seed, "generator_version": VERSION}

    @property
    def command(self) -> str:
        """The command line that writes this file again, without its folder."""
        return f"{command('generate')} --task {self.task} --preset {self.preset} --seed {self.seed}"


def trajectories(
    preset: Preset, fields: Float[np.ndarray, "n t *s"], coefficients: Float[np.ndarray, " n"]
) -> dict[str, np.ndarray]:
    """Datasets of PDEBench's tensor layout."""
    return tensor(preset, fields, {} if preset.coefficient is None else {preset.coefficient: coefficients})


def tensor(
    preset: Preset | TransportPreset,
    fields: Float[np.ndarray, "n t *s"],
    parameters: Mapping[str, Float[np.ndarray, " n"]],
) -> dict[str, np.ndarray]:
    """Datasets of PDEBench's tensor layout with any number of parameters a trajectory."""
    points = preset.origin + np.arange(preset.points) * (preset.extent / preset.points)
    datasets = {"tensor": np.ascontiguousarray(fields, np.float32)}
    datasets |= {f"{axis}-coordinate": points for axis in AXES[: fields.ndim - 2]}
    # PDEBench stores one time more than there are frames.
    datasets["t-coordinate"] = np.arange(preset.steps + 2) * preset.dt
    return datasets | {f"parameters/{name}": np.asarray(values, np.float32) for name, values in parameters.items()}


def steady(
    preset: DarcyPreset, permeability: Float[np.ndarray, "n x y"], solution: Float[np.ndarray, "n x y"]
) -> dict[str, np.ndarray]:
    """Datasets of PDEBench's Darcy layout: coordinates are cell centres, and there is no time."""
    centres = (np.arange(preset.points) + 0.5) / preset.points
    return {
        "nu": np.ascontiguousarray(permeability, np.float32),
        "tensor": np.ascontiguousarray(solution[:, None], np.float32),
        "x-coordinate": centres,
        "y-coordinate": centres,
    }


def compressible(
    preset: VolumePreset, fields: Float[np.ndarray, "n t x 3"], eta: Float[np.ndarray, " n"]
) -> dict[str, np.ndarray]:
    """Datasets of PDEBench's compressible layout: one for each channel, and cell centres."""
    channels = zip(("density", "pressure", "Vx"), np.moveaxis(fields, -1, 0), strict=True)
    return {name: np.ascontiguousarray(values, np.float32) for name, values in channels} | {
        "x-coordinate": _centres(preset),
        "t-coordinate": np.arange(preset.steps + 2) * preset.dt,
        "parameters/eta": np.asarray(eta, np.float32),
    }


def seeds(
    preset: VolumePreset,
    fields: Float[np.ndarray, "n t *s c"],
    coefficients: Float[np.ndarray, " n"],
    channels: Sequence[str] = ("h", "u", "v"),
) -> dict[str, np.ndarray | str]:
    """Datasets of PDEBench's seed groups, the simulation's text of each, and the names of the channels."""
    content: dict[str, np.ndarray | str] = {"/channels": ", ".join(channels)}
    for index, (values, coefficient) in enumerate(zip(fields, coefficients, strict=True)):
        group = f"{index:04d}"
        content[f"{group}/data"] = np.ascontiguousarray(values, np.float32)
        content |= {f"{group}/grid/{axis}": _centres(preset) for axis in AXES[: preset.dimensions]}
        content[f"{group}/grid/t"] = np.arange(preset.steps + 1) * preset.dt
        content[f"{group}/config"] = f"sim:\n  {preset.coefficient}: {float(coefficient)!r}\n  seed: {index}\n"
    return content


def mesh(preset: MeshPreset, trajectories: Sequence[HeatedPlate]) -> dict[str, np.ndarray | str]:
    """Datasets of the layout of points: one mesh, or one for each trajectory, filled up to the largest."""
    one = preset.meshes == "one"
    points = max(len(item.mesh.points) for item in trajectories)
    cells = max(len(item.mesh.cells) for item in trajectories)
    count, frames = len(trajectories), preset.steps + 1
    fields = np.zeros((count, frames, points), np.float32)
    source = np.zeros((count, points), np.float32)
    meshes = 1 if one else count
    place, mask, edge = np.zeros((meshes, points, 2)), np.zeros((meshes, points), np.uint8), np.zeros((meshes, points))
    triangles = np.full((meshes, cells, 3), -1, np.int32)
    for row, item in enumerate(trajectories):
        size = len(item.mesh.points)
        fields[row, :, :size], source[row, :size] = item.fields, item.source
        if row < meshes:
            place[row, :size], mask[row, :size], edge[row, :size] = item.mesh.points, 1, item.mesh.boundary
            triangles[row, : len(item.mesh.cells)] = item.mesh.cells
    shared: dict[str, np.ndarray] = {
        "points": place,
        "mask": mask,
        "cells": triangles,
        "inputs/boundary": edge.astype(np.float32),
    }
    content: dict[str, np.ndarray | str] = {name: values[0] if one else values for name, values in shared.items()}
    return content | {
        "fields/u": fields,
        "inputs/source": source,
        "time": np.arange(frames) * preset.dt,
        "box": np.array([[0.0, 0.0], [1.0, 1.0]]),
        "parameters/kappa": np.array([item.diffusivity for item in trajectories], np.float32),
        "/layout": LAYOUT,
    }


def particles(
    preset: ParticlePreset,
    positions: Float[np.ndarray, "n t p d"],
    velocities: Float[np.ndarray, "n t p d"],
    viscosity: Float[np.ndarray, " n"],
) -> dict[str, np.ndarray | str]:
    """Datasets of the layout of points that move; positions go on beyond the periodic box."""
    named = dict(zip("uvw", np.moveaxis(velocities, -1, 0), strict=False))
    return {
        "positions": positions.astype(np.float32),
        **{f"fields/{name}": values.astype(np.float32) for name, values in named.items()},
        "time": np.arange(preset.steps + 1) * preset.dt,
        "box": np.array([[0.0, 0.0], [2 * np.pi, 2 * np.pi]]),
        "parameters/nu": viscosity.astype(np.float32),
        "/layout": LAYOUT,
    }


def write(path: Path, origin: Origin, content: Mapping[str, np.ndarray | str], boundary: str) -> None:
    """Write under the final name only what is whole and on the disk; a text is an attribute of its group.

    Raises `StorageError`.
    """
    write_atomically(path, _encode(origin, content, boundary))


def check(path: Path, origin: Origin, what: Sequence[str] = CHECKED) -> None:
    """Refuse a file of another origin or version in `what`. Raises `DataError` with the command that replaces it."""
    mend = f"replace it: {origin.command} --out {path.parent} --overwrite"
    expected = origin.attributes | {"trajectories": origin.trajectories}
    try:
        with h5py.File(path, "r", locking=False) as file:
            found = {name: file.attrs.get(name) for name in origin.attributes}
            found["trajectories"] = _stored_trajectories(file)
    except Exception as error:
        if not (isinstance(error, KeyError | TypeError) or is_of_hdf5(error)):
            raise
        raise DataError(f"{path}: is damaged or no data file of this generator ({first_line(error)}); {mend}") from None
    for name in what:
        if found[name] != expected[name]:
            raise DataError(f"{path}: has {name} {found[name]}, not {expected[name]}; {mend}")


def _centres(preset: VolumePreset) -> Float[np.ndarray, " x"]:
    return preset.origin + (np.arange(preset.points) + 0.5) * (preset.extent / preset.points)


def _stored_trajectories(file: h5py.File) -> int:
    if file.attrs.get("layout") == LAYOUT:
        return len(file["fields/u"])
    groups = sum(isinstance(item, h5py.Group) and "data" in item for item in file.values())
    return groups or len(file["density" if "density" in file else "tensor"])


def _encode(origin: Origin, content: Mapping[str, np.ndarray | str], boundary: str) -> bytes:
    # HDF5 answers a full disk in many ways, plain bytes in one.
    buffer = io.BytesIO()
    with h5py.File(buffer, "w") as file:
        for name, values in content.items():
            if isinstance(values, str):
                group, attribute = name.rsplit("/", 1)
                file[group or "/"].attrs[attribute] = values
            else:
                file[name] = values
        for name, value in (origin.attributes | {"boundary": boundary}).items():
            file.attrs[name] = value
    return buffer.getvalue()
