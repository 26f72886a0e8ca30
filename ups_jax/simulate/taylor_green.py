"""Particles that a Taylor-Green flow advects in a periodic box, with the Runge-Kutta method of fourth order.

u = U + A(t) sin(x - a(t)) cos(y - b(t)), v = V - A(t) cos(x - a(t)) sin(y - b(t)) with A(t) = A exp(-2 nu t) and
(a(t), b(t)) = (a, b) + (U, V) t: vortices that decay and move with the mean flow (U, V). This is an exact solution of
the incompressible Navier-Stokes equations.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from ups_jax.simulate.presets import ParticlePreset

_STREAM = 0x7A61


@dataclass(frozen=True, kw_only=True)
class TaylorGreenFlow:
    """The flow of one trajectory, with the symbols of the module's formula.

    Attributes:
        amplitude: Largest speed A of the vortices at time 0.
        viscosity: nu.
        phase: Position (a, b) of the vortices at time 0.
        mean_velocity: Velocity (U, V) of the mean flow.
    """

    amplitude: float
    viscosity: float
    phase: Float[np.ndarray, " 2"]
    mean_velocity: Float[np.ndarray, " 2"]

    def velocity(self, positions: Float[np.ndarray, "p 2"], time: float) -> Float[np.ndarray, "p 2"]:
        """Return the velocity of the flow at each of the positions."""
        x, y = (positions - self.phase - self.mean_velocity * time).T
        amplitude = self.amplitude * np.exp(-2 * self.viscosity * time)
        return self.mean_velocity + amplitude * np.stack([np.sin(x) * np.cos(y), -np.cos(x) * np.sin(y)], axis=-1)


def solve(
    preset: ParticlePreset, seed: int, report: Callable[[str], None]
) -> tuple[Float[np.ndarray, "n t p 2"], Float[np.ndarray, "n t p 2"], Float[np.ndarray, " n"]]:
    """Return the particles' positions, the particles' velocities, and the viscosity of each trajectory."""
    report(f"particles: {preset.trajectories} trajectories")
    trajectories = [_solve_trajectory(preset, seed, index) for index in range(preset.trajectories)]
    positions, velocities, viscosities = zip(*trajectories, strict=True)
    return np.stack(positions), np.stack(velocities), np.array(viscosities)


def advect_particles(
    flow: TaylorGreenFlow, initial: Float[np.ndarray, "p 2"], dt: float, steps: int, substeps: int
) -> Float[np.ndarray, "t p 2"]:
    """Return the positions of particles in the first frame and in the `steps` frames after it.

    Positions are not wrapped into the periodic box.

    Args:
        initial: Positions at time 0.
        dt: Time between two frames.
        substeps: Runge-Kutta steps for each `dt`.
    """
    step, positions, frames = dt / substeps, initial, [initial]
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


def _solve_trajectory(
    preset: ParticlePreset, seed: int, index: int
) -> tuple[Float[np.ndarray, "t p 2"], Float[np.ndarray, "t p 2"], float]:
    """Return the positions, the velocities and the viscosity of trajectory `index`."""
    generator = np.random.default_rng([_STREAM, abs(seed), index])
    fraction = generator.random()
    viscosity = (
        preset.low * (preset.high / preset.low) ** fraction
        if preset.scale == "log10"
        else preset.low + (preset.high - preset.low) * fraction
    )
    flow = TaylorGreenFlow(
        amplitude=float(generator.uniform(preset.min_speed, preset.max_speed)),
        viscosity=float(viscosity),
        phase=generator.uniform(0, 2 * np.pi, 2),
        mean_velocity=generator.uniform(-preset.max_drift, preset.max_drift, 2),
    )
    initial = generator.uniform(0, 2 * np.pi, (preset.points, 2))
    positions = advect_particles(flow, initial, preset.dt, preset.steps, preset.substeps)
    times = np.arange(preset.steps + 1) * preset.dt
    velocities = np.stack([flow.velocity(frame, float(time)) for frame, time in zip(positions, times, strict=True)])
    return positions, velocities, float(viscosity)
