"""Samplers of the corrector: they draw errors of the predictor, as normalised fields.

The flow's time t runs from 0 (noise) to 1 (data); the noise level at time t is 1 - t.
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

# (model, weights, key, inputs) -> normalised error: `sample`, `sample_distilled` or `mean_error`.
Sampler = Callable[[Corrector, CorrectorWeights, Key[Array, ""], CorrectorInputs], Float[Array, "b *s c"]]
# (x, time) -> velocity of the flow.
Velocity = Callable[[Float[Array, "b *s c"], Float[Array, " b"]], Float[Array, "b *s c"]]


def flow_times(steps: int, min_noise: float) -> np.ndarray:
    """Return the `steps + 1` times of a sampler, from 0 to 1.

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
    """Return the state of the flow after one step.

    Args:
        velocity_fn: Velocity of the flow as a function of state and time.
        x: State at time `start`.
        start: Time before the step, for each row.
        end: Time after the step, for each row.
        sampler: `euler` or `heun`.
    """
    return {"euler": _euler, "heun": _heun}[sampler](velocity_fn, x, start, end)


def sample(
    model: Corrector, weights: CorrectorWeights, key: Key[Array, ""], inputs: CorrectorInputs, steps: int | None = None
) -> Float[Array, "b *s c"]:
    """Return a sampled error of the predictor, or its mean error if the objective is `regression`.

    Args:
        model: Corrector.
        weights: Its weights.
        key: Key of the initial noise.
        inputs: Inputs and prediction that the error is conditioned on.
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

    At time 0 the state x is noise, which is independent of the error r: the velocity is v(x, 0) = E[r] - x. At x = 0
    it is the mean error. A consistency function maps x = 0 to the end of the flow instead, so a distilled corrector
    evaluates its teacher (`weights.teacher`).

    Args:
        model: Corrector.
        weights: Its weights.
        key: Unused; the signature is that of a `Sampler`.
        inputs: Inputs and prediction that the error is conditioned on.
    """
    return _mean_error(model, weights, inputs)


def sample_distilled(
    model: Corrector, weights: CorrectorWeights, key: Key[Array, ""], inputs: CorrectorInputs, steps: int = 1
) -> Float[Array, "b *s c"]:
    """Return an error of the predictor, sampled with a consistency function.

    Args:
        model: Distilled corrector.
        weights: Its weights.
        key: Key of the noise.
        inputs: Inputs and prediction that the error is conditioned on.
        steps: Number of evaluations. Each one after the first adds noise again and removes it; the times are spread
            evenly over the teacher's, so that the second of two starts in their middle.

    References:
        Song et al. 2023 (consistency models), algorithm 1.
    """
    times = flow_times(model.diffusion.num_steps, model.diffusion.min_noise)
    indices = np.linspace(0, model.diffusion.num_steps, steps + 1)[1:-1].round().astype(int)
    x = _noise(model, key, inputs)
    error = consistency_function(model, weights.params, x, _time_per_row(0.0, x), inputs)
    for number, time in zip(range(1, steps), times[indices].tolist(), strict=True):
        x = (1 - time) * _noise(model, jax.random.fold_in(key, number), inputs) + time * error
        error = consistency_function(model, weights.params, x, _time_per_row(time, x), inputs)
    return error * _expand_channels(weights.scale, error)


def consistency_function(
    model: Corrector, params: Any, x: Float[Array, "b *s c"], time: Float[Array, " b"], inputs: CorrectorInputs
) -> Float[Array, "b *s c"]:
    """Return f(x, t) = x + (1 - t) v(x, t), which estimates the end of the flow through x at time t.

    At t = 1 it is x for any parameters. With the teacher's parameters it is a single Euler step, where distillation
    starts.

    Args:
        model: Corrector.
        params: Parameters of the velocity v.
        x: State of the flow.
        time: Time t of each row.
        inputs: Inputs and prediction that the error is conditioned on.
    """
    return x + (1 - _expand_rows(time, x)) * velocity(model, params, x, time, inputs)


def mean_error_rms(
    model: Corrector,
    weights: CorrectorWeights,
    window: Float[Array, "b k *s c"],
    pred: Float[Array, "b *s c"],
    cond: Conditions,
) -> Float[Array, " b"]:
    """Return the root mean square of the predicted mean error, over space and channels, for each sample.

    Args:
        model: Corrector.
        weights: Its weights.
        window: Normalised frames before the step.
        pred: Normalised prediction of the operator.
        cond: Conditions of the samples.
    """
    mean = _mean_error(model, weights, step_inputs(model.task, window, pred, cond))
    return jnp.sqrt(jnp.mean(jnp.square(mean), tuple(range(1, mean.ndim))))


