"""How a loss is unrolled in time: steps without a gradient first, cuts of the gradient, what is kept for it.

Both walks carry the window of frames that a time step sees, and keep every value of an ordinary unrolled scan.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

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
    denormalize,
    encode,
    next_field,
    normalize,
    operate,
    step,
)
from ups_jax.models.codec import CODEC, newest_patch_width

# The window that the next step sees, and what this step is worth by name.
Advance = Callable[[Any, Any], tuple[Any, Any]]


def next_window(window: Float[Array, "b k *s c"], newest: Float[Array, "b *s c"]) -> Float[Array, "b k *s c"]:
    """The frames that the step after sees."""
    return jnp.concatenate([window[:, 1:], newest[:, None]], axis=1)


def push_forward(
    step: Callable[[Any, Any], Array],
    params: Any,
    window: Float[Array, "b *k"],
    truth: Float[Array, "t b *s"],
    given: Int[Array, " b"],
    follow: Callable[[Any, Any], Array] = next_window,
) -> Float[Array, "b *k"]:
    """The window after the steps of `truth`, as a constant: no gradient reaches what led there. The first `given` steps
    of a row are the true ones, the others the model's own. `follow(window, newest)` is what the step after sees.

    The pushforward trick of Brandstetter et al. (2022, section 3.1): what is scored starts from the errors that the
    model makes, and only the scored steps are taught to live with them. Rows that start from the truth have to be among
    them: a model that is scored after its own steps alone learns what makes up for these, and no step of time.
    """
    if not len(truth):
        return window
    fixed = jax.lax.stop_gradient(params)

    def advance(window: Float[Array, "b *k"], numbered: tuple[Array, Array]) -> tuple[Any, None]:
        number, true = numbered
        is_given = (number < given).reshape(-1, *(1,) * (true.ndim - 1))
        newest = jnp.where(is_given, true, step(fixed, window))
        return follow(window, newest), None

    walked, _ = jax.lax.scan(advance, jax.lax.stop_gradient(window), (jnp.arange(len(truth)), truth))
    return jax.lax.stop_gradient(walked)


def unroll(
    advance: Advance,
    window: Float[Array, "b *k"],
    targets: Float[Array, "t b *s c"],
    *,
    truncate: int | None = None,
    recompute: bool = False,
) -> Any:
    """The values of `advance(window, target) -> (next window, values)` over all targets, stacked on the first axis.

    With `truncate` the gradient does not pass from step n to step n - 1 where n is a multiple of it (truncated
    back-propagation through time); values stay the same. With `recompute` a step keeps its window alone for the
    backward pass, and is made again there.
    """
    body, over = _body(advance, targets, truncate, recompute)
    return jax.lax.scan(body, window, over)[1]


def unroll_with_last_step(
    advance: Advance,
    end: Advance,
    window: Float[Array, "b *k"],
    targets: Float[Array, "t b *s c"],
    *,
    truncate: int | None = None,
    recompute: bool = False,
) -> Any:
    """The same with `end` for the last step, after which there is none, so that it need not make a window for one. Of
    a single step there is no scan."""
    body, over = _body(advance, targets, truncate, recompute)
    before, last = jax.tree.map(lambda each: each[:-1], over), jax.tree.map(lambda each: each[-1], over)
    ended, _ = _body(end, targets, truncate, recompute)
    if len(targets) == 1:
        return jax.tree.map(lambda value: value[None], ended(window, last)[1])
    window, values = jax.lax.scan(body, window, before)
    return jax.tree.map(lambda each, value: jnp.concatenate([each, value[None]]), values, ended(window, last)[1])


def _body(advance: Advance, targets: Any, truncate: int | None, recompute: bool) -> tuple[Advance, Any]:
    """The step of a scan, and what it goes over."""
    every = len(targets) if truncate is None else truncate

    def cut(window: Any, numbered: tuple[Array, Any]) -> tuple[Any, Any]:
        number, target = numbered
        here = (number > 0) & (number % every == 0)
        return advance(jnp.where(here, jax.lax.stop_gradient(window), window), target)

    body: Advance = advance if truncate is None else cut
    over: Any = targets if truncate is None else (jnp.arange(len(targets)), targets)
    # Inside a scan nothing can be merged with the forward pass, so that no barrier is needed against it.
    return (jax.checkpoint(body, prevent_cse=False) if recompute else body), over


@dataclass(frozen=True)
class TrainingRollout:
    """`advance(seen)` is what the step after sees, the predicted frame, and the terms of its tokens; `seen` is what the
    first scored step sees, and `targets` are the true frames, normalised. `end` is the last step, where that can be had
    for less.

    `start` is the newest frame of the context in physical units, `context` its frames, normalised and without noise,
    where the walk knows them.
    """

    seen: Any
    targets: Float[Array, "t b *s c"]
    advance: Callable[[Any], tuple[Any, Float[Array, "b *s c"], SampleTerms]]
    start: Float[Array, "b *s c"]
    context: Float[Array, "b k *s c"] | None = None
    end: Callable[[Any], tuple[Float[Array, "b *s c"], SampleTerms]] | None = None


def field_rollout(
    names: Collection[str],
    model: Simulator | PointSimulator,
    params: Any,
    batch: Batch,
    cond: Conditions,
    config: TrainingConfig,
) -> TrainingRollout:
    """On windows of frames; the context has the batch's drawn noise."""
    fields = normalize(batch.fields, model.task.statistics)
    context = window = fields[:, : model.context]
    if config.input_noise > 0:
        window = window + config.input_noise * batch.draws["noise"]
    later = jnp.moveaxis(fields[:, model.context :], 1, 0)
    if config.pushforward > 0:
        pushed, given = later[: config.pushforward], jnp.asarray(batch.draws["given"])
        window = push_forward(lambda params, w: step(model, params, w, cond), params, window, pushed, given)

    def advance(window: Float[Array, "b k *s c"]) -> tuple[Array, Array, SampleTerms]:
        pred, terms = _predicted(names, model, params, window, cond)
        return next_window(window, pred), pred, terms

    start = batch.fields[:, model.context - 1].astype(jnp.float32)
    return TrainingRollout(window, later[config.pushforward :], advance, start, context)


