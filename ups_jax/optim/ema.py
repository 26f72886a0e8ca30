"""Averages of the parameters over the steps, with `optax.ema`.

By default (`decay` is None), the decay of update t is t / (t + 40): the average extends over about the last fortieth of
the steps for any length of the run (power-function average, Karras et al. 2024). After n updates, the parameters of
update i have the weight C(i + 39, 39) / C(n + 39, 40). These weights add up to 1, so no bias correction is needed. With
a fixed decay the accumulator starts at zero, and `ema_params` corrects the bias.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import optax
from jaxtyping import PyTree

# Completed steps divided by the horizon of the average. A larger value averages less; a smaller one includes parameters
# from earlier, worse steps.
HORIZON_DIVISOR = 40


def ema_init(params: PyTree) -> optax.EmaState:
    """Return the state of the average before the first update: zeros of the shapes of `params`."""
    return optax.ema(0.0, debias=False).init(params)


def ema_update(params: PyTree, state: optax.EmaState, decay: float | None) -> optax.EmaState:
    """Return the state of the average after an update: m <- d m + (1 - d) params, count <- count + 1.

    Args:
        params: Parameters after the optimizer step.
        state: State of the average.
        decay: Decay d; None for d = count / (count + 40).
    """
    current_decay = state.count / (state.count + HORIZON_DIVISOR) if decay is None else decay
    _, new_state = optax.ema(current_decay, debias=False).update(params, state)
    return new_state


@partial(jax.jit, static_argnames="decay", inline=True)
def ema_params(params: PyTree, state: optax.EmaState, decay: float | None) -> PyTree:
    """Return the averaged parameters: m / (1 - decay^count) for a fixed decay, otherwise m.

    Args:
        params: Current parameters; before the first update of the average, these are the result.
        state: State of the average.
        decay: Fixed decay, None for the power-function average.
    """
    started = state.count > 0
    average = state.ema
    if decay is not None:
        average = optax.tree.bias_correction(average, decay, jnp.maximum(state.count, 1))
    return jax.tree.map(lambda mean, current: jnp.where(started, mean, current).astype(current.dtype), average, params)
