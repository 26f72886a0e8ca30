"""The operator stage's loss: named terms, each weighted by its configuration key and logged by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from ups_jax.config import TrainingConfig
from ups_jax.losses.inverse import inverse_decoding, inverse_encoding, inverse_weight
from ups_jax.losses.per_task import per_task_terms
from ups_jax.losses.query import sample_present, sample_queries, take_points
from ups_jax.losses.terms import SampleTerms, field_terms, latent_terms, prior_terms
from ups_jax.losses.unroll import push_forward, unroll
from ups_jax.losses.weights import INVERSE, LATENT, PHYSICAL, checked_weights, scheduled
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
from ups_jax.models.codec import carried_width
from ups_jax.models.latent_state import conditions_of
from ups_jax.streams import stream
from ups_jax.task import Task

Terms = dict[str, Float[Array, ""]]
# A batch of windows as `ups_jax.data` makes it: on the host, on the device, or traced.
Batch = dict[str, Array | np.ndarray]


@runtime_checkable
class LossBundle(Protocol):
    """The loss of a stage, a mean over the rows that count."""

    def __call__(
        self, params: Any, batch: Batch, key: Key[Array, ""], epoch: Float[Array, ""] | None = None
    ) -> tuple[Float[Array, ""], Terms]:
        """The weighted sum, and the terms by name without their weights. `key` is for what is random; the epoch, a
        number with its fraction, is needed where `scheduled(config)`."""
        ...


# The loss of any stage: a `LossBundle`, or one that wants what a stage with parents is told as well, by name.
StageLoss = Callable[..., tuple[Float[Array, ""], Terms]]


def operator_losses(model: Simulator | PointSimulator, config: TrainingConfig) -> LossBundle:
    """(params, batch, key[, epoch]) -> (weighted sum, terms by name), over an unrolled `rollout_horizon` that feeds
    back itself. ConfigError where a weighted term cannot be had of the task.

    Errors are of normalised fields, priors of the prediction in physical units. `forward` scores the first step,
    `rollout` the later ones, all others the mean over steps; latent terms are of the learned features of the predicted
    tokens; the inverse terms are of the first frames alone.

    `input_noise` bounds the white noise on the frames of the context; the targets stay clean, so that a step learns to
    take small-scale errors out instead of letting them grow (Sanchez-Gonzalez et al. 2020). The frames after the
    context are those of the `pushforward`, which start the horizon without a gradient, and the horizon's.
    """
    task = model.task
    weights = checked_weights(config, task)
    # Both are the mean square error, of different steps.
    squares = {"forward"} if "forward" in weights or "rollout" in weights else set()
    names = (weights.keys() - {"forward", "rollout"}) | squares
    physical = any(name in PHYSICAL for name in names)
    draw = draw_rows(model, config)

    def bundle(
        params: Any, batch: Batch, key: Key[Array, ""], epoch: Float[Array, ""] | None = None
    ) -> tuple[Float[Array, ""], Terms]:
        arrays = {name: jnp.asarray(values) for name, values in batch.items()}
        fields = normalize(arrays["fields"], task.statistics)
        cond = conditions_of(arrays)
        start = arrays["fields"][:, model.context - 1].astype(jnp.float32) if physical else None
        queries = query_points(config, task, key, cond.points)

        def advance(window: Float[Array, "b k *s c"], truth: Float[Array, "b *s c"]) -> tuple[Array, SampleTerms]:
            pred, terms = _predict(names, model, params, window, cond)
            next_window = jnp.concatenate([window[:, 1:], pred[:, None]], axis=1)
            terms |= field_terms(names, pred, truth, task, queries, cond.points)
            if start is not None:
                terms |= prior_terms(names, denormalize(pred, task.statistics), start, task, config.physics_priors)
            return next_window, terms

        random = draw(batch, key)
        window = fields[:, : model.context]
        if config.input_noise > 0:
            window = window + config.input_noise * random["noise"]
        later = jnp.moveaxis(fields[:, model.context :], 1, 0)
        if config.pushforward > 0:
            pushed, given = later[: config.pushforward], jnp.asarray(random["given"])
            window = push_forward(lambda params, w: step(model, params, w, cond), params, window, pushed, given)
        targets = later[config.pushforward :]
        steps = unroll(advance, window, targets, truncate=config.truncate, recompute=config.remat == "full")
        samples = _over_steps(weights, steps) | _inverse_terms(weights, model, params, fields, queries)
        rows = arrays["mask"] / jnp.maximum(arrays["mask"].sum(), 1.0)
        terms = {name: jnp.sum(values * rows) for name, values in samples.items()}
        total = weighted_sum(weights, terms, config, epoch)
        if config.log_per_task_metrics or task.siblings:
            per_sample = weighted_sum(weights, samples, config, epoch)
            terms |= per_task_terms((task.name,), per_sample, arrays["mask"])
        return total, terms

    return bundle


def draw_rows(model: Simulator | PointSimulator, config: TrainingConfig) -> Callable[[Batch, Key[Array, ""]], Batch]:
    """(batch, key) -> the batch with what its loss would draw for each row, where that is not there yet: drawn for all
    rows before they are split, it does not depend on how they are. `noise` has a standard deviation of its own in each
    row, uniform in [0, 1]: a step that knows clean frames as well as noisy ones loses nothing on the clean. `given`
    says how many of the steps of the pushforward are the true ones, each number equally often.
    """

    def draw(batch: Batch, key: Key[Array, ""]) -> Batch:
        frames = batch["fields"][:, : model.context]
        drawn: Batch = {}
        if config.input_noise > 0:
            scale = jax.random.uniform(stream(key, "noise scale"), (len(frames), *[1] * (frames.ndim - 1)))
            drawn["noise"] = scale * jax.random.normal(stream(key, "noise"), frames.shape)
        if config.pushforward > 0:
            drawn["given"] = jax.random.randint(stream(key, "given"), frames.shape[:1], 0, config.pushforward + 1)
        return drawn | batch

    return draw


def weighted_sum(
    weights: dict[str, float],
    terms: dict[str, Float[Array, "*b"]],
    config: TrainingConfig,
    epoch: Float[Array, ""] | None,
) -> Float[Array, "*b"]:
    """The sum of the terms, or of each sample's, with their weights: of the inverse ones those of the epoch."""
    if epoch is None and scheduled(config):
        raise ValueError("the weights of the inverse losses depend on the epoch: give it to the bundle")

    def weight(name: str) -> Float[Array, ""] | float:
        if epoch is None or name not in INVERSE:
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


def _predict(
    names: set[str], model: Simulator | PointSimulator, params: Any, window: Float[Array, "b k *s c"], cond: Conditions
) -> tuple[Float[Array, "b *s c"], SampleTerms]:
    """The next frame, and the terms of the tokens it is decoded from."""
    if isinstance(model, PointSimulator) or not any(name in LATENT for name in names):
        return step(model, params, window, cond), {}
    state = LatentState(z=encode(model, params, window), t=jnp.zeros_like(cond.dt), cond=cond)
    z = operate(model, params, state).z
    # What stands before the features is the field itself, whose size is not the codec's to choose.
    features = z[..., carried_width(model.task, model.latent) * model.context :]
    return decode(model, params, z), latent_terms(names, features)


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
    fields: Float[Array, "b t *s c"],
    queries: Int[Array, " q"] | Int[Array, "b q"] | None,
) -> SampleTerms:
    if isinstance(model, PointSimulator) or not any(name in INVERSE for name in weights):
        return {}
    window = fields[:, : model.context]
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
