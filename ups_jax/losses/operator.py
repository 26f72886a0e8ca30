"""Losses of the stages `operator` and `steady_prior`: weighted sums of named terms, which are also logged by name."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key, PyTree

from ups_jax.config import TrainingConfig
from ups_jax.core.errors import ConfigError
from ups_jax.core.rng import jax_stream_key
from ups_jax.core.task import Task
from ups_jax.losses.latent import inverse_decoding, inverse_encoding, inverse_weight
from ups_jax.losses.reduction import per_task_terms
from ups_jax.losses.step_context import EMPTY_CONTEXT, Draw, StageLoss, StepContext, Terms
from ups_jax.losses.terms import (
    SampleTerms,
    field_terms,
    prior_terms,
    sample_present_points,
    sample_queries,
    take_points,
)
from ups_jax.losses.unroll import (
    TrainingRollout,
    field_training_rollout,
    latent_training_rollout,
    unroll,
    unroll_with_last_step,
)
from ups_jax.losses.weights import INVERSE_TERMS, PHYSICS_TERMS, checked_weights, has_epoch_schedule, weight_key
from ups_jax.models import (
    Batch,
    Conditions,
    PointSimulator,
    Simulator,
    SteadySimulator,
    as_jax_arrays,
    conditions_of,
    decode,
    encode,
    normalize,
    normalize_inputs,
    steady_field,
    with_draws,
)


def operator_losses(model: Simulator | PointSimulator, config: TrainingConfig) -> StageLoss:
    """Return the loss of a time step, unrolled over `rollout_horizon` steps on the model's own predictions.

    Terms compare fields as follows:

    - Errors are computed on normalised fields and averaged over the steps, except that `forward` uses the first step
      and `rollout` the later ones.
    - Physics priors are computed on the prediction, in the units of `prior_terms`.
    - Latent terms are computed on the learned features of the predicted tokens.
    - Inverse terms are computed on the input frames alone.

    With `input_noise`, white noise is added to the input frames but not to the targets, so that the model learns to
    remove small-scale errors (Sanchez-Gonzalez et al. 2020). With `pushforward`, the model first makes that number of
    steps without a gradient, and the loss is computed on the steps that follow.

    Returns:
        (params, batch, key, context) -> (weighted sum, terms by name).

    Raises:
        ConfigError: If the task does not support a weighted term.
    """
    return _unrolled_loss(field_training_rollout, model, config)


def latent_losses(model: Simulator, config: TrainingConfig) -> StageLoss:
    """Return the loss of `operator_losses` for batches of encoded frames, with the codec frozen.

    The targets are decoded from the latents of the later frames.

    Returns:
        (params, batch, key, context) -> (weighted sum, terms by name).

    Raises:
        ConfigError: If the task does not support a weighted term, or a weighted term or `input_noise` needs the
            encoder.
    """
    for name in checked_weights(config, model.task):
        if name in INVERSE_TERMS:
            raise ConfigError(f"{weight_key(name)}: trains the codec, which data.source=latents freezes; set it to 0")
    if config.input_noise > 0:
        raise ConfigError(
            f"training.input_noise={config.input_noise:g}: adds noise to fields before they are encoded, but "
            "data.source=latents reads encoded fields; set it to 0"
        )
    return _unrolled_loss(latent_training_rollout, model, config)


def _unrolled_loss(
    build_rollout: Callable[..., TrainingRollout], model: Simulator | PointSimulator, config: TrainingConfig
) -> StageLoss:
    """Return the stage loss that unrolls the model on a batch, as prepared by `build_rollout`."""
    task = model.task
    weights = checked_weights(config, task)
    # `forward` and `rollout` are the same mean square error at different steps, so it is computed once.
    square_error = {"forward"} if "forward" in weights or "rollout" in weights else set()
    names = (weights.keys() - {"forward", "rollout"}) | square_error
    has_priors = any(name in PHYSICS_TERMS for name in names)
    draw = operator_draws(model, config)

    def loss(
        params: PyTree, batch: Batch, key: Key[Array, ""], context: StepContext = EMPTY_CONTEXT
    ) -> tuple[Float[Array, ""], Terms]:
        batch = as_jax_arrays(batch)
        cond = conditions_of(batch)
        queries = draw_query_indices(config, task, key, cond.point_mask)
        rollout = build_rollout(names, model, params, draw(batch, key), cond, config)

        def advance(carry: Any, truth: Float[Array, "b *s c"]) -> tuple[Any, SampleTerms]:
            carry, pred, terms = rollout.advance(carry)
            return carry, add_terms(pred, terms, truth)

        def advance_last(last_step: Any, carry: Any, truth: Float[Array, "b *s c"]) -> tuple[Any, SampleTerms]:
            pred, terms = last_step(carry)
            return carry, add_terms(pred, terms, truth)

        def add_terms(pred: Float[Array, "b *s c"], terms: SampleTerms, truth: Float[Array, "b *s c"]) -> SampleTerms:
            terms |= field_terms(names, pred, truth, task, queries, cond.point_mask)
            if has_priors:
                terms |= prior_terms(names, pred, rollout.start_frame, task, config.physics_priors)
            return terms

        options: dict[str, Any] = {"segment_length": config.truncate, "recompute": config.remat == "full"}
        if rollout.last_step is None:
            steps = unroll(advance, rollout.carry, rollout.targets, **options)
        else:
            steps = unroll_with_last_step(
                advance, partial(advance_last, rollout.last_step), rollout.carry, rollout.targets, **options
            )
        samples = _average_steps(weights, steps) | _inverse_terms(weights, model, params, rollout.input_frames, queries)
        return _weighted_total(weights, samples, config, task, batch, context)

    return loss


def operator_draws(model: Simulator | PointSimulator, config: TrainingConfig) -> Draw:
    """Return the function that adds the random draws of `operator_losses` to a batch; existing draws are kept.

    The function adds to `Batch.draws`:

    - `noise` (with `input_noise`): white noise on the input frames, times a factor per row that is uniform in [0, 1],
      so that the model also learns from nearly clean frames.
    - `num_true_steps` (with `pushforward`): for each row, the number of first pushforward steps that take the true
      frame, uniform in 0..`pushforward`.
    """

    def add_draws(batch: Batch, key: Key[Array, ""]) -> Batch:
        draws: dict[str, Array] = {}
        if config.input_noise > 0:
            frames = batch.fields[:, : model.context]
            scale = jax.random.uniform(jax_stream_key(key, "noise scale"), (len(frames), *[1] * (frames.ndim - 1)))
            draws["noise"] = scale * jax.random.normal(jax_stream_key(key, "noise"), frames.shape)
        if config.pushforward > 0:
            draws["num_true_steps"] = jax.random.randint(
                jax_stream_key(key, "given"), batch.mask.shape, 0, config.pushforward + 1
            )
        return with_draws(batch, draws)

    return add_draws


def _weighted_total(
    weights: dict[str, float],
    samples: SampleTerms,
    config: TrainingConfig,
    task: Task,
    batch: Batch,
    context: StepContext,
) -> tuple[Float[Array, ""], Terms]:
    """Return the weighted sum of the terms, and each term by name, as means over the rows with `mask` 1."""
    rows = batch.mask / jnp.maximum(batch.mask.sum(), 1.0)
    terms = {name: jnp.sum(values * rows) for name, values in samples.items()}
    total = weighted_sum(weights, terms, config, context.epoch)
    if config.log_per_task_metrics or task.siblings:
        per_sample = weighted_sum(weights, samples, config, context.epoch)
        terms |= per_task_terms((task.name,), per_sample, batch.mask)
    return total, terms


def weighted_sum(
    weights: dict[str, float],
    terms: dict[str, Float[Array, "*b"]],
    config: TrainingConfig,
    epoch: Float[Array, ""] | None,
) -> Float[Array, "*b"]:
    """Return the weighted sum of the terms; the weights of inverse terms depend on the epoch (`inverse_weight`).

    Args:
        terms: Terms by name, each a number or one value per sample.
        config: Warm-up and maximum of the inverse weights.
        epoch: Epochs completed, with the fraction of the current one; None if no weight depends on it.

    Raises:
        ValueError: If `epoch` is None and a weight depends on it.
    """
    if epoch is None and has_epoch_schedule(config):
        raise ValueError("the weights of the inverse losses depend on the epoch; set `epoch` of StepContext")

    def current_weight(name: str) -> Float[Array, ""] | float:
        if epoch is None or name not in INVERSE_TERMS:
            return weights[name]
        return inverse_weight(epoch, weights[name], config.inverse_loss_warmup_epochs, config.inverse_loss_max_weight)

    return sum((current_weight(name) * value for name, value in terms.items()), jnp.zeros(()))


def draw_query_indices(
    config: TrainingConfig, task: Task, key: Key[Array, ""], present: Float[Array, "b p"] | None = None
) -> Int[Array, " q"] | Int[Array, "b q"] | None:
    """Return the indices of the points at which pointwise terms are evaluated, or None for all points.

    Args:
        present: For a point set, 1 for each point that is present and 0 for padding; the indices then differ between
            rows. None on a grid.
    """
    sampling = config.query_sampling
    if not sampling.enabled or sampling.num_queries is None:
        return None
    if present is not None:
        return sample_present_points(jax_stream_key(key, "queries"), present, sampling.num_queries)
    return sample_queries(
        jax_stream_key(key, "queries"), task.num_points, sampling.num_queries, sampling.strategy, task.shape
    )


def _average_steps(weights: dict[str, float], steps: dict[str, Float[Array, "t b"]]) -> SampleTerms:
    """Return each term averaged over steps; `forward` is the first step's error, `rollout` the mean of later ones."""
    samples = {name: values.mean(0) for name, values in steps.items() if name != "forward"}
    if "forward" in weights:
        samples["forward"] = steps["forward"][0]
    if "rollout" in weights:
        samples["rollout"] = steps["forward"][1:].mean(0)
    return samples


