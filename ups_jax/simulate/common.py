"""What the embedded solvers share: their device, the drawing of a coefficient, and fluxes between cells."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ups_jax.core.errors import ConfigError
from ups_jax.simulate.presets import Preset, VolumePreset

# Cells beyond each end that the reconstruction looks at.
GHOSTS = 2
Values = Float[Array, "c *s"]


def cpu() -> jax.Device:
    """The CPU, in whose float64 all are solved, whatever a run trains on. Raises `ConfigError` where JAX has none."""
    try:
        return jax.local_devices(backend="cpu")[0]
    except RuntimeError:
        raise ConfigError("the embedded solvers need the CPU, which JAX_PLATFORMS leaves out; add `,cpu`") from None


def draw(preset: Preset | VolumePreset, share: Float[Array, ""]) -> Float[Array, ""]:
    """The value at `share` (0 to 1) of the way from `low` to `high`, on the preset's scale."""
    if preset.coefficient is None:
        return jnp.asarray(preset.low)
    if preset.scale == "log10":
        return preset.low * (preset.high / preset.low) ** share
    return preset.low + (preset.high - preset.low) * share


def face_values(padded: Float[Array, "c n *s"]) -> tuple[Float[Array, "c f *s"], Float[Array, "c f *s"]]:
    """Values left and right of each face along the first space axis, which has `GHOSTS` cells more at each end.

    Slopes are limited by the monotonised central limiter (van Leer 1977): second order where the field is smooth.
    """
    back, ahead = padded[:, 1:-1] - padded[:, :-2], padded[:, 2:] - padded[:, 1:-1]
    sign = 0.5 * (jnp.sign(back) + jnp.sign(ahead))
    size = jnp.minimum(2 * jnp.minimum(jnp.abs(back), jnp.abs(ahead)), 0.5 * jnp.abs(back + ahead))
    half = 0.5 * sign * size
    inner = padded[:, 1:-1]
    return (inner + half)[:, :-1], (inner - half)[:, 1:]


def hll(
    left: Float[Array, "c f *s"],
    right: Float[Array, "c f *s"],
    conserved: Callable[[Values], Values],
    flux: Callable[[Values], Values],
    speeds: Callable[[Values], tuple[Float[Array, "f *s"], Float[Array, "f *s"]]],
) -> Float[Array, "c f *s"]:
    """The flux of Harten, Lax and van Leer between two primitive states, with Davis' bounds on the wave speeds."""
    (slow_left, fast_left), (slow_right, fast_right) = speeds(left), speeds(right)
    slow = jnp.minimum(jnp.minimum(slow_left, slow_right), 0.0)
    fast = jnp.maximum(jnp.maximum(fast_left, fast_right), 0.0)
    jump = conserved(right) - conserved(left)
    return (fast * flux(left) - slow * flux(right) + slow * fast * jump) / (fast - slow)
