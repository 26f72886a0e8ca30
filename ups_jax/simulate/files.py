"""HDF5 files of generated data: their datasets, atomic writing, and a check of existing files.

The functions `..._datasets` return the content of a file as a dictionary: arrays by the path of a dataset, and strings
by the path of an attribute, `group/attribute`.
"""

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
from ups_jax.data.sources.hdf5 import is_hdf5_error
from ups_jax.data.sources.points import LAYOUT
from ups_jax.simulate.presets import (
    DarcyPreset,
    FiniteVolumePreset,
    MeshPreset,
    ParticlePreset,
    Preset,
    ReactionPreset,
    TransportPreset,
)
from ups_jax.simulate.triangles import HeatTrajectory

# Increase this with every change of the numbers that the solvers write.
VERSION = "1"
CHECKED_ATTRIBUTES = ("task", "preset", "generator_version", "seed", "trajectories")


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """The inputs from which a file was generated. Files with equal inputs have equal bytes."""

    task: str
    preset: str
    seed: int
    trajectories: int

    @property
    def attributes(self) -> dict[str, str | int]:
        """Root attributes that record the inputs, except the number of trajectories, which the datasets show."""
        return {"task": self.task, "preset": self.preset, "seed": self.seed, "generator_version": VERSION}

    @property
    def command(self) -> str:
        """The command that generates the file, without the option `--out`."""
        return f"{command('generate')} --task {self.task} --preset {self.preset} --seed {self.seed}"


def spectral_datasets(
    preset: Preset, fields: Float[np.ndarray, "n t *s"], coefficients: Float[np.ndarray, " n"]
) -> dict[str, np.ndarray]:
    """Return the content of a file in PDEBench's tensor layout, with the preset's coefficient, if any, as parameter."""
    return tensor_datasets(preset, fields, {} if preset.coefficient is None else {preset.coefficient: coefficients})


def tensor_datasets(
    preset: Preset | TransportPreset,
    fields: Float[np.ndarray, "n t *s"],
    parameters: Mapping[str, Float[np.ndarray, " n"]],
) -> dict[str, np.ndarray]:
    """Return the content of a file in PDEBench's tensor layout: a scalar field and any number of parameters."""
    datasets = {"tensor": np.ascontiguousarray(fields, np.float32)}
    datasets |= {f"{axis}-coordinate": _coordinates(preset) for axis in AXES[: fields.ndim - 2]}
    # PDEBench stores one time more than there are frames.
    datasets["t-coordinate"] = np.arange(preset.steps + 2) * preset.dt
    return datasets | {f"parameters/{name}": np.asarray(values, np.float32) for name, values in parameters.items()}


def darcy_datasets(
    preset: DarcyPreset, permeability: Float[np.ndarray, "n x y"], solution: Float[np.ndarray, "n x y"]
) -> dict[str, np.ndarray]:
    """Return the content of a file in PDEBench's Darcy layout: coordinates are cell centres, and there is no time."""
    centres = (np.arange(preset.points) + 0.5) / preset.points
    return {
        "nu": np.ascontiguousarray(permeability, np.float32),
        "tensor": np.ascontiguousarray(solution[:, None], np.float32),
        "x-coordinate": centres,
        "y-coordinate": centres,
    }


def compressible_datasets(
    preset: FiniteVolumePreset, fields: Float[np.ndarray, "n t x 3"], eta: Float[np.ndarray, " n"]
) -> dict[str, np.ndarray]:
    """Return the content of a file in PDEBench's compressible layout: a dataset for each channel, and cell centres."""
    channels = zip(("density", "pressure", "Vx"), np.moveaxis(fields, -1, 0), strict=True)
    return {name: np.ascontiguousarray(values, np.float32) for name, values in channels} | {
        "x-coordinate": _coordinates(preset),
        "t-coordinate": np.arange(preset.steps + 2) * preset.dt,
        "parameters/eta": np.asarray(eta, np.float32),
    }


def seed_group_datasets(
    preset: FiniteVolumePreset | ReactionPreset,
    fields: Float[np.ndarray, "n t *s c"],
    coefficients: Mapping[str, Float[np.ndarray, " n"]],
    channels: Sequence[str],
) -> dict[str, np.ndarray | str]:
    """Return the content of a file in PDEBench's layout with one HDF5 group per trajectory.

    Each group has a text `config` with the coefficients. The root attribute `channels` lists the names of the channels.
    """
    content: dict[str, np.ndarray | str] = {"/channels": ", ".join(channels)}
    for index, values in enumerate(fields):
        group = f"{index:04d}"
        content[f"{group}/data"] = np.ascontiguousarray(values, np.float32)
        content |= {f"{group}/grid/{axis}": _coordinates(preset) for axis in AXES[: preset.dimensions]}
        content[f"{group}/grid/t"] = np.arange(preset.steps + 1) * preset.dt
        numbers = [f"  {name}: {float(items[index])!r}\n" for name, items in coefficients.items()]
        content[f"{group}/config"] = f"sim:\n{''.join(numbers)}  seed: {index}\n"
    return content