def _inverse_terms(
    weights: dict[str, float],
    model: Simulator | PointSimulator,
    params: PyTree,
    window: Float[Array, "b k *s c"] | None,
    queries: Int[Array, " q"] | Int[Array, "b q"] | None,
) -> SampleTerms:
    """Return the inverse terms of the input frames `window`; an empty dictionary if their weights are 0."""
    if window is None or isinstance(model, PointSimulator) or not any(name in INVERSE_TERMS for name in weights):
        return {}
    z = encode(model, params, window)

    def take_queries(x: Float[Array, "b *s c"]) -> Float[Array, "b *q c"]:
        return x if queries is None else take_points(x, queries)

    def encode_newest(field: Float[Array, "b *s c"]) -> Float[Array, "b n d"]:
        return encode(model, params, jnp.concatenate([window[:, :-1], field[:, None]], axis=1))

    terms: SampleTerms = {}
    if "inverse_encoding" in weights:
        terms["inverse_encoding"] = inverse_encoding(
            lambda z: take_queries(decode(model, params, z)), z, take_queries(window[:, -1]), reduction="none"
        )
    if "inverse_decoding" in weights:
        terms["inverse_decoding"] = inverse_decoding(
            encode_newest, lambda z: decode(model, params, z), z, reduction="none"
        )
    return terms


