"""Exact solutions of the advection-diffusion equation u_t + beta . grad u = nu Laplace(u) in a periodic 3D box.

Each Fourier mode evolves independently, u_k(t) = u_k(0) exp(-(i k . beta + nu |k|^2) t). The few modes of a trajectory
are summed at the grid points: there are no time steps, and finer grids contain the same fields.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Complex, Float

from ups_jax.simulate.presets import TransportPreset

_STREAM = 0x3DAD


@dataclass(frozen=True, kw_only=True)
class AdvectionDiffusion:
    """The exact solution of one trajectory.

    Attributes:
        amplitudes: Initial amplitudes of the Fourier modes -m to m along each axis.
        velocity: Advection velocity beta.
        diffusivity: nu.
    """

    amplitudes: Complex[np.ndarray, "k k k"]
    velocity: Float[np.ndarray, " 3"]
    diffusivity: float

    def evaluate(
        self, coordinates: Float[np.ndarray, " p"], times: Float[np.ndarray, " t"], extent: float
    ) -> Float[np.ndarray, "t p p p"]:
        """Return the field on a grid at several times.

        Args:
            coordinates: Coordinates of the grid points along one axis; all three axes have the same.
            extent: Length of the periodic box along each axis.
        """
        modes = len(self.amplitudes) // 2
        wavenumbers = 2 * np.pi / extent * np.arange(-modes, modes + 1)
        x, y, z = np.meshgrid(wavenumbers, wavenumbers, wavenumbers, indexing="ij")
        frequency = np.tensordot(self.velocity, np.stack([x, y, z]), 1)
        spectrum = self.amplitudes * np.exp(
            -(1j * frequency + self.diffusivity * (x**2 + y**2 + z**2)) * times[:, None, None, None]
        )
        waves = np.exp(1j * np.outer(coordinates, wavenumbers))
        return np.einsum("tabc,xa,yb,zc->txyz", spectrum, waves, waves, waves, optimize=True).real


def solve(
    preset: TransportPreset, seed: int, report: Callable[[str], None]
) -> tuple[Float[np.ndarray, "n t p p p"], dict[str, Float[np.ndarray, " n"]]]:
    """Return random trajectories in float32, and their parameters by name: `nu`, `beta_x`, `beta_y` and `beta_z`."""
    report(f"advection_diffusion3d: {preset.trajectories} trajectories")
    coordinates = preset.origin + np.arange(preset.points) * (preset.extent / preset.points)
    times = np.arange(preset.steps + 1) * preset.dt
    solutions = [draw_solution(preset, seed, index) for index in range(preset.trajectories)]
    fields = np.stack(
        [solution.evaluate(coordinates, times, preset.extent).astype(np.float32) for solution in solutions]
    )
    velocities = np.stack([solution.velocity for solution in solutions])
    parameters = {"nu": np.array([solution.diffusivity for solution in solutions])}
    return fields, parameters | {f"beta_{name}": velocities[:, row] for row, name in enumerate("xyz")}


def draw_solution(preset: TransportPreset, seed: int, index: int) -> AdvectionDiffusion:
    """Return the random exact solution of trajectory `index`.

    Its initial field has a mean square of 1 over space. The amplitudes decay as 1 / (1 + |k|^2).
    """
    generator = np.random.default_rng([_STREAM, abs(seed), index])
    count = 2 * preset.modes + 1
    numbers = np.arange(-preset.modes, preset.modes + 1)
    square = sum(component**2 for component in np.meshgrid(numbers, numbers, numbers, indexing="ij"))
    random = generator.normal(size=(2, count, count, count))
    amplitudes = (random[0] + 1j * random[1]) / (1 + square)
    # The field is real: the amplitudes of k and -k are complex conjugates.
    amplitudes = (amplitudes + np.conj(amplitudes[::-1, ::-1, ::-1])) / 2
    fraction = generator.random()
    return AdvectionDiffusion(
        amplitudes=amplitudes / math.sqrt(np.sum(np.abs(amplitudes) ** 2)),
        velocity=generator.uniform(-preset.max_speed, preset.max_speed, 3),
        diffusivity=preset.low * (preset.high / preset.low) ** fraction,
    )
