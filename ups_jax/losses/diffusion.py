"""The corrector's loss: flow matching on a frozen predictor's normalised error, or regression of its mean error."""

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
    """Return the corrector's loss, in units of the root mean square error of the predictor (`StepContext.scale`).

    With the objective `flow` it is the mean square error of the velocity of a straight line from noise (time 0) to the
    error (time 1), at a random time. With `regression` it is the mean square error of the predicted error itself.

    In a share `diffusion.expected_share` of the rows the flow starts at time 0 with zero noise, where the velocity is
    the error. This trains `sampling.expected`, which evaluates the corrector at zero noise; a random draw is never
    close to it.

    Args:
        model: Corrector to train.
        base: Predictor; its parameters are in `StepContext.parents`.
        cfg: Configuration of the run.

    Returns:
        (params, batch, key, context) -> (loss, terms by name).

    References:
        Lipman et al. 2023; Liu et al. 2023. Noise levels are weighted as by v-prediction (Salimans & Ho 2022).
    """
    (predictor,) = STAGE_NEEDS[model.task.kind]["diffusion_residual"]
    residual = predictor_residual(base, cfg.diffusion)
    squared_error = {"flow": _velocity_error, "regression": _mean_error}[cfg.diffusion.objective]
    draw = diffusion_draws(model, base, cfg)

    def loss(params: PyTree, batch: Batch, key: Key[Array, ""], context: StepContext) -> tuple[Float[Array, ""], Terms]:
        rows = draw(batch, key)
        corrector_inputs, error = residual(context.parents[predictor], rows)
        error = error / context.error_scale.reshape((1,) * (error.ndim - 1) + (-1,))
        squares = squared_error(model, params, rows, corrector_inputs, error)
        mask = jnp.asarray(batch.mask)
        mean = jnp.sum(squares * mask) / jnp.maximum(mask.sum(), 1.0)
        return mean, {cfg.diffusion.objective: mean}

    return loss


def diffusion_draws(model: Corrector, base: Simulator | SteadySimulator, cfg: Config) -> Draw:
    """Return the function that adds the random draws of `diffusion_losses` to a batch; existing draws are kept.

    It adds the draws of `flow_draws`, and `bare`: whether a row starts from zero noise, with the probability
    `diffusion.expected_share`.
    """
    flow, share = flow_draws(model, base, cfg), cfg.diffusion.expected_share

    def draw(batch: Batch, key: Key[Array, ""]) -> Batch:
        bare = jax.random.bernoulli(stream(key, "bare"), share, batch.fields.shape[:1])
        return with_draws(flow(batch, key), {"bare": bare})

    return draw


def flow_draws(model: Corrector, base: Simulator | SteadySimulator, cfg: Config) -> Draw:
    """Return the function that adds the random draws of a flow to a batch; existing draws are kept.

    It adds the draws of `with_state_draws`, `noise` (the state of the flow at time 0) and `tau` (the time of the flow).
    """
    context = base.context if isinstance(base, Simulator) else 1

    def draw(batch: Batch, key: Key[Array, ""]) -> Batch:
        shape = (batch.fields.shape[0], *batch.fields.shape[2:])
        draws = {
            "noise": draw_noise(stream(key, "noise"), shape, model.task),
            "tau": draw_flow_times(stream(key, "tau"), shape[0], cfg.training.tau_distribution),
        }
        return with_draws(with_state_draws(batch, key, context, cfg.diffusion), draws)

    return draw


def draw_flow_times(key: Key[Array, ""], rows: int, config: TauConfig) -> Float[Array, " b"]:
    """Return one random time in (0, 1) per row, drawn from the configured distribution."""
    distributions = {
        "uniform": lambda: jax.random.uniform(key, (rows,)),
        "beta": lambda: jax.random.beta(key, config.alpha, config.beta, (rows,)),
    }
    return distributions[config.type]()


def _velocity_error(
    model: Corrector, params: Any, rows: Batch, corrector_inputs: CorrectorInputs, error: Float[Array, "b *s c"]
) -> Float[Array, " b"]:
    """Return the mean square error of the velocity for each row."""
    has_noise = 1.0 - jnp.asarray(rows.draws["bare"], jnp.float32)
    noise, tau = jnp.asarray(rows.draws["noise"]), jnp.asarray(rows.draws["tau"]) * has_noise
    noise = noise * has_noise.reshape(-1, *(1,) * (error.ndim - 1))
    time = tau.reshape(-1, *(1,) * (error.ndim - 1))
    pred = velocity(model, params, (1 - time) * noise + time * error, tau, corrector_inputs)
    return jnp.square(pred - (error - noise)).mean(tuple(range(1, error.ndim)))


