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
    """Return the frames that follow the context `fields`; each predicted frame is encoded anew for the next step.

    Args:
        fields: Context of `k` frames, in physical units.
        steps: Number of frames to predict.
        correction: Correction of each prediction before the next step; it needs `key`.
        key: Random key of the correction.

    Raises:
        ValueError: `correction` is set without `key`.
    """
    statistics = model.task.statistics
    one_step = _scan_body(model, params, cond, correction, key)
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
    """Advance a rollout by one chunk, and return the window for the next chunk and the predicted frames.

    A rollout in chunks equals a rollout at once up to round-off, and all chunks share one compiled program.

    Args:
        window: Normalised last `k` frames before the chunk.
        chunk_length: Number of frames that the chunk returns, a constant of the program.
        first_step: Number of steps that the rollout has made before the chunk.
        step_count: Number of steps to compute, at most `chunk_length`; later frames repeat the last one.
        correction: Correction of each prediction before the next step; it needs `key`.
        key: Random key of the correction.

    Returns:
        The normalised last `k` frames of the chunk, and all its frames in physical units.
    """
    one_step = _scan_body(model, params, cond, correction, key)

    def step_or_repeat(window: Array, step_number: Array) -> tuple[Array, Array]:
        return jax.lax.cond(
            step_number < first_step + step_count,
            one_step,
            lambda window, _: (window, window[:, -1]),
            window,
            step_number,
        )

    window, frames = jax.lax.scan(step_or_repeat, window, first_step + jnp.arange(chunk_length))
    return window, denormalize(jnp.moveaxis(frames, 0, 1), model.task.statistics)


def latent_rollout(
    model: Simulator, params: Any, fields: Float[Array, "b k *s c"], cond: Conditions, steps: int
) -> Float[Array, "b t *s c"]:
    """Return the frames that follow the context `fields`; only the context is encoded.

    The operator advances the latent state; each frame is decoded but not encoded again.

    Args:
        fields: Context of `k` frames, in physical units.
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
    """Return decode(encode(u)) of every frame u in physical units, to measure the error of the codec alone.

    If the model takes several frames as input, u is repeated.
    """
    batch, frames = fields.shape[:2]
    single = normalize(fields, model.task.statistics).reshape(batch * frames, 1, *fields.shape[2:])
    decoded = decode(model, params, encode(model, params, jnp.repeat(single, model.context, axis=1)))
    return denormalize(decoded.reshape(fields.shape), model.task.statistics)


def _scan_body(
    model: Simulator | PointSimulator,
    params: Any,
    cond: Conditions,
    correction: Correction | None,
    key: Key[Array, ""] | None,
) -> Callable[[Array, Array], tuple[Array, Array]]:
    """Return a function for `jax.lax.scan`: (window, step number) -> (window shifted by one frame, predicted frame).

    All frames are normalised.
    """
    if correction is not None and key is None:
        raise ValueError("a rollout with a correction requires a random key; pass `key`")

    def one_step(window: Float[Array, "b k *s c"], step_number: Int[Array, ""]) -> tuple[Array, Array]:
        frame = step(model, params, window, cond)
        if correction is not None and key is not None:
            frame = apply_correction(correction, key, step_number, window, frame, cond)
        return jnp.concatenate([window[:, 1:], frame[:, None]], axis=1), frame

    return one_step
