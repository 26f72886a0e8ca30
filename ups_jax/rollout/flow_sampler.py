"""Samplers of the corrector, pure: from noise to an error of the predictor, in normalised fields.

Time runs from 0, noise, to 1, data; what is left of the noise at time t is 1 - t.
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
from ups_jax.rollout.correction import Corrector as Correct

# (model, weights, key, given) -> an error, normalised: `sample`, `sample_distilled`, or either with its steps bound.
Sampler = Callable[[Corrector, CorrectorWeights, Key[Array, ""], CorrectorInputs], Float[Array, "b *s c"]]
Velocity = Callable[[Float[Array, "b *s c"], Float[Array, " b"]], Float[Array, "b *s c"]]


def flow_times(steps: int, min_noise: float) -> np.ndarray:
    """The `steps + 1` times of a sampler: noise 1, down geometrically to `min_noise`, and 0.

    Small scales of an error are small: they are found when the noise has come down to their size (Lippe et al. 2023,
    PDE-Refiner, whose levels are geometric too).
    """
    noise = np.append(np.geomspace(1.0, min_noise, steps), 0.0) if steps > 1 else np.array([1.0, 0.0])
    return 1.0 - noise


def draw_noise(key: Key[Array, ""], shape: tuple[int, ...], task: Task) -> Float[Array, "b *s c"]:
    """White noise of variance 1, without a mean over space in the conserved channels."""
    return remove_mean(jax.random.normal(key, shape), task.conserved)


def advance(
    move: Velocity, x: Float[Array, "b *s c"], start: Float[Array, " b"], end: Float[Array, " b"], sampler: str
) -> Float[Array, "b *s c"]:
    """One step of the flow from time `start` to `end`, one of each a row: Euler's or Heun's."""
    return {"euler": _euler, "heun": _heun}[sampler](move, x, start, end)


def sample(
    model: Corrector, weights: CorrectorWeights, key: Key[Array, ""], given: CorrectorInputs, steps: int | None = None
) -> Float[Array, "b *s c"]:
    """An error of the predictor, in `steps` steps of the flow (`diffusion.num_steps` by default).

    With the objective `regression` it is the mean error, whatever the key.
    """
    config = model.diffusion
    if config.objective == "regression":
        return _mean_error(model, weights, given)
    return _sample_flow(model, weights, key, given, config.num_steps if steps is None else steps)


def expected(
    model: Corrector, weights: CorrectorWeights, key: Key[Array, ""], given: CorrectorInputs
) -> Float[Array, "b *s c"]:
    """The error that is expected, whatever the key; one evaluation of the network, with either objective.

    At time 0 the state x is noise alone, which tells nothing of the error r: v(x, 0) = E[r] - x, and from the mean of
    the noise, x = 0, the velocity is the mean error. A consistency function says where the flow from x = 0 ends, which
    is another error: a distilled corrector leaves the answer to its teacher, `weights.teacher`, at the same cost.
    """
    return _mean_error(model, weights, given)


def sample_distilled(
    model: Corrector, weights: CorrectorWeights, key: Key[Array, ""], given: CorrectorInputs, steps: int = 1
) -> Float[Array, "b *s c"]:
    """The same by a consistency function, in one step; each further one adds noise again and takes it out.

    With `steps` = 2 the noise of the second is that of the middle of the teacher's times (Song et al. 2023, algorithm
    1).
    """
    times = flow_times(model.diffusion.num_steps, model.diffusion.min_noise)
    again = np.linspace(0, model.diffusion.num_steps, steps + 1)[1:-1].round().astype(int)
    x = _noise(model, key, given)
    error = consistency(model, weights.params, x, _rows(0.0, x), given)
    for number, time in zip(range(1, steps), times[again].tolist(), strict=True):
        x = (1 - time) * _noise(model, jax.random.fold_in(key, number), given) + time * error
        error = consistency(model, weights.params, x, _rows(time, x), given)
    return error * _last(weights.scale, error)


def consistency(
    model: Corrector, params: Any, x: Float[Array, "b *s c"], time: Float[Array, " b"], given: CorrectorInputs
) -> Float[Array, "b *s c"]:
    """f(x, t) = x + (1 - t) v(x, t): where the flow through x at t ends. At t = 1 it is x itself, whatever the
    parameters, and with the corrector's own it is one step of Euler's: where a distillation begins.
    """
    return x + (1 - _columns(time, x)) * velocity(model, params, x, time, given)


def expected_error(
    model: Corrector,
    weights: CorrectorWeights,
    window: Float[Array, "b k *s c"],
    pred: Float[Array, "b *s c"],
    cond: Conditions,
) -> Float[Array, " b"]:
    """Root mean square over space and channels of the error that is `expected` of each prediction, normalised."""
    mean = _mean_error(model, weights, step_inputs(model.task, window, pred, cond))
    return jnp.sqrt(jnp.mean(jnp.square(mean), tuple(range(1, mean.ndim))))


def corrected(model: Corrector, weights: CorrectorWeights, sampler: Sampler = sample) -> Correct:
    """The correction of a time step as a function of key, window, prediction and conditions."""

    def correct(
        key: Key[Array, ""], window: Float[Array, "b k *s c"], pred: Float[Array, "b *s c"], cond: Conditions
    ) -> Float[Array, "b *s c"]:
        return pred + sampler(model, weights, key, step_inputs(model.task, window, pred, cond))

    return correct


def solution_corrector(
    model: Corrector, weights: CorrectorWeights, sampler: Sampler = sample
) -> Callable[[Key[Array, ""], Float[Array, "b *s i"], Float[Array, "b *s c"], Conditions], Float[Array, "b *s c"]]:
    """The correction of a steady solution as a function of key, given fields, solution and conditions."""

    def correct(
        key: Key[Array, ""], inputs: Float[Array, "b *s i"], pred: Float[Array, "b *s c"], cond: Conditions
    ) -> Float[Array, "b *s c"]:
        return pred + sampler(model, weights, key, solution_inputs(inputs, pred, cond))

    return correct


def _sample_flow(
    model: Corrector, weights: CorrectorWeights, key: Key[Array, ""], given: CorrectorInputs, steps: int
) -> Float[Array, "b *s c"]:
    x = _noise(model, key, given)
    times = jnp.asarray(flow_times(steps, model.diffusion.min_noise), jnp.float32)

    def move(x: Float[Array, "b *s c"], time: Float[Array, " b"]) -> Float[Array, "b *s c"]:
        return velocity(model, weights.params, x, time, given)

    def one(x: Float[Array, "b *s c"], ends: Float[Array, "2"]) -> tuple[Array, None]:
        return advance(move, x, _rows(ends[0], x), _rows(ends[1], x), model.diffusion.sampler), None

    x, _ = jax.lax.scan(one, x, jnp.stack([times[:-1], times[1:]], axis=-1))
    return x * _last(weights.scale, x)


def _mean_error(model: Corrector, weights: CorrectorWeights, given: CorrectorInputs) -> Float[Array, "b *s c"]:
    x = jnp.zeros((*given.fields.shape[:-1], len(model.task.channels)))
    params = weights.params if weights.teacher is None else weights.teacher
    return velocity(model, params, x, _rows(0.0, x), given) * _last(weights.scale, x)


def _euler(
    move: Velocity, x: Float[Array, "b *s c"], start: Float[Array, " b"], end: Float[Array, " b"]
) -> Float[Array, "b *s c"]:
    return x + _columns(end - start, x) * move(x, start)


def _heun(
    move: Velocity, x: Float[Array, "b *s c"], start: Float[Array, " b"], end: Float[Array, " b"]
) -> Float[Array, "b *s c"]:
    first = move(x, start)
    second = move(x + _columns(end - start, x) * first, end)
    return x + _columns(end - start, x) * (first + second) / 2


def _noise(model: Corrector, key: Key[Array, ""], given: CorrectorInputs) -> Float[Array, "b *s c"]:
    return draw_noise(key, (*given.fields.shape[:-1], len(model.task.channels)), model.task)


def _rows(time: Any, x: Float[Array, "b *s c"]) -> Float[Array, " b"]:
    return jnp.full(len(x), time, jnp.float32)


def _columns(values: Float[Array, " b"], x: Float[Array, "b *s c"]) -> Float[Array, "b *ones"]:
    return values.reshape(-1, *(1,) * (x.ndim - 1))


def _last(scale: Float[Array, " c"], x: Float[Array, "b *s c"]) -> Float[Array, "*ones c"]:
    return scale.reshape((1,) * (x.ndim - 1) + (-1,))