def mesh_datasets(preset: MeshPreset, trajectories: Sequence[HeatTrajectory]) -> dict[str, np.ndarray | str]:
    """Return the content of a file in the points layout (`data.sources.points`), with one mesh or one per trajectory.

    Meshes of different size are padded to the largest one.
    """
    is_shared = preset.meshes == "one"
    points = max(len(item.mesh.points) for item in trajectories)
    cells = max(len(item.mesh.cells) for item in trajectories)
    count, frames = len(trajectories), preset.steps + 1
    fields = np.zeros((count, frames, points), np.float32)
    source = np.zeros((count, points), np.float32)
    meshes = 1 if is_shared else count
    coords, mask = np.zeros((meshes, points, 2)), np.zeros((meshes, points), np.uint8)
    boundary = np.zeros((meshes, points))
    triangles = np.full((meshes, cells, 3), -1, np.int32)
    for row, item in enumerate(trajectories):
        size = len(item.mesh.points)
        fields[row, :, :size], source[row, :size] = item.fields, item.source
        if row < meshes:
            coords[row, :size], mask[row, :size], boundary[row, :size] = item.mesh.points, 1, item.mesh.boundary
            triangles[row, : len(item.mesh.cells)] = item.mesh.cells
    mesh: dict[str, np.ndarray] = {
        "points": coords,
        "mask": mask,
        "cells": triangles,
        "inputs/boundary": boundary.astype(np.float32),
    }
    content: dict[str, np.ndarray | str] = {name: values[0] if is_shared else values for name, values in mesh.items()}
    return content | {
        "fields/u": fields,
        "inputs/source": source,
        "time": np.arange(frames) * preset.dt,
        "box": np.array([[0.0, 0.0], [1.0, 1.0]]),
        "parameters/kappa": np.array([item.diffusivity for item in trajectories], np.float32),
        "/layout": LAYOUT,
    }


def particle_datasets(
    preset: ParticlePreset,
    positions: Float[np.ndarray, "n t p d"],
    velocities: Float[np.ndarray, "n t p d"],
    viscosity: Float[np.ndarray, " n"],
) -> dict[str, np.ndarray | str]:
    """Return the content of a file of particles in the points layout; positions are not wrapped into the box."""
    components = dict(zip("uvw", np.moveaxis(velocities, -1, 0), strict=False))
    return {
        "positions": positions.astype(np.float32),
        **{f"fields/{name}": values.astype(np.float32) for name, values in components.items()},
        "time": np.arange(preset.steps + 1) * preset.dt,
        "box": np.array([[0.0, 0.0], [2 * np.pi, 2 * np.pi]]),
        "parameters/nu": viscosity.astype(np.float32),
        "/layout": LAYOUT,
    }


def write_file(path: Path, provenance: Provenance, content: Mapping[str, np.ndarray | str], boundary: str) -> None:
    """Write an HDF5 file atomically: `path` never contains an incomplete file.

    Args:
        content: Arrays and strings, as from the functions `..._datasets`.
        boundary: Kind of boundary, which becomes a root attribute, as do the inputs in `provenance`.

    Raises:
        StorageError: If the file cannot be written.
    """
    write_atomically(path, _hdf5_bytes(provenance, content, boundary))


def check_provenance(path: Path, provenance: Provenance, names: Sequence[str] = CHECKED_ATTRIBUTES) -> None:
    """Check that an existing file was generated from the expected inputs.

    Args:
        provenance: Expected inputs of the generator.
        names: Names of the inputs that must be equal, from `CHECKED_ATTRIBUTES`.

    Raises:
        DataError: An input differs or the file cannot be read; the message has the command that replaces the file.
    """
    hint = f"replace it with `{provenance.command} --out {path.parent} --overwrite`"
    expected = provenance.attributes | {"trajectories": provenance.trajectories}
    try:
        with h5py.File(path, "r", locking=False) as file:
            actual = {name: file.attrs.get(name) for name in provenance.attributes}
            actual["trajectories"] = _count_trajectories(file)
    except Exception as error:
        if not (isinstance(error, KeyError | TypeError) or is_hdf5_error(error)):
            raise
        raise DataError(f"{path}: is damaged, or not a generated file ({first_line(error)}); {hint}") from None
    for name in names:
        if actual[name] != expected[name]:
            raise DataError(f"{path}: has {name} {actual[name]}, but {expected[name]} is expected; {hint}")


def _coordinates(preset: Preset | ReactionPreset | FiniteVolumePreset | TransportPreset) -> Float[np.ndarray, " x"]:
    """Return the coordinates of the stored points along an axis: cell centres for finite volumes, otherwise nodes."""
    offset = 0.5 if isinstance(preset, FiniteVolumePreset) else 0.0
    return preset.origin + (np.arange(preset.points) + offset) * (preset.extent / preset.points)


def _count_trajectories(file: h5py.File) -> int:
    """Return the number of trajectories in a generated file, whichever layout it has."""
    if file.attrs.get("layout") == LAYOUT:
        return len(file["fields/u"])
    groups = sum(isinstance(item, h5py.Group) and "data" in item for item in file.values())
    return groups or len(file["density" if "density" in file else "tensor"])


def _hdf5_bytes(provenance: Provenance, content: Mapping[str, np.ndarray | str], boundary: str) -> bytes:
    """Return an HDF5 file as bytes, with `provenance` and `boundary` as its root attributes."""
    # In memory: HDF5 raises many types of errors for a full disk, writing bytes raises one.
    buffer = io.BytesIO()
    with h5py.File(buffer, "w") as file:
        for name, values in content.items():
            if isinstance(values, str):
                group, attribute = name.rsplit("/", 1)
                file[group or "/"].attrs[attribute] = values
            else:
                file[name] = values
        for name, value in (provenance.attributes | {"boundary": boundary}).items():
            file.attrs[name] = value
    return buffer.getvalue()
