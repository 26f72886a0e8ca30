"""Autoregressive and latent rollouts of a transient simulator, from physical fields to physical fields."""

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
from ups_jax.rollout.correction import Correction, apply_correction

# An integer, or the symbolic dimension of an exported program.
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
    """Return the predicted frames after the context; each predicted frame is encoded anew for the next step.

    Args:
        model: Simulator of the task.
        params: Its parameters.
        fields: Context of `k` frames, in physical units.
        cond: Conditions of the samples.
        steps: Number of frames to predict.
        correction: Correction of each prediction before it enters the next step; it needs `key`.
        key: Key of the correction's noise.

    Raises:
        ValueError: `correction` is set without `key`.
    """
    statistics = model.task.statistics
    one_step = _one_step(model, params, cond, correction, key)
    _, frames = jax.lax.scan(one_step, normalize(fields, statistics), jnp.arange(steps))
    return denormalize(jnp.moveaxis(frames, 0, 1), statistics)


def rollout_chunk(
    model: Simulator | PointSimulator,
    params: Any,
    window: Float[Array, "b k *s c"],
    cond: Conditions,
    chunk_length: int,
    first_step: Int[Array, ""],
    step_count: Int[Array, ""],
    correction: Correction | None = None,
    key: Key[Array, ""] | None = None,
) -> tuple[Float[Array, "b k *s c"], Float[Array, "b length *s c"]]:
    """Return the next window and the predicted frames of one chunk of a rollout.

    A rollout in chunks equals a single one up to round-off, and all chunks share one compiled program.

    Args:
        model: Simulator of the task.
        params: Its parameters.
        window: Normalised last `k` frames before the chunk.
        cond: Conditions of the samples.
        chunk_length: Number of frames that the chunk returns, a constant of the program.
        first_step: Number of steps that the rollout has made before the chunk.
        step_count: Number of steps to compute, at most `chunk_length`; later frames repeat the last one.
        correction: Correction of each prediction before it enters the next step; it needs `key`.
        key: Key of the correction's noise.

    Returns:
        The normalised window after the chunk, and the frames in physical units.
    """
    one_step = _one_step(model, params, cond, correction, key)

    def step_or_stay(window: Array, number: Array) -> tuple[Array, Array]:
        return jax.lax.cond(
            number < first_step + step_count, one_step, lambda window, _: (window, window[:, -1]), window, number
        )

    window, frames = jax.lax.scan(step_or_stay, window, first_step + jnp.arange(chunk_length))
    return window, denormalize(jnp.moveaxis(frames, 0, 1), model.task.statistics)


def latent_rollout(
    model: Simulator, params: Any, fields: Float[Array, "b k *s c"], cond: Conditions, steps: int
) -> Float[Array, "b t *s c"]:
    """Return the predicted frames after the context, which is encoded once.

    The operator advances the latent state; each frame is decoded but not encoded again.

    Args:
        model: Simulator of the task.
        params: Its parameters.
        fields: Context of `k` frames, in physical units.
        cond: Conditions of the samples.
        steps: Number of frames to predict.
    """
    statistics = model.task.statistics

    def advance(state: LatentState, _: None) -> tuple[LatentState, Array]:
        state = operate(model, params, state)
        return state, decode(model, params, state.z)

    z = encode(model, params, normalize(fields, statistics))
    _, frames = jax.lax.scan(advance, LatentState(z=z, t=jnp.zeros_like(cond.dt), cond=cond), None, length=steps)
    return denormalize(jnp.moveaxis(frames, 0, 1), statistics)


def reconstruct(model: Simulator, params: Any, fields: Float[Array, "b t *s c"]) -> Float[Array, "b t *s c"]:
    """Return decode(encode(u)) of every frame u, in physical units.

    The context is filled with copies of the frame. The result shows the error that is due to the codec alone.
    """
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
    """Return the scan body (window, step number) -> (window shifted by a frame, predicted frame), all normalised."""
    if correction is not None and key is None:
        raise ValueError("a rollout with a correction requires a random key")

    def one_step(window: Float[Array, "b k *s c"], number: Int[Array, ""]) -> tuple[Array, Array]:
        frame = step(model, params, window, cond)
        if correction is not None and key is not None:
            frame = apply_correction(correction, key, number, window, frame, cond)
        return jnp.concatenate([window[:, 1:], frame[:, None]], axis=1), frame

    return one_step
