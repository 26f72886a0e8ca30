"""What an unrolled loss walks on: windows of fields, each encoded anew, or latent states that the codec made before."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ups_jax.config import TrainingConfig
from ups_jax.errors import ConfigError
from ups_jax.losses.terms import SampleTerms, latent_terms
from ups_jax.losses.unroll import next_window, push_forward
from ups_jax.losses.weights import LATENT
from ups_jax.models import (
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
from ups_jax.models.codec import CODEC, carried_width


@dataclass(frozen=True)
class Walk:
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


def on_fields(
    names: Collection[str],
    model: Simulator | PointSimulator,
    params: Any,
    arrays: dict[str, Array],
    cond: Conditions,
    config: TrainingConfig,
    random: Any,
) -> Walk:
    """On windows of frames; the context has the noise of `random`."""
    fields = normalize(arrays["fields"], model.task.statistics)
    context = window = fields[:, : model.context]
    if config.input_noise > 0:
        window = window + config.input_noise * random["noise"]
    later = jnp.moveaxis(fields[:, model.context :], 1, 0)
    if config.pushforward > 0:
        pushed, given = later[: config.pushforward], jnp.asarray(random["given"])
        window = push_forward(lambda params, w: step(model, params, w, cond), params, window, pushed, given)

    def advance(window: Float[Array, "b k *s c"]) -> tuple[Array, Array, SampleTerms]:
        pred, terms = _predicted(names, model, params, window, cond)
        return next_window(window, pred), pred, terms

    start = arrays["fields"][:, model.context - 1].astype(jnp.float32)
    return Walk(window, later[config.pushforward :], advance, start, context)


def on_latents(
    names: Collection[str],
    model: Simulator,
    params: Any,
    arrays: dict[str, Array],
    cond: Conditions,
    config: TrainingConfig,
    random: Any,
) -> Walk:
    """On latent states, which the operator carries on; the codec has no gradient.

    An advanced state is what the codec would make of its field, so that the walk is the one on fields. A single step
    evaluates no encoder; of more, each but the last makes the features of the field that it predicts.
    """
    if "latents" not in arrays:
        raise ConfigError("data.source=latents: these batches are of fields; use data.source=fields")
    held = {**params, CODEC: jax.lax.stop_gradient(params[CODEC])}
    states, later = (_sequences(arrays[name]) for name in ("latents", "targets"))
    targets = jax.vmap(partial(decode, model, held))(later)

    def state_of(z: Float[Array, "b n d"]) -> LatentState:
        return LatentState(z=z, t=jnp.zeros_like(cond.dt), cond=cond)

    def advance(z: Float[Array, "b n d"]) -> tuple[Array, Array, SampleTerms]:
        new = operate(model, held, state_of(z)).z
        return new, decode(model, held, new), _token_terms(names, model, new)

    def end(z: Float[Array, "b n d"]) -> tuple[Array, SampleTerms]:
        if any(name in LATENT for name in names):
            return advance(z)[1:]
        return next_field(model, held, state_of(z)), {}

    first = z = states[0]
    if config.pushforward > 0:
        given = jnp.asarray(random["given"])
        z = push_forward(lambda params, z: operate(model, params, state_of(z)).z, held, z, states[1:], given, _newest)
    start = denormalize(decode(model, held, first), model.task.statistics)
    return Walk(z, targets, advance, start, end=end)


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
    if isinstance(model, PointSimulator) or not any(name in LATENT for name in names):
        return step(model, params, window, cond), {}
    state = LatentState(z=encode(model, params, window), t=jnp.zeros_like(cond.dt), cond=cond)
    z = operate(model, params, state).z
    return decode(model, params, z), _token_terms(names, model, z)


def _token_terms(names: Collection[str], model: Simulator, z: Float[Array, "b n d"]) -> SampleTerms:
    # What stands before the features is the field itself, whose size is not the codec's to choose.
    return latent_terms(names, z[..., carried_width(model.task, model.latent) * model.context :])
