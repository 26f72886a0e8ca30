"""Particles that a Taylor-Green flow carries through a periodic box, by Runge and Kutta's method of fourth order.

u = U + A(t) sin(x - a) cos(y - b), v = V - A(t) cos(x - a) sin(y - b), where A(t) = A exp(-2 nu t) and the pattern
moves with the mean flow, (a, b) = (a, b) + (U, V) t: an exact solution of Navier and Stokes' equations.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from ups_jax.simulate.presets import ParticlePreset

_STREAM = 0x7A61


@dataclass(frozen=True, kw_only=True)
class Vortices:
    """The flow of one trajectory."""

    speed: float
    viscosity: float
    phase: Float[np.ndarray, " 2"]
    drift: Float[np.ndarray, " 2"]

    def velocity(self, positions: Float[np.ndarray, "p 2"], time: float) -> Float[np.ndarray, "p 2"]:
        """The velocity at some positions."""
        x, y = (positions - self.phase - self.drift * time).T
        speed = self.speed * np.exp(-2 * self.viscosity * time)
        return self.drift + speed * np.stack([np.sin(x) * np.cos(y), -np.cos(x) * np.sin(y)], axis=-1)


def solve(
    preset: ParticlePreset, seed: int, report: Callable[[str], None]
) -> tuple[Float[np.ndarray, "n t p 2"], Float[np.ndarray, "n t p 2"], Float[np.ndarray, " n"]]:
    """Positions, velocities, and the viscosity of each trajectory. `report` is told when it begins."""
    report(f"particles: {preset.trajectories} trajectories")
    each = [_trajectory(preset, seed, index) for index in range(preset.trajectories)]
    positions, velocities, viscosities = zip(*each, strict=True)
    return np.stack(positions), np.stack(velocities), np.array(viscosities)


def carried(
    flow: Vortices, start: Float[np.ndarray, "p 2"], dt: float, steps: int, substeps: int
) -> Float[np.ndarray, "t p 2"]:
    """The `start` and the positions at the `steps` frames after it; they go on beyond the box."""
    step, positions, frames = dt / substeps, start, [start]
    for number in range(steps * substeps):
        time = number * step
        first = flow.velocity(positions, time)
        second = flow.velocity(positions + 0.5 * step * first, time + 0.5 * step)
        third = flow.velocity(positions + 0.5 * step * second, time + 0.5 * step)
        fourth = flow.velocity(positions + step * third, time + step)
        positions = positions + step / 6 * (first + 2 * second + 2 * third + fourth)
        if (number + 1) % substeps == 0:
            frames.append(positions)
    return np.stack(frames)


def _trajectory(
    preset: ParticlePreset, seed: int, index: int
) -> tuple[Float[np.ndarray, "t p 2"], Float[np.ndarray, "t p 2"], float]:
    generator = np.random.default_rng([_STREAM, abs(seed), index])
    share = generator.random()
    viscosity = (
        preset.low * (preset.high / preset.low) ** share
        if preset.scale == "log10"
        else preset.low + (preset.high - preset.low) * share
    )
    flow = Vortices(
        speed=float(generator.uniform(preset.slow, preset.fast)),
        viscosity=float(viscosity),
        phase=generator.uniform(0, 2 * np.pi, 2),
        drift=generator.uniform(-preset.drift, preset.drift, 2),
    )
    start = generator.uniform(0, 2 * np.pi, (preset.points, 2))
    positions = carried(flow, start, preset.dt, preset.steps, preset.substeps)
    times = np.arange(preset.steps + 1) * preset.dt
    velocities = np.stack([flow.velocity(place, float(time)) for place, time in zip(positions, times, strict=True)])
    return positions, velocities, float(viscosity)
