"""The loss of the corrector: flow matching on the normalised error of a frozen predictor, or its mean by regression."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key, PyTree

from ups_jax.config import Config, DiffusionConfig, TauConfig
from ups_jax.core.rng import stream
from ups_jax.core.stage_names import STAGE_NEEDS
from ups_jax.losses.step_context import Draw, StageLoss, StepContext, Terms
from ups_jax.losses.unroll import push_forward
from ups_jax.models import (
    Batch,
    Simulator,
    SteadySimulator,
    conditions_of,
    normalize,
    normalize_inputs,
    steady_field,
    step,
    with_draws,
)
from ups_jax.models.corrector import Corrector, CorrectorInputs, solution_inputs, step_inputs, velocity
from ups_jax.rollout.flow_sampler import draw_noise


def diffusion_losses(model: Corrector, base: Simulator | SteadySimulator, cfg: Config) -> StageLoss:
    """(params, batch, key, context) -> (loss, terms): the mean square error of the velocity at a random time,
    or of the error itself with the objective `regression`, in units of the error's rms `context.scale`.

    The velocity is that of a straight line from noise to error (Lipman et al. 2023, Liu et al. 2023); small noise
    weighs as much as large, as with v-prediction. `context.parents` holds the parameters of the predictor `base`. A
    share `diffusion.expected_share` of the rows is at time 0 with no noise at all, where the velocity is the error:
    what `sampling.expected` asks for is learned by regression, as noise that is nearly 0 everywhere is never drawn.
    """
    (name,) = STAGE_NEEDS[model.task.kind]["diffusion_residual"]
    residual = predictor_residual(base, cfg.diffusion)
    per_row = {"flow": _velocity_error, "regression": _mean_error}[cfg.diffusion.objective]
    draw = diffusion_draws(model, base, cfg)

    def bundle(
        params: PyTree, batch: Batch, key: Key[Array, ""], context: StepContext
    ) -> tuple[Float[Array, ""], Terms]:
        rows = draw(batch, key)
        given, error = residual(context.parents[name], rows)
        error = error / context.error_scale.reshape((1,) * (error.ndim - 1) + (-1,))
        squares = per_row(model, params, rows, given, error)
        mask = jnp.asarray(batch.mask)
        loss = jnp.sum(squares * mask) / jnp.maximum(mask.sum(), 1.0)
        return loss, {cfg.diffusion.objective: loss}

    return bundle


def diffusion_draws(model: Corrector, base: Simulator | SteadySimulator, cfg: Config) -> Draw:
    """`draw_flow`, and which rows are asked for the expected error, `bare`."""
    flow, share = flow_draws(model, base, cfg), cfg.diffusion.expected_share

    def draw(batch: Batch, key: Key[Array, ""]) -> Batch:
        bare = jax.random.bernoulli(stream(key, "bare"), share, batch.fields.shape[:1])
        return with_draws(flow(batch, key), {"bare": bare})

    return draw


def flow_draws(model: Corrector, base: Simulator | SteadySimulator, cfg: Config) -> Draw:
    """(batch, key) -> the batch with what its loss draws for each row, where that is not there yet: the state, the
    noise and the time of the flow."""
    context = base.context if isinstance(base, Simulator) else 1

    def draw(batch: Batch, key: Key[Array, ""]) -> Batch:
        shape = (batch.fields.shape[0], *batch.fields.shape[2:])
        drawn = {
            "noise": draw_noise(stream(key, "noise"), shape, model.task),
            "tau": draw_flow_times(stream(key, "tau"), shape[0], cfg.training.tau_distribution),
        }
        return with_draws(with_state_draws(batch, key, context, cfg.diffusion), drawn)

    return draw


def draw_flow_times(key: Key[Array, ""], rows: int, config: TauConfig) -> Float[Array, " b"]:
    """Times of the flow, in (0, 1)."""
    kinds = {
        "uniform": lambda: jax.random.uniform(key, (rows,)),
        "beta": lambda: jax.random.beta(key, config.alpha, config.beta, (rows,)),
    }
    return kinds[config.type]()


def _velocity_error(
    model: Corrector, params: Any, rows: Batch, given: CorrectorInputs, error: Float[Array, "b *s c"]
) -> Float[Array, " b"]:
    drawn = 1.0 - jnp.asarray(rows.draws["bare"], jnp.float32)
    noise, tau = jnp.asarray(rows.draws["noise"]), jnp.asarray(rows.draws["tau"]) * drawn
    noise = noise * drawn.reshape(-1, *(1,) * (error.ndim - 1))
    time = tau.reshape(-1, *(1,) * (error.ndim - 1))
    found = velocity(model, params, (1 - time) * noise + time * error, tau, given)
    return jnp.square(found - (error - noise)).mean(tuple(range(1, error.ndim)))


def _mean_error(
    model: Corrector, params: Any, rows: Batch, given: CorrectorInputs, error: Float[Array, "b *s c"]
) -> Float[Array, " b"]:
    found = velocity(model, params, jnp.zeros_like(error), jnp.zeros(len(error)), given)
    return jnp.square(found - error).mean(tuple(range(1, error.ndim)))


# (the predictor's parameters, a batch with what `draw_states` draws) -> what it is given, and the normalised error.
Residual = Callable[[Any, Batch], tuple[CorrectorInputs, Float[Array, "b *s c"]]]


def predictor_residual(base: Simulator | SteadySimulator, config: DiffusionConfig) -> Residual:
    """The error truth - prediction of a predictor, as a constant: no gradient reaches its parameters."""
    kind: Callable[[Any, DiffusionConfig], Residual] = (
        _step_residual if isinstance(base, Simulator) else _solution_residual
    )
    residual = kind(base, config)

    def fixed(params: Any, batch: Batch) -> tuple[CorrectorInputs, Float[Array, "b *s c"]]:
        return jax.lax.stop_gradient(residual(jax.lax.stop_gradient(params), batch))

    return fixed


def with_state_draws(batch: Batch, key: Key[Array, ""], context: int, config: DiffusionConfig) -> Batch:
    """What is random in the states of a batch's rows, where it is not there yet: how many of the `model_rollout_steps` start from
    the true ones, each number equally often, and the noise on the frames that are given."""
    frames = batch.fields[:, :context]
    drawn: dict[str, Array] = {}
    if config.model_rollout_steps > 0:
        drawn["given"] = jax.random.randint(stream(key, "given"), frames.shape[:1], 0, config.model_rollout_steps + 1)
    if config.input_noise > 0:
        drawn["state_noise"] = jax.random.normal(stream(key, "state"), frames.shape)
    return with_draws(batch, drawn)


def _step_residual(base: Simulator, config: DiffusionConfig) -> Residual:
    task = base.task

    def residual(params: Any, batch: Batch) -> tuple[CorrectorInputs, Float[Array, "b *s c"]]:
        fields, cond = normalize(jnp.asarray(batch.fields), task.statistics), conditions_of(batch)
        window, later = fields[:, : base.context], jnp.moveaxis(fields[:, base.context :], 1, 0)
        if config.input_noise > 0:
            window = window + config.input_noise * jnp.asarray(batch.draws["state_noise"])
        if config.model_rollout_steps > 0:
            own, given = later[: config.model_rollout_steps], jnp.asarray(batch.draws["given"])
            window = push_forward(lambda params, w: step(base, params, w, cond), params, window, own, given)
        pred = step(base, params, window, cond)
        return step_inputs(task, window, pred, cond), later[config.model_rollout_steps] - pred

    return residual


def _solution_residual(base: SteadySimulator, config: DiffusionConfig) -> Residual:
    task = base.task

    def residual(params: Any, batch: Batch) -> tuple[CorrectorInputs, Float[Array, "b *s c"]]:
        inputs = normalize_inputs(jnp.asarray(batch.inputs), task.inputs)
        cond = conditions_of(batch)
        pred = steady_field(base, params, inputs, cond)
        return solution_inputs(inputs, pred, cond), normalize(jnp.asarray(batch.fields)[:, 0], task.statistics) - pred

    return residual
