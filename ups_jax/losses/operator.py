"""The operator stage's loss: named terms, each weighted by its configuration key and logged by name."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key, PyTree

from ups_jax.config import TrainingConfig
from ups_jax.core.errors import ConfigError
from ups_jax.core.rng import stream
from ups_jax.core.task import Task
from ups_jax.losses.latent import inverse_decoding, inverse_encoding, inverse_weight
from ups_jax.losses.reduction import per_task_terms
from ups_jax.losses.step_context import EMPTY_CONTEXT, Draw, StageLoss, StepContext, Terms
from ups_jax.losses.terms import SampleTerms, field_terms, prior_terms, sample_present, sample_queries, take_points
from ups_jax.losses.unroll import TrainingRollout, field_rollout, latent_rollout, unroll, unroll_with_last_step
from ups_jax.losses.weights import INVERSE_TERMS, PHYSICS_TERMS, checked_weights, has_epoch_schedule, weight_key
from ups_jax.models import (
    Batch,
    Conditions,
    PointSimulator,
    Simulator,
    SteadySimulator,
    conditions_of,
    decode,
    denormalize,
    encode,
    normalize,
    normalize_inputs,
    on_device,
    steady_field,
    with_draws,
)


def operator_losses(model: Simulator | PointSimulator, config: TrainingConfig) -> StageLoss:
    """(params, batch, key, context) -> (weighted sum, terms by name), over an unrolled `rollout_horizon` that feeds
    back itself. ConfigError where a weighted term cannot be had of the task.

    Errors are of normalised fields, priors of the prediction in physical units. `forward` scores the first step,
    `rollout` the later ones, all others the mean over steps; latent terms are of the learned features of the predicted
    tokens; the inverse terms are of the first frames alone.

    `input_noise` bounds the white noise on the frames of the context; the targets stay clean, so that a step learns to
    take small-scale errors out instead of letting them grow (Sanchez-Gonzalez et al. 2020). The frames after the
    context are those of the `pushforward`, which start the horizon without a gradient, and the horizon's.
    """
    return _walked(field_rollout, model, config)


def latent_losses(model: Simulator, config: TrainingConfig) -> StageLoss:
    """The same of a batch of latents, which the frames of the context were encoded to; the codec learns nothing. The
    targets are what the latents of the later frames carry. ConfigError where a term or noise is of the codec."""
    for name in checked_weights(config, model.task):
        if name in INVERSE_TERMS:
            raise ConfigError(
                f"{weight_key(name)}: is a loss of the codec, which data.source=latents holds; set it to 0"
            )
    if config.input_noise > 0:
        raise ConfigError(
            f"training.input_noise={config.input_noise:g}: is laid on fields before they are encoded, which "
            "data.source=latents has done; set it to 0"
        )
    return _walked(latent_rollout, model, config)


def _walked(walk_on: Callable[..., TrainingRollout], model: Any, config: TrainingConfig) -> StageLoss:
    """The bundle of either walk."""
    task = model.task
    weights = checked_weights(config, task)
    # Both are the mean square error, of different steps.
    squares = {"forward"} if "forward" in weights or "rollout" in weights else set()
    names = (weights.keys() - {"forward", "rollout"}) | squares
    physical = any(name in PHYSICS_TERMS for name in names)
    draw = operator_draws(model, config)

    def bundle(
        params: PyTree, batch: Batch, key: Key[Array, ""], context: StepContext = EMPTY_CONTEXT
    ) -> tuple[Float[Array, ""], Terms]:
        batch = on_device(batch)
        cond = conditions_of(batch)
        queries = query_points(config, task, key, cond.points)
        walk = walk_on(names, model, params, draw(batch, key), cond, config)

        def advance(seen: Any, truth: Float[Array, "b *s c"]) -> tuple[Any, SampleTerms]:
            seen, pred, terms = walk.advance(seen)
            return seen, scored(pred, terms, truth)

        def ended(end: Any, seen: Any, truth: Float[Array, "b *s c"]) -> tuple[Any, SampleTerms]:
            pred, terms = end(seen)
            return seen, scored(pred, terms, truth)

        def scored(pred: Float[Array, "b *s c"], terms: SampleTerms, truth: Float[Array, "b *s c"]) -> SampleTerms:
            terms |= field_terms(names, pred, truth, task, queries, cond.points)
            if physical:
                terms |= prior_terms(names, denormalize(pred, task.statistics), walk.start, task, config.physics_priors)
            return terms

        options: dict[str, Any] = {"truncate": config.truncate, "recompute": config.remat == "full"}
        if walk.end is None:
            steps = unroll(advance, walk.seen, walk.targets, **options)
        else:
            steps = unroll_with_last_step(advance, partial(ended, walk.end), walk.seen, walk.targets, **options)
        samples = _over_steps(weights, steps) | _inverse_terms(weights, model, params, walk.context, queries)
        return _total(weights, samples, config, task, batch, context)

    return bundle


def operator_draws(model: Simulator | PointSimulator, config: TrainingConfig) -> Draw:
    """(batch, key) -> the batch with what its loss would draw for each row, where that is not there yet: drawn for all
    rows before they are split, it does not depend on how they are. `noise` has a standard deviation of its own in each
    row, uniform in [0, 1]: a step that knows clean frames as well as noisy ones loses nothing on the clean. `given`
    says how many of the steps of the pushforward are the true ones, each number equally often.
    """

    def draw(batch: Batch, key: Key[Array, ""]) -> Batch:
        drawn: dict[str, Array] = {}
        if config.input_noise > 0:
            frames = batch.fields[:, : model.context]
            scale = jax.random.uniform(stream(key, "noise scale"), (len(frames), *[1] * (frames.ndim - 1)))
            drawn["noise"] = scale * jax.random.normal(stream(key, "noise"), frames.shape)
        if config.pushforward > 0:
            drawn["given"] = jax.random.randint(stream(key, "given"), batch.mask.shape, 0, config.pushforward + 1)
        return with_draws(batch, drawn)

    return draw


def _total(
    weights: dict[str, float],
    samples: SampleTerms,
    config: TrainingConfig,
    task: Task,
    batch: Batch,
    context: StepContext,
) -> tuple[Float[Array, ""], Terms]:
    """Return the weighted sum of the terms of each sample, and the terms, as means over the rows that count."""
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
    """The sum of the terms, or of each sample's, with their weights: of the inverse ones those of the epoch."""
    if epoch is None and has_epoch_schedule(config):
        raise ValueError("the weights of the inverse losses depend on the epoch: set `epoch` of the StepContext")

    def weight(name: str) -> Float[Array, ""] | float:
        if epoch is None or name not in INVERSE_TERMS:
            return weights[name]
        return inverse_weight(epoch, weights[name], config.inverse_loss_warmup_epochs, config.inverse_loss_max_weight)

    return sum((weight(name) * value for name, value in terms.items()), jnp.zeros(()))


