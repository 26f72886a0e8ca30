"""Compressible flow in one periodic dimension with shear and bulk viscosity, as in PDEBench.

rho_t + (rho v)_x = 0, (rho v)_t + (rho v^2 + p)_x = s_x, E_t + ((E + p) v)_x = (v s)_x with the stress
s = (4/3 eta + zeta) v_x, zeta = eta, E = p / (gamma - 1) + rho v^2 / 2 and gamma = 5/3; no heat conduction.

Primitive variables are density, pressure and velocity; conserved variables are density, momentum and energy.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from ups_jax.simulate.common import GHOSTS, ChannelArray, hll_flux, reconstruct_face_values
from ups_jax.simulate.presets import FiniteVolumePreset

GAMMA = 5 / 3
# Largest deviation of the initial density and pressure from 1.
_SPREAD = 0.3


def initial_state(preset: FiniteVolumePreset, key: Key[Array, ""]) -> Float[Array, "3 x"]:
    """Return a random smooth state at the cell centres, in conserved variables.

    Density and pressure vary around 1, the velocity around 0 with amplitude `preset.amplitude`. Each of the three is a
    sum of `preset.modes` Fourier modes.
    """
    centres = (jnp.arange(preset.solved_points) + 0.5) / preset.solved_points
    modes = 1 + jnp.arange(preset.modes)
    size_key, phase_key = jax.random.split(key)
    sizes = jax.random.normal(size_key, (3, preset.modes)) / modes
    phases = 2 * jnp.pi * jax.random.uniform(phase_key, (3, preset.modes))
    waves = jnp.sum(sizes[..., None] * jnp.sin(2 * jnp.pi * modes[:, None] * centres + phases[..., None]), axis=1)
    waves = waves / jnp.abs(waves).max(axis=1, keepdims=True)
    return to_conserved(jnp.stack([1 + _SPREAD * waves[0], 1 + _SPREAD * waves[1], preset.amplitude * waves[2]]))


def time_derivative(
    preset: FiniteVolumePreset, eta: Float[Array, ""], state: Float[Array, "3 x"]
) -> Float[Array, "3 x"]:
    """Return the time derivative of the conserved variables, from the fluxes through both faces of each cell.

    Args:
        preset: Grid and domain.
        eta: Shear viscosity, which is also used as the bulk viscosity.
        state: Cell averages of the conserved variables.
    """
    spacing = preset.extent / preset.solved_points
    padded = jnp.pad(to_primitive(state), ((0, 0), (GHOSTS, GHOSTS)), mode="wrap")
    left, right = reconstruct_face_values(padded)
    velocity = padded[2, 1:-1]
    stress = (4 / 3 * eta + eta) * jnp.diff(velocity) / spacing
    stress_work = 0.5 * (velocity[1:] + velocity[:-1]) * stress
    inviscid_flux = hll_flux(left, right, to_conserved, flux, wave_speeds)
    viscous_flux = jnp.stack([jnp.zeros_like(stress), stress, stress_work])
    return -jnp.diff(inviscid_flux - viscous_flux, axis=1) / spacing


def to_conserved(primitive: ChannelArray) -> ChannelArray:
    """Return density, momentum and energy, given density, pressure and velocity."""
    density, pressure, velocity = primitive
    return jnp.stack([density, density * velocity, pressure / (GAMMA - 1) + 0.5 * density * velocity**2])


def to_primitive(conserved: ChannelArray) -> ChannelArray:
    """Return density, pressure and velocity, given density, momentum and energy."""
    density, momentum, energy = conserved
    velocity = momentum / density
    return jnp.stack([density, (GAMMA - 1) * (energy - 0.5 * momentum * velocity), velocity])


def flux(primitive: ChannelArray) -> ChannelArray:
    """Return the inviscid fluxes of mass, momentum and energy, given density, pressure and velocity."""
    density, pressure, velocity = primitive
    energy = pressure / (GAMMA - 1) + 0.5 * density * velocity**2
    return jnp.stack([density * velocity, density * velocity**2 + pressure, (energy + pressure) * velocity])


def wave_speeds(primitive: ChannelArray) -> tuple[Float[Array, " f"], Float[Array, " f"]]:
    """Return the velocities of the slowest and the fastest sound wave, given density, pressure and velocity."""
    density, pressure, velocity = primitive
    sound = jnp.sqrt(GAMMA * pressure / density)
    return velocity - sound, velocity + sound
