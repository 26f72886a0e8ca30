"""Loss spikes: a step whose loss stands far above the accepted ones before it is skipped.

The window of accepted losses is a part of the state, so that a resumed run judges as an uninterrupted one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from ups_jax.config import TrainingConfig
from ups_jax.errors import ConfigError

# The least spread of a window: a share of its mean, and of a loss of zero this.
LEAST_SPREAD = 0.01
ROUND_OFF = 1e-6


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class SpikeWindow:
    """The last accepted losses, oldest first (NaN: not there yet), int32 spikes in a row and in all."""

    losses: Any
    in_row: Any
    count: Any


def new_window(config: TrainingConfig) -> SpikeWindow | None:
    """An empty window; None where no spikes are looked for."""
    if config.spike_sigma is None:
        return None
    zero = jnp.zeros((), jnp.int32)
    return SpikeWindow(losses=jnp.full((config.spike_window,), jnp.nan, jnp.float32), in_row=zero, count=zero)


def judge(
    window: SpikeWindow | None, loss: Float[Array, ""], accepted: Bool[Array, ""], config: TrainingConfig
) -> tuple[Bool[Array, ""], SpikeWindow | None]:
    """Whether a step is accepted (which it was up to here, or not), and the window after it.

    Refused: loss > mean + `spike_sigma` standard deviations of the window. Nothing is before the window is full. Of
    losses that hardly differ, `LEAST_SPREAD` times their mean counts for the deviation.
    """
    if config.spike_sigma is None:
        return accepted, window
    if window is None:
        raise ConfigError("training.spike_sigma is set, the state has no window of losses: give init_state `cfg=cfg`")
    known = window.losses
    mean = known.mean()
    # The loss's terms are relative errors or of normalised fields: what is below round-off of 1 is no spread either.
    spread = jnp.maximum(known.std(), jnp.maximum(LEAST_SPREAD * jnp.abs(mean), ROUND_OFF))
    limit = mean + config.spike_sigma * spread
    # A mean over a window that is not full is NaN, and no number exceeds that.
    spike = accepted & (loss > limit)
    kept = accepted & ~spike
    losses = jnp.where(kept, jnp.concatenate([known[1:], loss[None].astype(known.dtype)]), known)
    one = spike.astype(jnp.int32)
    # A step left out for another reason ends no row: spikes and lost steps in turn get a run nowhere either.
    in_row = jnp.where(kept, 0, window.in_row + one)
    return kept, SpikeWindow(losses=losses, in_row=in_row, count=window.count + one)


def spike_metrics(window: SpikeWindow | None) -> dict[str, Array]:
    """The counts as metrics of a step; none where no spikes are looked for."""
    return {} if window is None else {"spikes": window.count, "spikes_in_row": window.in_row}
