"""Functions that several built-in solvers share: the CPU device, PDE coefficients, face values and the HLL flux."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ups_jax.core.errors import ConfigError
from ups_jax.simulate.presets import FiniteVolumePreset, Preset

# Number of ghost cells beyond each end of the domain, as the linear reconstruction needs them.
GHOSTS = 2
# The channels of a state, along the first axis, at cells or faces.
ChannelArray = Float[Array, "c *s"]


def cpu_device() -> jax.Device:
    """Return JAX's CPU device, on which the solvers compute in float64. Raises `ConfigError` if JAX has none."""
    try:
        return jax.local_devices(backend="cpu")[0]
    except RuntimeError:
        raise ConfigError(
            "the built-in solvers need JAX's CPU backend, which the environment variable JAX_PLATFORMS excludes; "
            "append `,cpu` to its value"
        ) from None


def coefficient_at(preset: Preset | FiniteVolumePreset, fraction: Float[Array, ""]) -> Float[Array, ""]:
    """Return the PDE coefficient at a `fraction` (0 to 1) of the preset's range, on its linear or logarithmic scale."""
    if preset.coefficient is None:
        return jnp.asarray(preset.low)
    if preset.scale == "log10":
        return preset.low * (preset.high / preset.low) ** fraction
    return preset.low + (preset.high - preset.low) * fraction


def reconstruct_face_values(padded: Float[Array, "c n *s"]) -> tuple[Float[Array, "c f *s"], Float[Array, "c f *s"]]:
    """Return the values on the left and on the right of each face along the first space axis.

    The reconstruction is linear in each cell and second-order accurate where the field is smooth. Slopes are limited
    by the monotonized central limiter.

    Args:
        padded: Cell averages, with `GHOSTS` ghost cells at each end of the first space axis.

    References:
        van Leer 1977, Towards the ultimate conservative difference scheme III.
    """
    backward, forward = padded[:, 1:-1] - padded[:, :-2], padded[:, 2:] - padded[:, 1:-1]
    sign = 0.5 * (jnp.sign(backward) + jnp.sign(forward))
    size = jnp.minimum(2 * jnp.minimum(jnp.abs(backward), jnp.abs(forward)), 0.5 * jnp.abs(backward + forward))
    half_slope = 0.5 * sign * size
    inner = padded[:, 1:-1]
    return (inner + half_slope)[:, :-1], (inner - half_slope)[:, 1:]


def hll_flux(
    left: Float[Array, "c f *s"],
    right: Float[Array, "c f *s"],
    to_conserved: Callable[[ChannelArray], ChannelArray],
    flux: Callable[[ChannelArray], ChannelArray],
    wave_speeds: Callable[[ChannelArray], tuple[Float[Array, "f *s"], Float[Array, "f *s"]]],
) -> Float[Array, "c f *s"]:
    """Return the HLL flux (Harten, Lax, van Leer) through each face, with Davis' bounds on the wave speeds.

    Args:
        left: Primitive variables on the left of each face.
        right: Primitive variables on the right of each face.
        to_conserved: Conserved variables as a function of the primitive ones.
        flux: Physical flux as a function of the primitive variables.
        wave_speeds: Slowest and fastest wave speed as a function of the primitive variables.
    """
    (slow_left, fast_left), (slow_right, fast_right) = wave_speeds(left), wave_speeds(right)
    slow = jnp.minimum(jnp.minimum(slow_left, slow_right), 0.0)
    fast = jnp.maximum(jnp.maximum(fast_left, fast_right), 0.0)
    jump = to_conserved(right) - to_conserved(left)
    return (fast * flux(left) - slow * flux(right) + slow * fast * jump) / (fast - slow)
