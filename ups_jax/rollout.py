"""Autoregressive rollout of a simulator, pure and compiled once: physical fields in, physical fields out."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ups_jax.models import Conditions, LatentState, Simulator, decode, denormalize, encode, normalize, operate, step


def rollout(
    model: Simulator, params: Any, fields: Float[Array, "b k *s c"], cond: Conditions, steps: int
) -> Float[Array, "b t *s c"]:
    """The `steps` frames after the `k` given ones; each prediction is encoded anew for the next."""
    statistics = model.task.statistics

    def advance(window: Float[Array, "b k *s c"], _: None) -> tuple[Array, Array]:
        frame = step(model, params, window, cond)
        return jnp.concatenate([window[:, 1:], frame[:, None]], axis=1), frame

    _, frames = jax.lax.scan(advance, normalize(fields, statistics), None, length=steps)
    return denormalize(jnp.moveaxis(frames, 0, 1), statistics)


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
