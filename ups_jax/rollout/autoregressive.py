"""Autoregressive rollout of a simulator, pure and compiled once: physical fields in, physical fields out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from ups_jax.models import (
    Conditions,
    LatentState,
    PointSimulator,
    Simulator,
    decode,
    denormalize,
    encode,
    normalize,
    operate,
    step,
)
from ups_jax.rollout.correction import Correction, corrected

# A number, or the symbolic dimension of an export.
Steps = Any


def rollout(
    model: Simulator | PointSimulator,
    params: Any,
    fields: Float[Array, "b k *s c"],
    cond: Conditions,
    steps: Steps,
    correction: Correction | None = None,
    key: Key[Array, ""] | None = None,
) -> Float[Array, "b t *s c"]:
    """The `steps` frames after the `k` given ones; each prediction is encoded anew for the next.

    With a `correction` predictions are corrected before they are handed on, at random by `key`.
    """
    statistics = model.task.statistics
    one_step = _one_step(model, params, cond, correction, key)
    _, frames = jax.lax.scan(one_step, normalize(fields, statistics), jnp.arange(steps))
    return denormalize(jnp.moveaxis(frames, 0, 1), statistics)


def advance(
    model: Simulator | PointSimulator,
    params: Any,
    window: Float[Array, "b k *s c"],
    cond: Conditions,
    length: int,
    first: Int[Array, ""],
    count: Int[Array, ""],
    correction: Correction | None = None,
    key: Key[Array, ""] | None = None,
) -> tuple[Float[Array, "b k *s c"], Float[Array, "b length *s c"]]:
    """`count` of at most `length` steps of a rollout that has made `first`: its normalised window, and their frames.

    Rollouts in pieces are those in one: frames are physical, the window stays in model units. Of a rollout of any
    number of steps there is one compilation; frames from `count` on repeat the last.
    """
    one_step = _one_step(model, params, cond, correction, key)

    def step_or_stay(window: Array, number: Array) -> tuple[Array, Array]:
        return jax.lax.cond(number < first + count, one_step, lambda window, _: (window, window[:, -1]), window, number)

    window, frames = jax.lax.scan(step_or_stay, window, first + jnp.arange(length))
    return window, denormalize(jnp.moveaxis(frames, 0, 1), model.task.statistics)


def latent_rollout(
    model: Simulator, params: Any, fields: Float[Array, "b k *s c"], cond: Conditions, steps: int
) -> Float[Array, "b t *s c"]:
    """The `steps` frames after the `k` given ones, encoded once; the operator alone carries the latent state on."""
    statistics = model.task.statistics

    def advance(state: LatentState, _: None) -> tuple[LatentState, Array]:
        state = operate(model, params, state)
        return state, decode(model, params, state.z)

    z = encode(model, params, normalize(fields, statistics))
    _, frames = jax.lax.scan(advance, LatentState(z=z, t=jnp.zeros_like(cond.dt), cond=cond), None, length=steps)
    return denormalize(jnp.moveaxis(frames, 0, 1), statistics)


def reconstruct(model: Simulator, params: Any, fields: Float[Array, "b t *s c"]) -> Float[Array, "b t *s c"]:
    """decode(encode(u)) of every frame, standing still for its context: the floor of what the codec can represent."""
    batch, frames = fields.shape[:2]
    single = normalize(fields, model.task.statistics).reshape(batch * frames, 1, *fields.shape[2:])
    decoded = decode(model, params, encode(model, params, jnp.repeat(single, model.context, axis=1)))
    return denormalize(decoded.reshape(fields.shape), model.task.statistics)


def _one_step(
    model: Simulator | PointSimulator,
    params: Any,
    cond: Conditions,
    correction: Correction | None,
    key: Key[Array, ""] | None,
) -> Callable[[Array, Array], tuple[Array, Array]]:
    """(window, number of the step) -> (window one frame later, that frame), in model units."""
    if correction is not None and key is None:
        raise ValueError("a corrected rollout needs a key")

    def one_step(window: Float[Array, "b k *s c"], number: Int[Array, ""]) -> tuple[Array, Array]:
        frame = step(model, params, window, cond)
        if correction is not None and key is not None:
            frame = corrected(correction, key, number, window, frame, cond)
        return jnp.concatenate([window[:, 1:], frame[:, None]], axis=1), frame

    return one_step