def query_points(
    config: TrainingConfig, task: Task, key: Key[Array, ""], present: Float[Array, "b p"] | None = None
) -> Int[Array, " q"] | Int[Array, "b q"] | None:
    """The points that a step's pointwise terms are scored at, or None for all of them; of a set of points, whose mask
    is `present`, each row's own."""
    sampling = config.query_sampling
    if not sampling.enabled or sampling.num_queries is None:
        return None
    if present is not None:
        return sample_present(stream(key, "queries"), present, sampling.num_queries)
    return sample_queries(stream(key, "queries"), task.points, sampling.num_queries, sampling.strategy, task.shape)


def _over_steps(weights: dict[str, float], steps: dict[str, Float[Array, "t b"]]) -> SampleTerms:
    samples = {name: values.mean(0) for name, values in steps.items() if name != "forward"}
    if "forward" in weights:
        samples["forward"] = steps["forward"][0]
    if "rollout" in weights:
        samples["rollout"] = steps["forward"][1:].mean(0)
    return samples


def _inverse_terms(
    weights: dict[str, float],
    model: Simulator | PointSimulator,
    params: Any,
    window: Float[Array, "b k *s c"] | None,
    queries: Int[Array, " q"] | Int[Array, "b q"] | None,
) -> SampleTerms:
    if window is None or isinstance(model, PointSimulator) or not any(name in INVERSE_TERMS for name in weights):
        return {}
    z = encode(model, params, window)

    def at_queries(x: Float[Array, "b *s c"]) -> Float[Array, "b *q c"]:
        return x if queries is None else take_points(x, queries)

    def encode_newest(field: Float[Array, "b *s c"]) -> Float[Array, "b n d"]:
        return encode(model, params, jnp.concatenate([window[:, :-1], field[:, None]], axis=1))

    terms: SampleTerms = {}
    if "inverse_encoding" in weights:
        terms["inverse_encoding"] = inverse_encoding(
            lambda z: at_queries(decode(model, params, z)), z, at_queries(window[:, -1]), reduction="none"
        )
    if "inverse_decoding" in weights:
        terms["inverse_decoding"] = inverse_decoding(
            encode_newest, lambda z: decode(model, params, z), z, reduction="none"
        )
    return terms


def steady_losses(model: SteadySimulator, config: TrainingConfig) -> StageLoss:
    """(params, batch, key, context) -> (weighted sum, terms by name); ConfigError for a weighted term of time steps or
    of latent states. Errors are of the normalised solution, priors of the one in physical units; `input_noise` is of
    time steps.
    """
    task = model.task
    weights = checked_weights(config, task)
    names = sorted(weights)

    def solve_batch(params: Any, inputs: Float[Array, "b *s i"], cond: Conditions) -> Float[Array, "b *s c"]:
        return steady_field(model, params, normalize_inputs(inputs, task.inputs), cond)

    solve = jax.checkpoint(solve_batch) if config.remat == "full" else solve_batch

    def bundle(
        params: PyTree, batch: Batch, key: Key[Array, ""], context: StepContext = EMPTY_CONTEXT
    ) -> tuple[Float[Array, ""], Terms]:
        batch = on_device(batch)
        cond = conditions_of(batch)
        truth = normalize(batch.fields[:, 0], task.statistics)
        pred = solve(params, batch.inputs, cond)
        samples = field_terms(names, pred, truth, task, query_points(config, task, key))
        if any(name in PHYSICS_TERMS for name in names):
            samples |= prior_terms(names, denormalize(pred, task.statistics), None, task, config.physics_priors)
        return _total(weights, samples, config, task, batch, context)

    return bundle
