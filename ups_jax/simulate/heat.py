"""Heat conduction on triangle meshes, u_t = kappa Laplace(u) + f with u = 0 on the boundary.

Linear finite elements in space, the Crank-Nicolson method in time. Trajectory i depends on (seed, i) only.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from jaxtyping import Float
from scipy.sparse.linalg import splu

from ups_jax.simulate.presets import MeshPreset
from ups_jax.simulate.triangles import HeatTrajectory, TriangleMesh, assemble_mass_and_stiffness, mesh_square_with_hole

# Number of bumps in an initial field or source, range of their widths, and diffusivity times time of `smooth`.
_BUMPS, _WIDTHS, _SMOOTHING = 4, (0.06, 0.2), 5e-4
_STREAM = 0x4EA7


def solve(preset: MeshPreset, seed: int, report: Callable[[str], None]) -> list[HeatTrajectory]:
    """Return random trajectories, all on one mesh or each on a mesh of its own, as `preset.meshes` says."""
    shared_mesh = mesh_square_with_hole(preset.spacing, _generator(seed, 0), preset.hole)
    trajectories = []
    for index in range(preset.trajectories):
        generator = _generator(seed, 1 + index)
        fraction = generator.random()
        if preset.scale == "log10":
            diffusivity = preset.low * (preset.high / preset.low) ** fraction
        else:
            diffusivity = preset.low + (preset.high - preset.low) * fraction
        mesh = shared_mesh
        if preset.meshes == "each":
            margin = preset.hole + 2 * preset.spacing
            x, y = generator.uniform(margin, 1 - margin, 2)
            mesh = mesh_square_with_hole(preset.spacing, generator, preset.hole, (float(x), float(y)))
        initial = generator.uniform(0.5, 1.5) * random_bumps(mesh.points, generator)
        source = preset.max_source * generator.uniform(0, 1) * random_bumps(mesh.points, generator)
        fields = integrate(mesh, smooth(mesh, initial), source, diffusivity, preset.dt, preset.steps, preset.substeps)
        trajectories.append(HeatTrajectory(mesh=mesh, fields=fields, source=source, diffusivity=diffusivity))
        if index % 20 == 19:
            report(f"heat_mesh: {index + 1} of {preset.trajectories} trajectories")
    return trajectories


def integrate(
    mesh: TriangleMesh,
    initial: Float[np.ndarray, " p"],
    source: Float[np.ndarray, " p"],
    diffusivity: float,
    dt: float,
    steps: int,
    substeps: int,
) -> Float[np.ndarray, "t p"]:
    """Return the temperature at the points in the first frame and in the `steps` frames after it.

    Args:
        initial: Initial temperature at the points; values on the boundary are replaced by 0.
        source: Heat source at the points.
        dt: Time between two frames.
        substeps: Crank-Nicolson steps for each `dt`.
    """
    mass, stiffness = assemble_mass_and_stiffness(mesh)
    inner = np.flatnonzero(~mesh.boundary)
    substep = dt / substeps
    inner_mass, half_step = mass[inner][:, inner], 0.5 * substep * diffusivity * stiffness[inner][:, inner]
    implicit, explicit = splu((inner_mass + half_step).tocsc()), inner_mass - half_step
    heat = substep * (mass @ source)[inner]
    frames = np.zeros((steps + 1, len(initial)))
    frames[0, inner] = initial[inner]
    for frame in range(steps):
        values = frames[frame, inner]
        for _ in range(substeps):
            values = implicit.solve(explicit @ values + heat)
        frames[frame + 1, inner] = values
    return frames


def random_bumps(points: Float[np.ndarray, "p 2"], generator: np.random.Generator) -> Float[np.ndarray, " p"]:
    """Return the sum of random positive and negative Gaussian bumps at points."""
    centres, signs = generator.random((_BUMPS, 2)), generator.uniform(-1, 1, _BUMPS)
    widths = generator.uniform(*_WIDTHS, _BUMPS)
    squares = ((points[:, None] - centres) ** 2).sum(axis=-1)
    return (signs * np.exp(-0.5 * squares / widths**2)).sum(axis=-1)


def smooth(mesh: TriangleMesh, field: Float[np.ndarray, " p"]) -> Float[np.ndarray, " p"]:
    """Return a field after one short implicit diffusion step, which lets it fall smoothly to 0 at the boundary."""
    mass, stiffness = assemble_mass_and_stiffness(mesh)
    inner = np.flatnonzero(~mesh.boundary)
    result = np.zeros_like(field)
    system = (mass + _SMOOTHING * stiffness)[inner][:, inner]
    result[inner] = splu(system.tocsc()).solve((mass @ field)[inner])
    return result


def _generator(seed: int, index: int) -> np.random.Generator:
    """Return the random generator for an index: 0 is the shared mesh, 1 + i is trajectory i."""
    return np.random.default_rng([_STREAM, abs(seed), index])
