"""Shallow water over a flat bottom in a square basin with reflecting walls: collapsing columns of water.

h_t + (hu)_x + (hv)_y = 0, (hu)_t + (hu^2 + g h^2 / 2)_x + (huv)_y = 0, and likewise for v.

Primitive variables are height and velocities (h, u, v); conserved variables are height and momenta (h, hu, hv).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from ups_jax.simulate.common import GHOSTS, ChannelArray, hll_flux, reconstruct_face_values
from ups_jax.simulate.presets import FiniteVolumePreset

# Smallest and largest radius of a column, as in PDEBench's dam break, and the width of its smooth edge.
_RADII, _EDGE = (0.3, 0.7), 0.1
_COLUMNS = 3


def initial_state(preset: FiniteVolumePreset, key: Key[Array, ""]) -> Float[Array, "3 x y"]:
    """Return still water of height 1 with one to three round columns on it, in conserved variables at the cell centres.

    Each column adds at most `preset.amplitude` to the height.
    """
    spacing = preset.extent / preset.solved_points
    line = preset.origin + spacing * (jnp.arange(preset.solved_points) + 0.5)
    keys = jax.random.split(key, 4)
    count = jax.random.randint(keys[0], (), 1, _COLUMNS + 1)
    centres = preset.origin + preset.extent * jax.random.uniform(keys[1], (_COLUMNS, 2), minval=0.2, maxval=0.8)
    radii = jax.random.uniform(keys[2], (_COLUMNS,), minval=_RADII[0], maxval=_RADII[1])
    heights = preset.amplitude * jax.random.uniform(keys[3], (_COLUMNS,), minval=0.2)
    heights = jnp.where(jnp.arange(_COLUMNS) < count, heights, 0.0)
    x, y = line[:, None, None] - centres[:, 0], line[None, :, None] - centres[:, 1]
    columns = 0.5 * (1 - jnp.tanh((jnp.hypot(x, y) - radii) / _EDGE))
    height = 1 + jnp.sum(heights * columns, axis=-1)
    return jnp.stack([height, jnp.zeros_like(height), jnp.zeros_like(height)])


def time_derivative(
    preset: FiniteVolumePreset, gravity: Float[Array, ""], state: Float[Array, "3 x y"]
) -> Float[Array, "3 x y"]:
    """Return the time derivative of the conserved variables, from the fluxes through the faces of each cell.

    Args:
        preset: Grid and domain.
        gravity: Gravitational acceleration g.
        state: Cell averages of the conserved variables.
    """
    spacing = preset.extent / preset.solved_points
    primitive = to_primitive(state)
    # Swapping the axes and the velocities turns the flux along y into one along x.
    swapped = primitive[jnp.array([0, 2, 1])].swapaxes(1, 2)
    along_y = _derivative_along_first_axis(swapped, gravity, spacing).swapaxes(1, 2)[jnp.array([0, 2, 1])]
    return _derivative_along_first_axis(primitive, gravity, spacing) + along_y


def _derivative_along_first_axis(
    primitive: Float[Array, "3 n m"], gravity: Float[Array, ""], spacing: float
) -> Float[Array, "3 n m"]:
    """Return the part of the time derivative that is due to fluxes along the first space axis."""
    padded = jnp.pad(primitive, ((0, 0), (GHOSTS, GHOSTS), (0, 0)), mode="symmetric")
    # A reflecting wall: ghost cells are the mirror image with the opposite normal velocity.
    cells = jnp.arange(padded.shape[1])
    is_ghost = (cells < GHOSTS) | (cells >= padded.shape[1] - GHOSTS)
    padded = padded.at[1].multiply(jnp.where(is_ghost, -1.0, 1.0)[:, None])
    left, right = reconstruct_face_values(padded)

    def flux(primitive: ChannelArray) -> ChannelArray:
        """Return the fluxes of mass and of both momenta through faces normal to the first axis."""
        height, normal, tangential = primitive
        return jnp.stack(
            [height * normal, height * normal**2 + 0.5 * gravity * height**2, height * normal * tangential]
        )

    def wave_speeds(primitive: ChannelArray) -> tuple[Float[Array, "f m"], Float[Array, "f m"]]:
        """Return the velocities of the slowest and the fastest gravity wave along the first axis."""
        wave = jnp.sqrt(gravity * primitive[0])
        return primitive[1] - wave, primitive[1] + wave

    return -jnp.diff(hll_flux(left, right, to_conserved, flux, wave_speeds), axis=1) / spacing


def to_conserved(primitive: ChannelArray) -> ChannelArray:
    """Return height and momenta, given height and velocities."""
    height, u, v = primitive
    return jnp.stack([height, height * u, height * v])


def to_primitive(conserved: ChannelArray) -> ChannelArray:
    """Return height and velocities, given height and momenta."""
    height, x_momentum, y_momentum = conserved
    return jnp.stack([height, x_momentum / height, y_momentum / height])
