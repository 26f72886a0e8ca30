"""The coefficient of a trajectory, drawn between the bounds of its preset."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float

from ups_jax.simulate.presets import Preset, VolumePreset


def draw(preset: Preset | VolumePreset, share: Float[Array, ""]) -> Float[Array, ""]:
    """The value at `share` (0 to 1) of the way from `low` to `high`, on the preset's scale."""
    if preset.coefficient is None:
        return jnp.asarray(preset.low)
    if preset.scale == "log10":
        return preset.low * (preset.high / preset.low) ** share
    return preset.low + (preset.high - preset.low) * share
