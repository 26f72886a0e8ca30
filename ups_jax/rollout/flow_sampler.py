"""Samplers of a corrector: they draw errors (truth minus prediction) of the predictor, as normalised fields.

The flow's time t runs from 0 (noise) to 1 (error); the noise level at time t is 1 - t.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from ups_jax.core.task import Task
from ups_jax.models import Conditions
from ups_jax.models.corrector import (
    Corrector,
    CorrectorInputs,
    CorrectorWeights,
    solution_inputs,
    step_inputs,
    velocity,
)
from ups_jax.models.grid import remove_mean
from ups_jax.rollout.correction import StepCorrector

# (model, weights, key, inputs) -> normalised error: `sample_error`, `sample_distilled` or `mean_error`.
Sampler = Callable[[Corrector, CorrectorWeights, Key[Array, ""], CorrectorInputs], Float[Array, "b *s c"]]
# (x, time) -> velocity of the flow.
Velocity = Callable[[Float[Array, "b *s c"], Float[Array, " b"]], Float[Array, "b *s c"]]


def flow_times(steps: int, min_noise: float) -> np.ndarray:
    """Return the `steps + 1` times between which a sampler takes `steps` steps, from 0 to 1.

    The noise level falls geometrically from 1 to `min_noise`, then to 0: the small scales of an error have small
    amplitudes, and are resolved once the noise has fallen to their size.

    References:
        Lippe et al. 2023 (PDE-Refiner), whose noise levels are geometric too.
    """
    noise = np.append(np.geomspace(1.0, min_noise, steps), 0.0) if steps > 1 else np.array([1.0, 0.0])
    return 1.0 - noise


def draw_noise(key: Key[Array, ""], shape: tuple[int, ...], task: Task) -> Float[Array, "b *s c"]:
    """Return white noise of variance 1, with zero spatial mean in the conserved channels of the task."""
    return remove_mean(jax.random.normal(key, shape), task.conserved)


def flow_step(
    velocity_fn: Velocity, x: Float[Array, "b *s c"], start: Float[Array, " b"], end: Float[Array, " b"], sampler: str
) -> Float[Array, "b *s c"]:
    """Return the state of the flow after one step from time `start` to time `end`.

    Args:
        velocity_fn: Velocity of the flow as a function of state and time.
        x: State at time `start`.
        start: Time before the step, for each sample.
        end: Time after the step, for each sample.
        sampler: `euler` or `heun`.
    """
    return {"euler": _euler_step, "heun": _heun_step}[sampler](velocity_fn, x, start, end)


def sample_error(
    model: Corrector, weights: CorrectorWeights, key: Key[Array, ""], inputs: CorrectorInputs, steps: int | None = None
) -> Float[Array, "b *s c"]:
    """Return a sampled error of the predictor, or its mean error if the objective is `regression`.

    Args:
        key: Key of the initial noise.
        inputs: Inputs and prediction of the predictor, on which the error is conditioned.
        steps: Number of steps of the flow, `diffusion.num_steps` by default.
    """
    config = model.diffusion
    if config.objective == "regression":
        return _mean_error(model, weights, inputs)
    return _sample_flow(model, weights, key, inputs, config.num_steps if steps is None else steps)


def mean_error(
    model: Corrector, weights: CorrectorWeights, key: Key[Array, ""], inputs: CorrectorInputs
) -> Float[Array, "b *s c"]:
    """Return the mean error of the predictor, from a single evaluation of the network.

    At time 0 the state x is noise, which is independent of the error r: the velocity is v(x, 0) = E[r] - x, so that
    the mean error is v(0, 0). A distilled corrector, which is a consistency function, evaluates its teacher instead
    (`weights.teacher`).

    Args:
        key: Unused, but part of the signature of a `Sampler`.
        inputs: Inputs and prediction of the predictor, on which the error is conditioned.
    """
    return _mean_error(model, weights, inputs)


def sample_distilled(
    model: Corrector, weights: CorrectorWeights, key: Key[Array, ""], inputs: CorrectorInputs, steps: int = 1
) -> Float[Array, "b *s c"]:
    """Return a sampled error of the predictor, from a few evaluations of a consistency function.

    Args:
        key: Key of the noise.
        inputs: Inputs and prediction of the predictor, on which the error is conditioned.
        steps: Number of evaluations. Each one after the first adds noise again and removes it. They start at evenly
            spaced positions in the teacher's list of times, so that the second of two starts in the middle.

    References:
        Song et al. 2023 (consistency models), algorithm 1.
    """
    times = flow_times(model.diffusion.num_steps, model.diffusion.min_noise)
    indices = np.linspace(0, model.diffusion.num_steps, steps + 1)[1:-1].round().astype(int)
    x = _noise(model, key, inputs)
    error = consistency_function(model, weights.params, x, _repeat_time(0.0, x), inputs)
    for number, time in zip(range(1, steps), times[indices].tolist(), strict=True):
        x = (1 - time) * _noise(model, jax.random.fold_in(key, number), inputs) + time * error
        error = consistency_function(model, weights.params, x, _repeat_time(time, x), inputs)
    return error * _expand_channels(weights.scale, error)


def consistency_function(
    model: Corrector, params: Any, x: Float[Array, "b *s c"], time: Float[Array, " b"], inputs: CorrectorInputs
) -> Float[Array, "b *s c"]:
    """Return f(x, t) = x + (1 - t) v(x, t), which estimates where the flow through x at time t ends at time 1.

    f(x, 1) = x for any parameters. With the teacher's parameters, from which distillation starts, f is one Euler step.

    Args:
        params: Parameters of the velocity v.
        x: State of the flow.
        time: Time t of each sample.
        inputs: Inputs and prediction of the predictor, on which the error is conditioned.
    """
    return x + (1 - _expand_samples(time, x)) * velocity(model, params, x, time, inputs)


def mean_error_rms(
    model: Corrector,
    weights: CorrectorWeights,
    window: Float[Array, "b k *s c"],
    pred: Float[Array, "b *s c"],
    cond: Conditions,
) -> Float[Array, " b"]:
    """Return the root mean square of the predicted mean error, over space and channels, for each sample.

    Args:
        window: Normalised frames before the step.
        pred: Normalised prediction of the operator.
    """
    mean = _mean_error(model, weights, step_inputs(model.task, window, pred, cond))
    return jnp.sqrt(jnp.mean(jnp.square(mean), tuple(range(1, mean.ndim))))


def step_corrector(model: Corrector, weights: CorrectorWeights, sampler: Sampler = sample_error) -> StepCorrector:
    """Return the function (key, window, prediction, conditions) -> prediction plus an error from `sampler`."""

    def correct(
        key: Key[Array, ""], window: Float[Array, "b k *s c"], pred: Float[Array, "b *s c"], cond: Conditions
    ) -> Float[Array, "b *s c"]:
        return pred + sampler(model, weights, key, step_inputs(model.task, window, pred, cond))

    return correct


def solution_corrector(
    model: Corrector, weights: CorrectorWeights, sampler: Sampler = sample_error
) -> Callable[[Key[Array, ""], Float[Array, "b *s i"], Float[Array, "b *s c"], Conditions], Float[Array, "b *s c"]]:
    """Return the function (key, input fields, solution, conditions) -> solution plus an error from `sampler`."""

    def correct(
        key: Key[Array, ""], inputs: Float[Array, "b *s i"], pred: Float[Array, "b *s c"], cond: Conditions
    ) -> Float[Array, "b *s c"]:
        return pred + sampler(model, weights, key, solution_inputs(inputs, pred, cond))

    return correct


def _sample_flow(
    model: Corrector, weights: CorrectorWeights, key: Key[Array, ""], inputs: CorrectorInputs, steps: int
) -> Float[Array, "b *s c"]:
    """Return a sampled error in normalised fields: the end of the flow from random noise, times the scale."""
    x = _noise(model, key, inputs)
    times = jnp.asarray(flow_times(steps, model.diffusion.min_noise), jnp.float32)

    def velocity_fn(x: Float[Array, "b *s c"], time: Float[Array, " b"]) -> Float[Array, "b *s c"]:
        return velocity(model, weights.params, x, time, inputs)

    def step(x: Float[Array, "b *s c"], start_and_end: Float[Array, "2"]) -> tuple[Array, None]:
        start, end = _repeat_time(start_and_end[0], x), _repeat_time(start_and_end[1], x)
        return flow_step(velocity_fn, x, start, end, model.diffusion.sampler), None

    x, _ = jax.lax.scan(step, x, jnp.stack([times[:-1], times[1:]], axis=-1))
    return x * _expand_channels(weights.scale, x)


def _mean_error(model: Corrector, weights: CorrectorWeights, inputs: CorrectorInputs) -> Float[Array, "b *s c"]:
    """Return the mean error in normalised fields: the velocity at time 0 and x = 0, times the scale."""
    x = jnp.zeros((*inputs.fields.shape[:-1], len(model.task.channels)))
    params = weights.params if weights.teacher is None else weights.teacher
    return velocity(model, params, x, _repeat_time(0.0, x), inputs) * _expand_channels(weights.scale, x)


def _euler_step(
    velocity_fn: Velocity, x: Float[Array, "b *s c"], start: Float[Array, " b"], end: Float[Array, " b"]
) -> Float[Array, "b *s c"]:
    """Return the state after one explicit Euler step."""
    return x + _expand_samples(end - start, x) * velocity_fn(x, start)


def _heun_step(
    velocity_fn: Velocity, x: Float[Array, "b *s c"], start: Float[Array, " b"], end: Float[Array, " b"]
) -> Float[Array, "b *s c"]:
    """Return the state after one step of Heun's method (explicit trapezoidal rule)."""
    first = velocity_fn(x, start)
    second = velocity_fn(x + _expand_samples(end - start, x) * first, end)
    return x + _expand_samples(end - start, x) * (first + second) / 2


def _noise(model: Corrector, key: Key[Array, ""], inputs: CorrectorInputs) -> Float[Array, "b *s c"]:
    """Return white noise in the shape of the predicted fields."""
    return draw_noise(key, (*inputs.fields.shape[:-1], len(model.task.channels)), model.task)


def _repeat_time(time: Any, x: Float[Array, "b *s c"]) -> Float[Array, " b"]:
    """Return a vector that repeats one time for every sample of the batch x."""
    return jnp.full(len(x), time, jnp.float32)


def _expand_samples(values: Float[Array, " b"], x: Float[Array, "b *s c"]) -> Float[Array, "b *ones"]:
    """Return one value per sample, with trailing axes of size 1 to broadcast against x."""
    return values.reshape(-1, *(1,) * (x.ndim - 1))


def _expand_channels(scale: Float[Array, " c"], x: Float[Array, "b *s c"]) -> Float[Array, "*ones c"]:
    """Return one value per channel, with leading axes of size 1 to broadcast against x."""
    return scale.reshape((1,) * (x.ndim - 1) + (-1,))
