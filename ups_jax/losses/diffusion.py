"""The corrector's loss: flow matching on a frozen predictor's normalised error, or regression of its mean error."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key, PyTree

from ups_jax.config import Config, DiffusionConfig, TauConfig
from ups_jax.core.rng import jax_stream_key
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


def diffusion_losses(model: Corrector, predictor: Simulator | SteadySimulator, cfg: Config) -> StageLoss:
    """Return the corrector's loss, in units of the root mean square error of the predictor (`StepContext.scale`).

    With the objective `flow` it is the mean square error of the velocity of a straight flow from noise (time 0) to the
    predictor's error (time 1), at a random time. With `regression` it is the mean square error of the predicted mean
    error.

    In a fraction `diffusion.expected_share` of the rows the flow has zero noise and is evaluated at time 0, where its
    velocity is the error. This trains `sampling.expected`, which evaluates the corrector at zero noise; random noise is
    never close to zero.

    Args:
        predictor: Predictor; its parameters are in `StepContext.parents`.

    Returns:
        (params, batch, key, context) -> (loss, terms by name).

    References:
        Lipman et al. 2023; Liu et al. 2023. Noise levels are weighted as by v-prediction (Salimans & Ho 2022).
    """
    (stage,) = STAGE_NEEDS[model.task.kind]["diffusion_residual"]
    compute_inputs_and_error = predictor_error_function(predictor, cfg.diffusion)
    squared_error = {"flow": _flow_error, "regression": _regression_error}[cfg.diffusion.objective]
    draw = diffusion_draws(model, predictor, cfg)

    def loss(params: PyTree, batch: Batch, key: Key[Array, ""], context: StepContext) -> tuple[Float[Array, ""], Terms]:
        rows = draw(batch, key)
        corrector_inputs, error = compute_inputs_and_error(context.parents[stage], rows)
        error = error / context.error_scale.reshape((1,) * (error.ndim - 1) + (-1,))
        squares = squared_error(model, params, rows, corrector_inputs, error)
        mask = jnp.asarray(batch.mask)
        mean = jnp.sum(squares * mask) / jnp.maximum(mask.sum(), 1.0)
        return mean, {cfg.diffusion.objective: mean}

    return loss


def diffusion_draws(model: Corrector, predictor: Simulator | SteadySimulator, cfg: Config) -> Draw:
    """Return the function that adds the random draws of `diffusion_losses` to a batch; existing draws are kept.

    The function adds the draws of `flow_draws`, and `bare`: whether a row's flow has zero noise, with the probability
    `diffusion.expected_share`.
    """
    flow, share = flow_draws(model, predictor, cfg), cfg.diffusion.expected_share

    def add_draws(batch: Batch, key: Key[Array, ""]) -> Batch:
        bare = jax.random.bernoulli(jax_stream_key(key, "bare"), share, batch.fields.shape[:1])
        return with_draws(flow(batch, key), {"bare": bare})

    return add_draws


def flow_draws(model: Corrector, predictor: Simulator | SteadySimulator, cfg: Config) -> Draw:
    """Return the function that adds the random draws of a flow to a batch; existing draws are kept.

    The function adds, for each row, the draws of `with_state_draws`, `noise` (the flow's state at time 0) and `tau` (a
    time of the flow).
    """
    context = predictor.context if isinstance(predictor, Simulator) else 1

    def add_draws(batch: Batch, key: Key[Array, ""]) -> Batch:
        shape = (batch.fields.shape[0], *batch.fields.shape[2:])
        draws = {
            "noise": draw_noise(jax_stream_key(key, "noise"), shape, model.task),
            "tau": draw_flow_times(jax_stream_key(key, "tau"), shape[0], cfg.training.tau_distribution),
        }
        return with_draws(with_state_draws(batch, key, context, cfg.diffusion), draws)

    return add_draws


def draw_flow_times(key: Key[Array, ""], rows: int, config: TauConfig) -> Float[Array, " b"]:
    """Return one random time in (0, 1) per row, drawn from the configured distribution."""
    distributions = {
        "uniform": lambda: jax.random.uniform(key, (rows,)),
        "beta": lambda: jax.random.beta(key, config.alpha, config.beta, (rows,)),
    }
    return distributions[config.type]()


def _flow_error(
    model: Corrector, params: PyTree, rows: Batch, corrector_inputs: CorrectorInputs, error: Float[Array, "b *s c"]
) -> Float[Array, " b"]:
    """Return for each row the mean square error of the corrector's velocity, at the drawn noise and time."""
    has_noise = 1.0 - jnp.asarray(rows.draws["bare"], jnp.float32)
    noise, tau = jnp.asarray(rows.draws["noise"]), jnp.asarray(rows.draws["tau"]) * has_noise
    noise = noise * has_noise.reshape(-1, *(1,) * (error.ndim - 1))
    time = tau.reshape(-1, *(1,) * (error.ndim - 1))
    pred = velocity(model, params, (1 - time) * noise + time * error, tau, corrector_inputs)
    return jnp.square(pred - (error - noise)).mean(tuple(range(1, error.ndim)))