def _mean_error(
    model: Corrector, params: Any, rows: Batch, corrector_inputs: CorrectorInputs, error: Float[Array, "b *s c"]
) -> Float[Array, " b"]:
    """Return the mean square error of the corrector's estimate of the mean error for each row.

    The estimate is the velocity at zero noise and time 0.
    """
    pred = velocity(model, params, jnp.zeros_like(error), jnp.zeros(len(error)), corrector_inputs)
    return jnp.square(pred - error).mean(tuple(range(1, error.ndim)))


# (parameters of the predictor, batch with state draws) -> (inputs of the corrector, error of the predictor, normalised)
Residual = Callable[[Any, Batch], tuple[CorrectorInputs, Float[Array, "b *s c"]]]


def predictor_residual(base: Simulator | SteadySimulator, config: DiffusionConfig) -> Residual:
    """Return the function that computes a predictor's error, truth - prediction, without gradients.

    Args:
        base: Predictor of a time step or of a steady solution.
        config: Input noise and number of steps that the predictor makes before its error is taken.

    Returns:
        (parameters of the predictor, batch) -> (inputs of the corrector, normalised error).
    """
    kind: Callable[[Any, DiffusionConfig], Residual] = (
        _step_residual if isinstance(base, Simulator) else _solution_residual
    )
    residual = kind(base, config)

    def without_gradient(params: Any, batch: Batch) -> tuple[CorrectorInputs, Float[Array, "b *s c"]]:
        return jax.lax.stop_gradient(residual(jax.lax.stop_gradient(params), batch))

    return without_gradient


def with_state_draws(batch: Batch, key: Key[Array, ""], context: int, config: DiffusionConfig) -> Batch:
    """Return the batch with the random draws of the predictor's input frames; existing draws are kept.

    The draws are `given` (with `model_rollout_steps`), the number of leading rollout steps of each row that take the
    true frame, uniform in 0..`model_rollout_steps`; and `state_noise` (with `input_noise`), white noise on the input
    frames.

    Args:
        batch: Batch of frames.
        key: Random key of the training step.
        context: Number of input frames of the predictor.
        config: Input noise and number of rollout steps.
    """
    frames = batch.fields[:, :context]
    draws: dict[str, Array] = {}
    if config.model_rollout_steps > 0:
        draws["given"] = jax.random.randint(stream(key, "given"), frames.shape[:1], 0, config.model_rollout_steps + 1)
    if config.input_noise > 0:
        draws["state_noise"] = jax.random.normal(stream(key, "state"), frames.shape)
    return with_draws(batch, draws)


def _step_residual(base: Simulator, config: DiffusionConfig) -> Residual:
    """Return the residual of a time step, taken after `model_rollout_steps` steps."""
    task = base.task

    def residual(params: Any, batch: Batch) -> tuple[CorrectorInputs, Float[Array, "b *s c"]]:
        fields, cond = normalize(jnp.asarray(batch.fields), task.statistics), conditions_of(batch)
        window, later = fields[:, : base.context], jnp.moveaxis(fields[:, base.context :], 1, 0)
        if config.input_noise > 0:
            window = window + config.input_noise * jnp.asarray(batch.draws["state_noise"])
        if config.model_rollout_steps > 0:
            truth, num_true_steps = later[: config.model_rollout_steps], jnp.asarray(batch.draws["given"])
            window = push_forward(lambda params, w: step(base, params, w, cond), params, window, truth, num_true_steps)
        pred = step(base, params, window, cond)
        return step_inputs(task, window, pred, cond), later[config.model_rollout_steps] - pred

    return residual


def _solution_residual(base: SteadySimulator, config: DiffusionConfig) -> Residual:
    """Return the residual of a steady solution."""
    task = base.task

    def residual(params: Any, batch: Batch) -> tuple[CorrectorInputs, Float[Array, "b *s c"]]:
        inputs = normalize_inputs(jnp.asarray(batch.inputs), task.inputs)
        cond = conditions_of(batch)
        pred = steady_field(base, params, inputs, cond)
        return solution_inputs(inputs, pred, cond), normalize(jnp.asarray(batch.fields)[:, 0], task.statistics) - pred

    return residual
