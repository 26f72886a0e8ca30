"""Unrolling of a stage loss in time: pushforward steps, truncated back-propagation and recomputation.

`field_training_rollout` unrolls a model on frames, `latent_training_rollout` on latent states. Truncation and
recomputation change the gradient and the memory of a training step, not the values of the loss.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree

from ups_jax.config import TrainingConfig
from ups_jax.core.errors import ConfigError
from ups_jax.losses.terms import SampleTerms, latent_terms
from ups_jax.losses.weights import LATENT_TERMS
from ups_jax.models import (
    Batch,
    Conditions,
    LatentState,
    PointSimulator,
    Simulator,
    decode,
    encode,
    next_field,
    normalize,
    operate,
    step,
)
from ups_jax.models.codec import CODEC, newest_patch_width

# (carry, target) -> (next carry, values of this step), the body of a scan over time steps.
Advance = Callable[[Any, Any], tuple[Any, Any]]


def next_window(window: Float[Array, "b k *s c"], newest: Float[Array, "b *s c"]) -> Float[Array, "b k *s c"]:
    """Return the input window of the next step: `window` without its oldest frame, followed by the `newest` frame."""
    return jnp.concatenate([window[:, 1:], newest[:, None]], axis=1)


def push_forward(
    step: Callable[[Any, Any], Array],
    params: PyTree,
    window: Float[Array, "b *k"],
    truth: Float[Array, "t b *s"],
    num_true_steps: Int[Array, " b"],
    append: Callable[[Any, Any], Array] = next_window,
) -> Float[Array, "b *k"]:
    """Return the input window after one step per frame of `truth`, with all gradients stopped (the pushforward trick).

    The first `num_true_steps` steps append the true frame, the later steps the model's prediction. The steps that the
    loss scores follow: they start from the model's own errors and so learn to correct these. True frames are necessary,
    as a model trained only on its own predictions learns to compensate its errors instead of learning the time step.

    Args:
        step: Maps parameters and window to the next frame (or latent state).
        truth: True frames (or latent states) of the steps, time first. If it is empty, `window` is returned.
        num_true_steps: For each row of the batch, number of first steps that append the true frame.
        append: Maps a window and the newest frame to the next window.

    References:
        Brandstetter et al. 2022, section 3.1.
    """
    if not len(truth):
        return window
    frozen_params = jax.lax.stop_gradient(params)

    def advance(window: Float[Array, "b *k"], numbered_frame: tuple[Array, Array]) -> tuple[Any, None]:
        number, true_frame = numbered_frame
        use_truth = (number < num_true_steps).reshape(-1, *(1,) * (true_frame.ndim - 1))
        newest = jnp.where(use_truth, true_frame, step(frozen_params, window))
        return append(window, newest), None

    final_window, _ = jax.lax.scan(advance, jax.lax.stop_gradient(window), (jnp.arange(len(truth)), truth))
    return jax.lax.stop_gradient(final_window)


def unroll(
    advance: Advance,
    window: Float[Array, "b *k"],
    targets: Float[Array, "t b *s c"],
    *,
    segment_length: int | None = None,
    recompute: bool = False,
) -> PyTree:
    """Return the values that `advance` computes at every step, stacked on a new first axis.

    Args:
        advance: Maps (window, target) to (next window, values).
        targets: True frames, time first; one step is made for each.
        segment_length: Number of steps after which the gradient is cut (truncated back-propagation through time); None
            for no cuts. The values do not change.
        recompute: Whether the backward pass recomputes each step from its window, to save memory.
    """
    body, inputs = _scan_body_and_inputs(advance, targets, segment_length, recompute)
    return jax.lax.scan(body, window, inputs)[1]


def unroll_with_last_step(
    advance: Advance,
    last_step: Advance,
    window: Float[Array, "b *k"],
    targets: Float[Array, "t b *s c"],
    *,
    segment_length: int | None = None,
    recompute: bool = False,
) -> PyTree:
    """Return the values of every step, as `unroll` does, with `last_step` in place of `advance` at the last step.

    `last_step` may be cheaper than `advance`, because its next window is not used. A single step is not scanned.

    Args:
        advance: Maps (window, target) to (next window, values).
        last_step: Like `advance`; its next window is not used.
        targets: True frames, time first; one step is made for each.
        segment_length: Number of steps after which the gradient is cut; None for no cuts.
        recompute: Whether the backward pass recomputes each step from its window, to save memory.
    """
    body, inputs = _scan_body_and_inputs(advance, targets, segment_length, recompute)
    leading, last = jax.tree.map(lambda leaf: leaf[:-1], inputs), jax.tree.map(lambda leaf: leaf[-1], inputs)
    last_body, _ = _scan_body_and_inputs(last_step, targets, segment_length, recompute)
    if len(targets) == 1:
        return jax.tree.map(lambda value: value[None], last_body(window, last)[1])
    window, values = jax.lax.scan(body, window, leading)
    return jax.tree.map(lambda leaf, value: jnp.concatenate([leaf, value[None]]), values, last_body(window, last)[1])


def _scan_body_and_inputs(
    advance: Advance, targets: PyTree, segment_length: int | None, recompute: bool
) -> tuple[Advance, PyTree]:
    """Return the body of a scan over time steps, which cuts gradients and recomputes, and the inputs of the scan."""
    cut_every = len(targets) if segment_length is None else segment_length

    def advance_with_cuts(window: Any, numbered_target: tuple[Array, Any]) -> tuple[Any, Any]:
        number, target = numbered_target
        is_cut = (number > 0) & (number % cut_every == 0)
        return advance(jnp.where(is_cut, jax.lax.stop_gradient(window), window), target)

    body: Advance = advance if segment_length is None else advance_with_cuts
    inputs: Any = targets if segment_length is None else (jnp.arange(len(targets)), targets)
    # A scan already keeps XLA from merging the recomputation with the forward pass, so no barrier is needed.
    return (jax.checkpoint(body, prevent_cse=False) if recompute else body), inputs


@dataclass(frozen=True)
class TrainingRollout:
    """A model's rollout on one batch, prepared for unrolling step by step.

    Attributes:
        carry: State before the first scored step: a window of frames or latent tokens.
        targets: True frames of the scored steps, normalised, time first.
        advance: Maps a carry to (next carry, predicted frame, loss terms of the predicted tokens).
        start_frame: Newest input frame, normalised and without noise.
        input_frames: Input frames, normalised and without noise; None for rollouts on latent states.
        last_step: Maps a carry to (predicted frame, loss terms of the predicted tokens); None if leaving out the next
            carry saves nothing.
    """

    carry: Any
    targets: Float[Array, "t b *s c"]
    advance: Callable[[Any], tuple[Any, Float[Array, "b *s c"], SampleTerms]]
    start_frame: Float[Array, "b *s c"]
    input_frames: Float[Array, "b k *s c"] | None = None
    last_step: Callable[[Any], tuple[Float[Array, "b *s c"], SampleTerms]] | None = None


def field_training_rollout(
    names: Collection[str],
    model: Simulator | PointSimulator,
    params: PyTree,
    batch: Batch,
    cond: Conditions,
    config: TrainingConfig,
) -> TrainingRollout:
    """Return the rollout of a model on windows of frames.

    Args:
        names: Names of the loss terms; latent terms are computed only if one is named.
        batch: Frames, and the draws that `operator_draws` added.
        config: Input noise and number of pushforward steps.
    """
    fields = normalize(batch.fields, model.task.statistics)
    context = window = fields[:, : model.context]
    if config.input_noise > 0:
        window = window + config.input_noise * batch.draws["noise"]
    later = jnp.moveaxis(fields[:, model.context :], 1, 0)
    if config.pushforward > 0:
        pushed, num_true_steps = later[: config.pushforward], jnp.asarray(batch.draws["num_true_steps"])
        window = push_forward(lambda params, w: step(model, params, w, cond), params, window, pushed, num_true_steps)

    def advance(window: Float[Array, "b k *s c"]) -> tuple[Array, Array, SampleTerms]:
        pred, terms = _predict_frame(names, model, params, window, cond)
        return next_window(window, pred), pred, terms

    return TrainingRollout(window, later[config.pushforward :], advance, context[:, -1], context)


def latent_training_rollout(
    names: Collection[str], model: Simulator, params: PyTree, batch: Batch, cond: Conditions, config: TrainingConfig
) -> TrainingRollout:
    """Return the rollout of a model on latent states, with the codec's parameters frozen.

    The predictions equal those of `field_training_rollout`, because an advanced latent state equals the encoding of its
    decoded field. The last step skips the features of the predicted field unless a latent term needs them.

    Args:
        batch: Encoded context frames and encoded targets.
        config: Number of pushforward steps.

    Raises:
        ConfigError: If the batch holds frames instead of latents.
    """
    if batch.latents is None:
        raise ConfigError("data.source=latents: the batch holds fields and no latents; set data.source=fields")
    frozen_codec = {**params, CODEC: jax.lax.stop_gradient(params[CODEC])}
    states, later = (_time_first(tokens) for tokens in (batch.latents, batch.targets))
    targets = jax.vmap(partial(decode, model, frozen_codec))(later)

    def state_of(z: Float[Array, "b n d"]) -> LatentState:
        return LatentState(z=z, t=jnp.zeros_like(cond.dt), cond=cond)

    def advance(z: Float[Array, "b n d"]) -> tuple[Array, Array, SampleTerms]:
        new = operate(model, frozen_codec, state_of(z)).z
        return new, decode(model, frozen_codec, new), _token_terms(names, model, new)

    def last_step(z: Float[Array, "b n d"]) -> tuple[Array, SampleTerms]:
        if any(name in LATENT_TERMS for name in names):
            return advance(z)[1:]
        return next_field(model, frozen_codec, state_of(z)), {}

    first = z = states[0]
    if config.pushforward > 0:
        z = push_forward(
            lambda params, z: operate(model, params, state_of(z)).z,
            frozen_codec,
            z,
            states[1:],
            jnp.asarray(batch.draws["num_true_steps"]),
            append=lambda _, newest: newest,
        )
    return TrainingRollout(z, targets, advance, decode(model, frozen_codec, first), last_step=last_step)


def _time_first(tokens: Float[Array, "b t *n d"]) -> Float[Array, "t b n d"]:
    """Return the latents of several frames with time as the first axis and the tokens of each frame on one axis."""
    return jnp.moveaxis(tokens.reshape(*tokens.shape[:2], -1, tokens.shape[-1]), 1, 0)


def _predict_frame(
    names: Collection[str],
    model: Simulator | PointSimulator,
    params: PyTree,
    window: Float[Array, "b k *s c"],
    cond: Conditions,
) -> tuple[Float[Array, "b *s c"], SampleTerms]:
    """Return the next frame, and the loss terms of the tokens that the frame is decoded from."""
    if isinstance(model, PointSimulator) or not any(name in LATENT_TERMS for name in names):
        return step(model, params, window, cond), {}
    state = LatentState(z=encode(model, params, window), t=jnp.zeros_like(cond.dt), cond=cond)
    z = operate(model, params, state).z
    return decode(model, params, z), _token_terms(names, model, z)


def _token_terms(names: Collection[str], model: Simulator, z: Float[Array, "b n d"]) -> SampleTerms:
    """Return the latent terms of the tokens' learned features, which follow the patches in each token."""
    return latent_terms(names, z[..., newest_patch_width(model.task, model.latent) * model.context :])