def _regression_error(
    model: Corrector, params: PyTree, rows: Batch, corrector_inputs: CorrectorInputs, error: Float[Array, "b *s c"]
) -> Float[Array, " b"]:
    """Return for each row the mean square difference of the corrector's estimate of the mean error from the true error.

    The estimate is the velocity at zero noise and time 0.
    """
    pred = velocity(model, params, jnp.zeros_like(error), jnp.zeros(len(error)), corrector_inputs)
    return jnp.square(pred - error).mean(tuple(range(1, error.ndim)))


# (parameters of the predictor, batch with state draws) -> (inputs of the corrector, error of the predictor, normalised)
PredictorError = Callable[[Any, Batch], tuple[CorrectorInputs, Float[Array, "b *s c"]]]


def predictor_error_function(predictor: Simulator | SteadySimulator, config: DiffusionConfig) -> PredictorError:
    """Return the function that computes a predictor's error, truth - prediction, without gradients.

    Args:
        predictor: Predictor of a time step or of a steady solution.
        config: Input noise, and the number of steps that the predictor makes before the step whose error is computed.

    Returns:
        (parameters of the predictor, batch) -> (inputs of the corrector, normalised error).
    """
    factory: Callable[[Any, DiffusionConfig], PredictorError] = (
        _step_error if isinstance(predictor, Simulator) else _solution_error
    )
    compute_inputs_and_error = factory(predictor, config)

    def without_gradient(params: PyTree, batch: Batch) -> tuple[CorrectorInputs, Float[Array, "b *s c"]]:
        return jax.lax.stop_gradient(compute_inputs_and_error(jax.lax.stop_gradient(params), batch))

    return without_gradient


def with_state_draws(batch: Batch, key: Key[Array, ""], context: int, config: DiffusionConfig) -> Batch:
    """Return the batch with the random draws that change the predictor's input frames; existing draws are kept.

    - `num_true_steps` (with `model_rollout_steps`): for each row, the number of first rollout steps that take the true
      frame, uniform in 0..`model_rollout_steps`.
    - `state_noise` (with `input_noise`): white noise on the input frames.

    Args:
        context: Number of input frames of the predictor.
        config: Input noise and number of rollout steps.
    """
    frames = batch.fields[:, :context]
    draws: dict[str, Array] = {}
    if config.model_rollout_steps > 0:
        draws["num_true_steps"] = jax.random.randint(
            jax_stream_key(key, "given"), frames.shape[:1], 0, config.model_rollout_steps + 1
        )
    if config.input_noise > 0:
        draws["state_noise"] = jax.random.normal(jax_stream_key(key, "state"), frames.shape)
    return with_draws(batch, draws)


def _step_error(predictor: Simulator, config: DiffusionConfig) -> PredictorError:
    """Return the error function of a time step, which follows `model_rollout_steps` other steps of the predictor."""
    task = predictor.task

    def compute_inputs_and_error(params: PyTree, batch: Batch) -> tuple[CorrectorInputs, Float[Array, "b *s c"]]:
        fields, cond = normalize(jnp.asarray(batch.fields), task.statistics), conditions_of(batch)
        window, later = fields[:, : predictor.context], jnp.moveaxis(fields[:, predictor.context :], 1, 0)
        if config.input_noise > 0:
            window = window + config.input_noise * jnp.asarray(batch.draws["state_noise"])
        if config.model_rollout_steps > 0:
            truth, num_true_steps = later[: config.model_rollout_steps], jnp.asarray(batch.draws["num_true_steps"])
            window = push_forward(
                lambda params, w: step(predictor, params, w, cond), params, window, truth, num_true_steps
            )
        pred = step(predictor, params, window, cond)
        return step_inputs(task, window, pred, cond), later[config.model_rollout_steps] - pred

    return compute_inputs_and_error


def _solution_error(predictor: SteadySimulator, config: DiffusionConfig) -> PredictorError:
    """Return the error function of a steady solution."""
    task = predictor.task

    def compute_inputs_and_error(params: PyTree, batch: Batch) -> tuple[CorrectorInputs, Float[Array, "b *s c"]]:
        inputs = normalize_inputs(jnp.asarray(batch.inputs), task.inputs)
        cond = conditions_of(batch)
        pred = steady_field(predictor, params, inputs, cond)
        return solution_inputs(inputs, pred, cond), normalize(jnp.asarray(batch.fields)[:, 0], task.statistics) - pred

    return compute_inputs_and_error
