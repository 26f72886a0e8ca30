"""Heat on a plate of triangles, u_t = kappa laplace(u) + f and u = 0 on all sides, by implicit finite elements.

Linear elements, Crank and Nicolson's steps. Trajectory i is a function of (seed, i) alone.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from jaxtyping import Float
from scipy.sparse.linalg import splu

from ups_jax.simulate.presets import MeshPreset
from ups_jax.simulate.triangles import HeatedPlate, Mesh, matrices, plate

# How many bumps an initial field or a source has, how wide, and the squared length that they are rounded off over.
_BUMPS, _WIDTHS, _ROUNDING = 4, (0.06, 0.2), 5e-4
_STREAM = 0x4EA7


def solve(preset: MeshPreset, seed: int, report: Callable[[str], None]) -> list[HeatedPlate]:
    """A trajectory each, on one mesh or on one of its own. `report` is told how far it is."""
    shared = plate(preset.spacing, _generator(seed, 0), preset.hole)
    found = []
    for index in range(preset.trajectories):
        generator = _generator(seed, 1 + index)
        share = generator.random()
        if preset.scale == "log10":
            diffusivity = preset.low * (preset.high / preset.low) ** share
        else:
            diffusivity = preset.low + (preset.high - preset.low) * share
        mesh = shared
        if preset.meshes == "each":
            room = preset.hole + 2 * preset.spacing
            x, y = generator.uniform(room, 1 - room, 2)
            mesh = plate(preset.spacing, generator, preset.hole, (float(x), float(y)))
        start = generator.uniform(0.5, 1.5) * bumps(mesh.points, generator)
        source = preset.source * generator.uniform(0, 1) * bumps(mesh.points, generator)
        fields = run(mesh, rounded(mesh, start), source, diffusivity, preset.dt, preset.steps, preset.substeps)
        found.append(HeatedPlate(mesh=mesh, fields=fields, source=source, diffusivity=diffusivity))
        if index % 20 == 19:
            report(f"heat_mesh: {index + 1} of {preset.trajectories} trajectories")
    return found


def run(
    mesh: Mesh,
    start: Float[np.ndarray, " p"],
    source: Float[np.ndarray, " p"],
    diffusivity: float,
    dt: float,
    steps: int,
    substeps: int,
) -> Float[np.ndarray, "t p"]:
    """The `start` and the `steps` frames `dt` apart after it."""
    mass, stiffness = matrices(mesh)
    free = np.flatnonzero(~mesh.boundary)
    step = dt / substeps
    inner, flow = mass[free][:, free], 0.5 * step * diffusivity * stiffness[free][:, free]
    solver, forward = splu((inner + flow).tocsc()), inner - flow
    heat = step * (mass @ source)[free]
    frames = np.zeros((steps + 1, len(start)))
    frames[0, free] = start[free]
    for frame in range(steps):
        values = frames[frame, free]
        for _ in range(substeps):
            values = solver.solve(forward @ values + heat)
        frames[frame + 1, free] = values
    return frames


def bumps(points: Float[np.ndarray, "p 2"], generator: np.random.Generator) -> Float[np.ndarray, " p"]:
    """A sum of round bumps of either sign."""
    centres, signs = generator.random((_BUMPS, 2)), generator.uniform(-1, 1, _BUMPS)
    widths = generator.uniform(*_WIDTHS, _BUMPS)
    squares = ((points[:, None] - centres) ** 2).sum(axis=-1)
    return (signs * np.exp(-0.5 * squares / widths**2)).sum(axis=-1)


def rounded(mesh: Mesh, field: Float[np.ndarray, " p"]) -> Float[np.ndarray, " p"]:
    """The field after a short implicit step: it falls to 0 towards the sides."""
    mass, stiffness = matrices(mesh)
    free = np.flatnonzero(~mesh.boundary)
    result = np.zeros_like(field)
    system = (mass + _ROUNDING * stiffness)[free][:, free]
    result[free] = splu(system.tocsc()).solve((mass @ field)[free])
    return result


def _generator(seed: int, index: int) -> np.random.Generator:
    return np.random.default_rng([_STREAM, abs(seed), index])
