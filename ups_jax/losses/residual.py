"""What a frozen predictor gets wrong on a batch, and what that error is to be told from: the data of the corrector.

Its own training windows it fits too well, or they are all it has ever seen: the error is taken on states that it has
reached in some steps of its own, with noise on them where the configuration says so.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from ups_jax.config import DiffusionConfig
from ups_jax.losses.bundle import Batch
from ups_jax.losses.unroll import push_forward
from ups_jax.models import (
    Simulator,
    SteadySimulator,
    normalize,
    normalize_inputs,
    steady_field,
    step,
)
from ups_jax.models.corrector import Given, given_solution, given_step
from ups_jax.models.latent_state import conditions_of
from ups_jax.streams import stream

# (the predictor's parameters, a batch with what `draw_states` draws) -> what it is given, and the normalised error.
Residual = Callable[[Any, Batch], tuple[Given, Float[Array, "b *s c"]]]


def residual_of(base: Simulator | SteadySimulator, config: DiffusionConfig) -> Residual:
    """The error truth - prediction of a predictor, as a constant: no gradient reaches its parameters."""
    kind: Callable[[Any, DiffusionConfig], Residual] = (
        _step_residual if isinstance(base, Simulator) else _solution_residual
    )
    residual = kind(base, config)

    def fixed(params: Any, batch: Batch) -> tuple[Given, Float[Array, "b *s c"]]:
        return jax.lax.stop_gradient(residual(jax.lax.stop_gradient(params), batch))

    return fixed


def draw_states(batch: Batch, key: Key[Array, ""], context: int, config: DiffusionConfig) -> Batch:
    """What is random in the states of a batch's rows, where it is not there yet: how many of the `own_steps` start from
    the true ones, each number equally often, and the noise on the frames that are given."""
    frames = batch["fields"][:, :context]
    drawn: Batch = {}
    if config.own_steps > 0:
        drawn["given"] = jax.random.randint(stream(key, "given"), frames.shape[:1], 0, config.own_steps + 1)
    if config.input_noise > 0:
        drawn["state_noise"] = jax.random.normal(stream(key, "state"), frames.shape)
    return drawn | batch


def _step_residual(base: Simulator, config: DiffusionConfig) -> Residual:
    task = base.task

    def residual(params: Any, batch: Batch) -> tuple[Given, Float[Array, "b *s c"]]:
        fields, cond = normalize(jnp.asarray(batch["fields"]), task.statistics), conditions_of(batch)
        window, later = fields[:, : base.context], jnp.moveaxis(fields[:, base.context :], 1, 0)
        if config.input_noise > 0:
            window = window + config.input_noise * jnp.asarray(batch["state_noise"])
        if config.own_steps > 0:
            own, given = later[: config.own_steps], jnp.asarray(batch["given"])
            window = push_forward(lambda params, w: step(base, params, w, cond), params, window, own, given)
        pred = step(base, params, window, cond)
        return given_step(task, window, pred, cond), later[config.own_steps] - pred

    return residual


def _solution_residual(base: SteadySimulator, config: DiffusionConfig) -> Residual:
    task = base.task

    def residual(params: Any, batch: Batch) -> tuple[Given, Float[Array, "b *s c"]]:
        inputs = normalize_inputs(jnp.asarray(batch["inputs"]), task.inputs)
        cond = conditions_of(batch)
        pred = steady_field(base, params, inputs, cond)
        return given_solution(inputs, pred, cond), normalize(jnp.asarray(batch["fields"])[:, 0], task.statistics) - pred

    return residual
