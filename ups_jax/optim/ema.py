"""Exponential moving average of the parameters through `optax.ema`, bias-corrected at read-out.

The accumulator starts at zero and holds the biased sum, so the decay that made it must be the one that reads it.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax


def ema_init(params: Any) -> optax.EmaState:
    """A zero accumulator of the shape of `params`; no decay enters before the first update."""
    return optax.ema(0.0, debias=True).init(params)


def ema_update(params: Any, state: optax.EmaState, decay: float) -> optax.EmaState:
    """m <- decay * m + (1 - decay) * params, count + 1. Feed it the parameters AFTER the optimizer step."""
    _, new_state = optax.ema(decay, debias=True).update(params, state)
    return new_state


def ema_params(params: Any, state: optax.EmaState, decay: float) -> Any:
    """m / (1 - decay^count); `params` themselves while nothing has been averaged."""
    started = state.count > 0
    count = jnp.maximum(state.count, 1)
    average = optax.tree.bias_correction(state.ema, decay, count)
    return jax.tree.map(lambda mean, own: jnp.where(started, mean, own).astype(own.dtype), average, params)
