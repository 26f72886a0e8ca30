"""Shallow water in a square basin with reflecting walls, over a flat bottom: columns of water that collapse.

h_t + (hu)_x + (hv)_y = 0, (hu)_t + (hu^2 + g h^2 / 2)_x + (huv)_y = 0, and the same for v.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from ups_jax.simulate.common import GHOSTS, Values, face_values, hll
from ups_jax.simulate.presets import VolumePreset

# Radii of the columns as PDEBench draws its dam, and over how much of a length their edge rises.
_RADII, _EDGE = (0.3, 0.7), 0.1
_COLUMNS = 3


def initial(preset: VolumePreset, key: Key[Array, ""]) -> Float[Array, "3 x y"]:
    """Still water of height 1 with one to three round columns on it, up to the preset's amplitude higher."""
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


def rate(preset: VolumePreset, gravity: Float[Array, ""], state: Float[Array, "3 x y"]) -> Float[Array, "3 x y"]:
    """Minus the differences of the fluxes over each cell, along x and along y."""
    spacing = preset.extent / preset.solved_points
    primitive = fields(state)
    # Along y the roles of the velocities and of the axes are exchanged.
    turned = primitive[jnp.array([0, 2, 1])].swapaxes(1, 2)
    along_y = _rate_along_first(turned, gravity, spacing).swapaxes(1, 2)[jnp.array([0, 2, 1])]
    return _rate_along_first(primitive, gravity, spacing) + along_y


def _rate_along_first(
    primitive: Float[Array, "3 n m"], gravity: Float[Array, ""], spacing: float
) -> Float[Array, "3 n m"]:
    padded = jnp.pad(primitive, ((0, 0), (GHOSTS, GHOSTS), (0, 0)), mode="symmetric")
    # Behind a wall is the mirror image, whose velocity across it is the opposite.
    cells = jnp.arange(padded.shape[1])
    behind = (cells < GHOSTS) | (cells >= padded.shape[1] - GHOSTS)
    padded = padded.at[1].multiply(jnp.where(behind, -1.0, 1.0)[:, None])
    left, right = face_values(padded)

    def flux(primitive: Values) -> Values:
        height, across, along = primitive
        return jnp.stack([height * across, height * across**2 + 0.5 * gravity * height**2, height * across * along])

    def speeds(primitive: Values) -> tuple[Float[Array, "f m"], Float[Array, "f m"]]:
        wave = jnp.sqrt(gravity * primitive[0])
        return primitive[1] - wave, primitive[1] + wave

    return -jnp.diff(hll(left, right, conserved, flux, speeds), axis=1) / spacing


def conserved(primitive: Values) -> Values:
    """Height and momenta of height and velocities."""
    height, u, v = primitive
    return jnp.stack([height, height * u, height * v])


def fields(state: Values) -> Values:
    """The inverse of `conserved`."""
    height, x_momentum, y_momentum = state
    return jnp.stack([height, x_momentum / height, y_momentum / height])
