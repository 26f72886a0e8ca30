"""Compressible flow in one dimension with shear and bulk viscosity, periodic: PDEBench's equations.

rho_t + (rho v)_x = 0, (rho v)_t + (rho v^2 + p)_x = s_x, E_t + ((E + p) v)_x = (v s)_x with the stress
s = (4/3 eta + zeta) v_x, zeta = eta, E = p / (gamma - 1) + rho v^2 / 2 and gamma = 5/3; no heat conduction.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from ups_jax.simulate.common import GHOSTS, Values, face_values, hll
from ups_jax.simulate.presets import VolumePreset

GAMMA = 5 / 3
# Largest deviation of density and pressure from 1; the velocity is up to the preset's amplitude.
_SPREAD = 0.3


def initial(preset: VolumePreset, key: Key[Array, ""]) -> Float[Array, "3 x"]:
    """Smooth random density and pressure about 1 and velocity about 0: `modes` Fourier modes each."""
    centres = (jnp.arange(preset.solved_points) + 0.5) / preset.solved_points
    modes = 1 + jnp.arange(preset.modes)
    size_key, phase_key = jax.random.split(key)
    sizes = jax.random.normal(size_key, (3, preset.modes)) / modes
    phases = 2 * jnp.pi * jax.random.uniform(phase_key, (3, preset.modes))
    waves = jnp.sum(sizes[..., None] * jnp.sin(2 * jnp.pi * modes[:, None] * centres + phases[..., None]), axis=1)
    waves = waves / jnp.abs(waves).max(axis=1, keepdims=True)
    return conserved(jnp.stack([1 + _SPREAD * waves[0], 1 + _SPREAD * waves[1], preset.amplitude * waves[2]]))


def rate(preset: VolumePreset, eta: Float[Array, ""], state: Float[Array, "3 x"]) -> Float[Array, "3 x"]:
    """Minus the difference of the fluxes over each cell."""
    spacing = preset.extent / preset.solved_points
    padded = jnp.pad(fields(state), ((0, 0), (GHOSTS, GHOSTS)), mode="wrap")
    left, right = face_values(padded)
    velocity = padded[2, 1:-1]
    stress = (4 / 3 * eta + eta) * jnp.diff(velocity) / spacing
    carried = 0.5 * (velocity[1:] + velocity[:-1]) * stress
    flow = hll(left, right, conserved, flux, speeds) - jnp.stack([jnp.zeros_like(stress), stress, carried])
    return -jnp.diff(flow, axis=1) / spacing


def conserved(primitive: Values) -> Values:
    """Density, momentum and energy of density, pressure and velocity."""
    density, pressure, velocity = primitive
    return jnp.stack([density, density * velocity, pressure / (GAMMA - 1) + 0.5 * density * velocity**2])


def fields(state: Values) -> Values:
    """The inverse of `conserved`."""
    density, momentum, energy = state
    velocity = momentum / density
    return jnp.stack([density, (GAMMA - 1) * (energy - 0.5 * momentum * velocity), velocity])


def flux(primitive: Values) -> Values:
    """Of mass, momentum and energy, without viscosity."""
    density, pressure, velocity = primitive
    energy = pressure / (GAMMA - 1) + 0.5 * density * velocity**2
    return jnp.stack([density * velocity, density * velocity**2 + pressure, (energy + pressure) * velocity])


def speeds(primitive: Values) -> tuple[Float[Array, " f"], Float[Array, " f"]]:
    """Of the sound waves to the left and to the right."""
    density, pressure, velocity = primitive
    sound = jnp.sqrt(GAMMA * pressure / density)
    return velocity - sound, velocity + sound
