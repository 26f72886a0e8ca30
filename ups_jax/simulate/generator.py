"""Generate a data set, or everything that a configuration needs and that is not there yet."""

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
from ups_jax.simulate.presets import AnyPreset, DarcyPreset, MeshPreset, ParticlePreset, TransportPreset, VolumePreset


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
    """Solve `preset` of `task` into an HDF5 file at `path`; True if it was written, False if it was there already.

    `trajectories` replaces the preset's number; trajectory i is the same in either. Raises `ConfigError` for an unknown
    name, `DataError` for a file of another origin or a solution that is not finite, `StorageError` if `path` cannot be
    written.
    """
    chosen = presets.find(task, preset)
    if trajectories is not None:
        if trajectories < 1:
            raise ConfigError(f"--trajectories is {trajectories}; give 1 or more")
        chosen = replace(chosen, trajectories=trajectories)
    path = Path(path)
    origin = files.Origin(task=task, preset=preset, seed=seed, trajectories=chosen.trajectories)
    if path.exists() and not overwrite:
        files.check(path, origin)
        return False
    content, fields = _solve(task, chosen, seed, report)
    bad = int(np.sum(~np.isfinite(fields).all(axis=tuple(range(1, fields.ndim)))))
    if bad:
        raise DataError(
            f"{task}, preset {preset}: {bad} of {len(fields)} solved trajectories are not finite; "
            "the preset needs more substeps or points"
        )
    files.write(path, origin, content, chosen.boundary)
    return True


def prepare(cfg: Config, report: Callable[[str], None] = lambda line: None) -> list[Path]:
    """Write the data of every task that has no file of its own and is not there yet; the files that were written.

    A file with another seed or number of trajectories is somebody's choice and stays.
    """
    written = []
    for task in cfg.data.tasks:
        if task.path is not None:
            continue
        path = data_path(cfg.data, task)
        if path.exists():
            preset = presets.find(task.name, task.preset)
            origin = files.Origin(task=task.name, preset=task.preset, seed=0, trajectories=preset.trajectories)
            files.check(path, origin, ("task", "preset", "generator_version"))
        elif generate(task.name, task.preset, path, report=report):
            written.append(path)
    return written


def _solve(
    task: str, preset: AnyPreset, seed: int, report: Callable[[str], None]
) -> tuple[Mapping[str, np.ndarray | str], Float[np.ndarray, "n *d"]]:
    """What the file holds, and the solution in it."""
    # Imported here: exponax and jax take a second that a run with its data at hand does not need.
    if isinstance(preset, DarcyPreset):
        from ups_jax.simulate import darcy

        permeability, solution = darcy.solve(task, preset, seed, report)
        return files.steady(preset, permeability, solution), solution
    if isinstance(preset, VolumePreset):
        from ups_jax.simulate import finite_volumes

        fields, coefficients = finite_volumes.solve(task, preset, seed, report)
        layout = files.compressible if preset.dimensions == 1 else files.seeds
        return layout(preset, fields, coefficients), fields
    if isinstance(preset, MeshPreset):
        from ups_jax.simulate import heat

        trajectories = heat.solve(preset, seed, report)
        return files.mesh(preset, trajectories), np.concatenate([item.fields.ravel() for item in trajectories])[None]
    if isinstance(preset, ParticlePreset):
        from ups_jax.simulate import taylor_green

        positions, velocities, viscosity = taylor_green.solve(preset, seed, report)
        return files.particles(preset, positions, velocities, viscosity), velocities
    if isinstance(preset, TransportPreset):
        from ups_jax.simulate import transport

        fields, parameters = transport.solve(preset, seed, report)
        return files.tensor(preset, fields, parameters), fields
    from ups_jax.simulate import solvers

    fields, coefficients = solvers.solve(task, preset, seed, report)
    return files.trajectories(preset, fields, coefficients), fields