def step_corrector(model: Corrector, weights: CorrectorWeights, sampler: Sampler = sample) -> StepCorrector:
    """Return the function (key, window, prediction, conditions) -> prediction plus a sampled error."""

    def correct(
        key: Key[Array, ""], window: Float[Array, "b k *s c"], pred: Float[Array, "b *s c"], cond: Conditions
    ) -> Float[Array, "b *s c"]:
        return pred + sampler(model, weights, key, step_inputs(model.task, window, pred, cond))

    return correct


def solution_corrector(
    model: Corrector, weights: CorrectorWeights, sampler: Sampler = sample
) -> Callable[[Key[Array, ""], Float[Array, "b *s i"], Float[Array, "b *s c"], Conditions], Float[Array, "b *s c"]]:
    """Return the function (key, input fields, solution, conditions) -> solution plus a sampled error."""

    def correct(
        key: Key[Array, ""], inputs: Float[Array, "b *s i"], pred: Float[Array, "b *s c"], cond: Conditions
    ) -> Float[Array, "b *s c"]:
        return pred + sampler(model, weights, key, solution_inputs(inputs, pred, cond))

    return correct


def _sample_flow(
    model: Corrector, weights: CorrectorWeights, key: Key[Array, ""], inputs: CorrectorInputs, steps: int
) -> Float[Array, "b *s c"]:
    """Return the end of the flow from random noise, as an error in normalised fields."""
    x = _noise(model, key, inputs)
    times = jnp.asarray(flow_times(steps, model.diffusion.min_noise), jnp.float32)

    def velocity_fn(x: Float[Array, "b *s c"], time: Float[Array, " b"]) -> Float[Array, "b *s c"]:
        return velocity(model, weights.params, x, time, inputs)

    def step(x: Float[Array, "b *s c"], ends: Float[Array, "2"]) -> tuple[Array, None]:
        return flow_step(
            velocity_fn, x, _time_per_row(ends[0], x), _time_per_row(ends[1], x), model.diffusion.sampler
        ), None

    x, _ = jax.lax.scan(step, x, jnp.stack([times[:-1], times[1:]], axis=-1))
    return x * _expand_channels(weights.scale, x)


def _mean_error(model: Corrector, weights: CorrectorWeights, inputs: CorrectorInputs) -> Float[Array, "b *s c"]:
    """Return the velocity at time 0 and x = 0, times the scale: the mean error in normalised fields."""
    x = jnp.zeros((*inputs.fields.shape[:-1], len(model.task.channels)))
    params = weights.params if weights.teacher is None else weights.teacher
    return velocity(model, params, x, _time_per_row(0.0, x), inputs) * _expand_channels(weights.scale, x)


def _euler(
    velocity_fn: Velocity, x: Float[Array, "b *s c"], start: Float[Array, " b"], end: Float[Array, " b"]
) -> Float[Array, "b *s c"]:
    """Return the state after one explicit Euler step."""
    return x + _expand_rows(end - start, x) * velocity_fn(x, start)


def _heun(
    velocity_fn: Velocity, x: Float[Array, "b *s c"], start: Float[Array, " b"], end: Float[Array, " b"]
) -> Float[Array, "b *s c"]:
    """Return the state after one step of Heun's method (explicit trapezoidal rule)."""
    first = velocity_fn(x, start)
    second = velocity_fn(x + _expand_rows(end - start, x) * first, end)
    return x + _expand_rows(end - start, x) * (first + second) / 2


def _noise(model: Corrector, key: Key[Array, ""], inputs: CorrectorInputs) -> Float[Array, "b *s c"]:
    """Return white noise of the shape of the predicted fields."""
    return draw_noise(key, (*inputs.fields.shape[:-1], len(model.task.channels)), model.task)


def _time_per_row(time: Any, x: Float[Array, "b *s c"]) -> Float[Array, " b"]:
    """Return a time as a vector with an entry per row of x."""
    return jnp.full(len(x), time, jnp.float32)


def _expand_rows(values: Float[Array, " b"], x: Float[Array, "b *s c"]) -> Float[Array, "b *ones"]:
    """Return values per row with trailing axes of size 1, to broadcast against x."""
    return values.reshape(-1, *(1,) * (x.ndim - 1))


def _expand_channels(scale: Float[Array, " c"], x: Float[Array, "b *s c"]) -> Float[Array, "*ones c"]:
    """Return values per channel with leading axes of size 1, to broadcast against x."""
    return scale.reshape((1,) * (x.ndim - 1) + (-1,))
