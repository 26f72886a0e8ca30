"""What a uniform flow carries through a periodic box while it spreads, exactly: u_t + beta . grad u = nu Laplace(u).

Each Fourier mode moves by itself, u_k(t) = u_k(0) exp(-(i k . beta + nu |k|^2) t), and the few modes of a trajectory
are summed up where the grid has points: a finer grid holds the same fields, and no step is taken.
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
class Spreading:
    """One trajectory: the amplitudes of the modes -m to m of each axis, what carries them and how fast they spread."""

    amplitudes: Complex[np.ndarray, "k k k"]
    velocity: Float[np.ndarray, " 3"]
    diffusivity: float

    def frames(
        self, axis: Float[np.ndarray, " p"], times: Float[np.ndarray, " t"], extent: float
    ) -> Float[np.ndarray, "t p p p"]:
        """The field at some times, on the points of `axis` along all three axes of a box of length `extent`."""
        modes = len(self.amplitudes) // 2
        numbers = 2 * np.pi / extent * np.arange(-modes, modes + 1)
        x, y, z = np.meshgrid(numbers, numbers, numbers, indexing="ij")
        turn = np.tensordot(self.velocity, np.stack([x, y, z]), 1)
        spectrum = self.amplitudes * np.exp(
            -(1j * turn + self.diffusivity * (x**2 + y**2 + z**2)) * times[:, None, None, None]
        )
        waves = np.exp(1j * np.outer(axis, numbers))
        return np.einsum("tabc,xa,yb,zc->txyz", spectrum, waves, waves, waves, optimize=True).real


def solve(
    preset: TransportPreset, seed: int, report: Callable[[str], None]
) -> tuple[Float[np.ndarray, "n t p p p"], dict[str, Float[np.ndarray, " n"]]]:
    """Trajectories in float32, and their diffusivities and velocities by name. `report` is told when it begins."""
    report(f"advection_diffusion3d: {preset.trajectories} trajectories")
    axis = preset.origin + np.arange(preset.points) * (preset.extent / preset.points)
    times = np.arange(preset.steps + 1) * preset.dt
    each = [drawn(preset, seed, index) for index in range(preset.trajectories)]
    fields = np.stack([item.frames(axis, times, preset.extent).astype(np.float32) for item in each])
    velocities = np.stack([item.velocity for item in each])
    parameters = {"nu": np.array([item.diffusivity for item in each])}
    return fields, parameters | {f"beta_{name}": velocities[:, row] for row, name in enumerate("xyz")}


def drawn(preset: TransportPreset, seed: int, index: int) -> Spreading:
    """Trajectory `index` of a seed: a field of mean square 1 at first, whose modes weigh 1 / (1 + |k|^2)."""
    generator = np.random.default_rng([_STREAM, abs(seed), index])
    count = 2 * preset.modes + 1
    numbers = np.arange(-preset.modes, preset.modes + 1)
    square = sum(part**2 for part in np.meshgrid(numbers, numbers, numbers, indexing="ij"))
    random = generator.normal(size=(2, count, count, count))
    amplitudes = (random[0] + 1j * random[1]) / (1 + square)
    # A real field's modes come in pairs k and -k.
    amplitudes = (amplitudes + np.conj(amplitudes[::-1, ::-1, ::-1])) / 2
    share = generator.random()
    return Spreading(
        amplitudes=amplitudes / math.sqrt(np.sum(np.abs(amplitudes) ** 2)),
        velocity=generator.uniform(-preset.speed, preset.speed, 3),
        diffusivity=preset.low * (preset.high / preset.low) ** share,
    )