def latent_rollout(
    names: Collection[str], model: Simulator, params: Any, batch: Batch, cond: Conditions, config: TrainingConfig
) -> TrainingRollout:
    """On latent states, which the operator carries on; the codec has no gradient.

    An advanced state is what the codec would make of its field, so that the walk is the one on fields. A single step
    evaluates no encoder; of more, each but the last makes the features of the field that it predicts.
    """
    if batch.latents is None:
        raise ConfigError("data.source=latents: these batches are of fields; use data.source=fields")
    held = {**params, CODEC: jax.lax.stop_gradient(params[CODEC])}
    states, later = (_sequences(tokens) for tokens in (batch.latents, batch.targets))
    targets = jax.vmap(partial(decode, model, held))(later)

    def state_of(z: Float[Array, "b n d"]) -> LatentState:
        return LatentState(z=z, t=jnp.zeros_like(cond.dt), cond=cond)

    def advance(z: Float[Array, "b n d"]) -> tuple[Array, Array, SampleTerms]:
        new = operate(model, held, state_of(z)).z
        return new, decode(model, held, new), _token_terms(names, model, new)

    def end(z: Float[Array, "b n d"]) -> tuple[Array, SampleTerms]:
        if any(name in LATENT_TERMS for name in names):
            return advance(z)[1:]
        return next_field(model, held, state_of(z)), {}

    first = z = states[0]
    if config.pushforward > 0:
        given = jnp.asarray(batch.draws["given"])
        z = push_forward(lambda params, z: operate(model, params, state_of(z)).z, held, z, states[1:], given, _newest)
    start = denormalize(decode(model, held, first), model.task.statistics)
    return TrainingRollout(z, targets, advance, start, end=end)


def _newest(_: Any, newest: Float[Array, "b n d"]) -> Float[Array, "b n d"]:
    return newest


def _sequences(tokens: Float[Array, "b t *n d"]) -> Float[Array, "t b n d"]:
    return jnp.moveaxis(tokens.reshape(*tokens.shape[:2], -1, tokens.shape[-1]), 1, 0)


def _predicted(
    names: Collection[str],
    model: Simulator | PointSimulator,
    params: Any,
    window: Float[Array, "b k *s c"],
    cond: Conditions,
) -> tuple[Float[Array, "b *s c"], SampleTerms]:
    """The next frame, and the terms of the tokens it is decoded from."""
    if isinstance(model, PointSimulator) or not any(name in LATENT_TERMS for name in names):
        return step(model, params, window, cond), {}
    state = LatentState(z=encode(model, params, window), t=jnp.zeros_like(cond.dt), cond=cond)
    z = operate(model, params, state).z
    return decode(model, params, z), _token_terms(names, model, z)


def _token_terms(names: Collection[str], model: Simulator, z: Float[Array, "b n d"]) -> SampleTerms:
    # What stands before the features is the field itself, whose size is not the codec's to choose.
    return latent_terms(names, z[..., newest_patch_width(model.task, model.latent) * model.context :])
