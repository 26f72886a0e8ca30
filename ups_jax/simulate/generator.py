"""Generation of one data set, or of all missing data sets of a configuration."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
from jaxtyping import Float

from ups_jax.config import Config
from ups_jax.core.errors import ConfigError, DataError
from ups_jax.data.files import data_path
from ups_jax.simulate import files, presets
from ups_jax.simulate.presets import (
    AnyPreset,
    DarcyPreset,
    FiniteVolumePreset,
    MeshPreset,
    ParticlePreset,
    ReactionPreset,
    TransportPreset,
)


def generate(
    task: str,
    preset: str,
    path: str | Path,
    seed: int = 0,
    *,
    trajectories: int | None = None,
    overwrite: bool = False,
    report: Callable[[str], None] = lambda line: None,
) -> bool:
    """Solve a built-in task with one of its presets, and write the trajectories to an HDF5 file.

    Args:
        task: Name of the task, such as `burgers1d`.
        preset: Name of the preset, such as `default`.
        trajectories: Number of trajectories, in place of the preset's. Trajectory i does not depend on this number.
        overwrite: Replace an existing file. By default an existing file is checked and left unchanged.
        report: Receives progress lines.

    Returns:
        True if the file was written, False if it existed.

    Raises:
        ConfigError: If the task, the preset or the number of trajectories is invalid.
        DataError: If the existing file was generated from other inputs, or a solution is not finite.
        StorageError: If `path` cannot be written.
    """
    settings = presets.get_preset(task, preset)
    if trajectories is not None:
        if trajectories < 1:
            raise ConfigError(f"--trajectories is {trajectories}; give at least 1")
        settings = replace(settings, trajectories=trajectories)
    path = Path(path)
    provenance = files.Provenance(task=task, preset=preset, seed=seed, trajectories=settings.trajectories)
    if path.exists() and not overwrite:
        files.check_provenance(path, provenance)
        return False
    content, fields = _solve(task, settings, seed, report)
    diverged = int(np.sum(~np.isfinite(fields).all(axis=tuple(range(1, fields.ndim)))))
    if diverged:
        raise DataError(
            f"{task}, preset {preset}: {diverged} of {len(fields)} solved trajectories contain NaN or Inf; "
            "increase the preset's `substeps` or `solved_points`"
        )
    files.write_file(path, provenance, content, settings.boundary)
    return True


def generate_missing(cfg: Config, report: Callable[[str], None] = lambda line: None) -> list[Path]:
    """Generate the missing data files of all built-in tasks in a configuration, and return the new files.

    Tasks with a `path` are skipped. An existing file may have another seed or number of trajectories.

    Raises:
        DataError: If an existing file has another task, preset or generator version.
        StorageError: If a file cannot be written.
    """
    written = []
    for task in cfg.data.tasks:
        if task.path is not None:
            continue
        path = data_path(cfg.data, task)
        if path.exists():
            preset = presets.get_preset(task.name, task.preset)
            provenance = files.Provenance(task=task.name, preset=task.preset, seed=0, trajectories=preset.trajectories)
            files.check_provenance(path, provenance, ("task", "preset", "generator_version"))
        elif generate(task.name, task.preset, path, report=report):
            written.append(path)
    return written


def _solve(
    task: str, preset: AnyPreset, seed: int, report: Callable[[str], None]
) -> tuple[Mapping[str, np.ndarray | str], Float[np.ndarray, "n *d"]]:
    """Return the content of the HDF5 file, and all solved values as one array, to be checked for NaN and Inf."""
    # Local imports: exponax and jax take a second, which a run with existing data does not need.
    if isinstance(preset, DarcyPreset):
        from ups_jax.simulate import darcy

        permeability, solution = darcy.solve(task, preset, seed, report)
        return files.darcy_datasets(preset, permeability, solution), solution
    if isinstance(preset, FiniteVolumePreset):
        from ups_jax.simulate import finite_volumes

        fields, coefficients = finite_volumes.solve(task, preset, seed, report)
        if preset.dimensions == 1:
            return files.compressible_datasets(preset, fields, coefficients), fields
        content = files.seed_group_datasets(preset, fields, {preset.coefficient: coefficients}, ("h", "u", "v"))
        return content, fields
    if isinstance(preset, ReactionPreset):
        from ups_jax.simulate import gray_scott

        fields, rates = gray_scott.solve(task, preset, seed, report)
        return files.seed_group_datasets(preset, fields, rates, gray_scott.CHANNELS), fields
    if isinstance(preset, MeshPreset):
        from ups_jax.simulate import heat

        trajectories = heat.solve(preset, seed, report)
        solution = np.concatenate([trajectory.fields.ravel() for trajectory in trajectories])[None]
        return files.mesh_datasets(preset, trajectories), solution
    if isinstance(preset, ParticlePreset):
        from ups_jax.simulate import taylor_green

        positions, velocities, viscosity = taylor_green.solve(preset, seed, report)
        return files.particle_datasets(preset, positions, velocities, viscosity), velocities
    if isinstance(preset, TransportPreset):
        from ups_jax.simulate import transport

        fields, parameters = transport.solve(preset, seed, report)
        return files.tensor_datasets(preset, fields, parameters), fields
    from ups_jax.simulate import solvers

    fields, coefficients = solvers.solve(task, preset, seed, report)
    return files.spectral_datasets(preset, fields, coefficients), fields
