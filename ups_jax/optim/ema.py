"""Averages of the parameters over the steps, through `optax.ema`, whose state is what is saved.

By default the horizon grows with the run: the decay of update t is t / (t + 40), so that the average reaches back a
fortieth of the steps so far, whatever the length of the run (a power-function average, Karras et al. 2024). After n
updates the parameters of update i weigh C(i + 39, 39) / C(n + 39, 40): the weights add up to 1 and there is no bias. A
fixed decay accumulates from zero instead; the decay that made that sum is the one that corrects it at read-out.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax

# Steps so far, as a multiple of the horizon. A shorter horizon averages less, a longer one remembers worse parameters.
HORIZONS = 40


def ema_init(params: Any) -> optax.EmaState:
    """A zero accumulator of the shape of `params`; no decay enters before the first update."""
    return optax.ema(0.0, debias=False).init(params)


def ema_update(params: Any, state: optax.EmaState, decay: float | None) -> optax.EmaState:
    """m <- d * m + (1 - d) * params, count + 1, with d the decay, or count / (count + 40) where it is None.

    Feed it the parameters AFTER the optimizer step.
    """
    now = state.count / (state.count + HORIZONS) if decay is None else decay
    _, new_state = optax.ema(now, debias=False).update(params, state)
    return new_state


def ema_params(params: Any, state: optax.EmaState, decay: float | None) -> Any:
    """m, over 1 - decay^count where the decay is fixed; `params` themselves while nothing has been averaged."""
    started = state.count > 0
    average = state.ema
    if decay is not None:
        average = optax.tree.bias_correction(average, decay, jnp.maximum(state.count, 1))
    return jax.tree.map(lambda mean, own: jnp.where(started, mean, own).astype(own.dtype), average, params)