def steady_losses(model: SteadySimulator, config: TrainingConfig) -> StageLoss:
    """Return the loss of a steady simulator.

    Errors are computed on the normalised solution, physics priors in the units of `prior_terms`. `input_noise` has no
    effect.

    Returns:
        (params, batch, key, context) -> (weighted sum, terms by name).

    Raises:
        ConfigError: If a weighted term needs time steps or latent states, or the task does not support it.
    """
    task = model.task
    weights = checked_weights(config, task)
    names = sorted(weights)

    def solve_batch(params: PyTree, inputs: Float[Array, "b *s i"], cond: Conditions) -> Float[Array, "b *s c"]:
        return steady_field(model, params, normalize_inputs(inputs, task.inputs), cond)

    solve = jax.checkpoint(solve_batch) if config.remat == "full" else solve_batch

    def loss(
        params: PyTree, batch: Batch, key: Key[Array, ""], context: StepContext = EMPTY_CONTEXT
    ) -> tuple[Float[Array, ""], Terms]:
        batch = as_jax_arrays(batch)
        cond = conditions_of(batch)
        truth = normalize(batch.fields[:, 0], task.statistics)
        pred = solve(params, batch.inputs, cond)
        samples = field_terms(names, pred, truth, task, draw_query_indices(config, task, key))
        if any(name in PHYSICS_TERMS for name in names):
            samples |= prior_terms(names, pred, None, task, config.physics_priors)
        return _weighted_total(weights, samples, config, task, batch, context)

    return loss
