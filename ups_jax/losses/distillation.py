"""The distillation loss, which trains a consistency function to replace the corrector's multi-step sampler."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key, PyTree

from ups_jax.config import Config
from ups_jax.core.rng import jax_stream_key
from ups_jax.core.stage_names import STAGE_NEEDS
from ups_jax.losses.diffusion import flow_draws, predictor_error_function
from ups_jax.losses.step_context import Draw, StageLoss, StepContext, Terms
from ups_jax.models import Batch, Simulator, SteadySimulator, with_draws
from ups_jax.models.corrector import Corrector, velocity
from ups_jax.rollout.flow_sampler import consistency_function, flow_step, flow_times

# (x, start times, end times) -> x after one step of the teacher's sampler.
TeacherStep = Callable[[Any, Any, Any], Array]
# (x, times) -> value of a consistency function.
Consistency = Callable[[Array, Any], Array]
# (levels) -> the states x at these time levels, and the targets of the consistency function there.
StatesAndTargets = Callable[[Any], tuple[Array, Array]]


def distillation_losses(model: Corrector, predictor: Simulator | SteadySimulator, cfg: Config) -> StageLoss:
    """Return the distillation loss: the mean square of f(x_n, t_n) - target_n for a consistency function f.

    The t_n are the times of the teacher's sampler, so that f learns to reproduce this sampler and not the exact
    solution of the flow. Each row is trained at several indices n, called levels. `stages.consistency_distill.aim`
    selects the states x_n and the targets:

    - `teacher`: x_n lies on the path of the teacher's sampler from noise; the target is the end of that path. The first
      level is n = 0, at which one-step sampling starts; the others are random.
    - `average`: x_n is the true error mixed with noise, and x_{n+1} results from it by a step of the teacher's sampler.
      The target is f_avg(x_{n+1}, t_{n+1}), where f_avg has the average of the student's parameters
      (`StepContext.target`). An error of f at one time is passed on to all earlier times.

    At t = 1, f is the identity for all parameters. The number of levels per row is given for each epoch by
    `tau_schedule` or, without it, by `training.distill_num_taus`. The mean error (`sampling.expected`) is not
    distilled: the teacher still predicts it.

    Args:
        model: Student, a corrector.
        predictor: Predictor; its parameters and those of the teacher are in `StepContext.parents`.

    Returns:
        (params, batch, key, context) -> (loss, terms by name).

    References:
        Luhman & Luhman 2021 (`teacher`, here at all times of the path); Song et al. 2023, algorithm 2 (`average`).
    """
    predictor_stage, teacher_stage = STAGE_NEEDS[model.task.kind]["consistency_distill"]
    compute_inputs_and_error, draw = (
        predictor_error_function(predictor, cfg.diffusion),
        distillation_draws(model, predictor, cfg),
    )
    times = jnp.asarray(flow_times(cfg.diffusion.num_steps, cfg.diffusion.min_noise), jnp.float32)
    schedule = level_count_schedule(cfg)
    make_targets = {"teacher": _teacher_targets, "average": _average_targets}[cfg.stages.consistency_distill.aim]

    def loss(params: PyTree, batch: Batch, key: Key[Array, ""], context: StepContext) -> tuple[Float[Array, ""], Terms]:
        rows = draw(batch, key)
        corrector_inputs, error = compute_inputs_and_error(context.parents[predictor_stage], rows)
        error = error / context.error_scale.reshape((1,) * (error.ndim - 1) + (-1,))
        noise, teacher_params = jnp.asarray(rows.draws["noise"]), context.parents[teacher_stage].params
        count = level_count_at(schedule, context.epoch)

        def teacher_step(x: Array, start: Float[Array, " b"], end: Float[Array, " b"]) -> Array:
            def teacher_velocity(y: Array, t: Float[Array, " b"]) -> Array:
                return velocity(model, teacher_params, y, t, corrector_inputs)

            return flow_step(teacher_velocity, x, start, end, cfg.diffusion.sampler)

        def average_consistency(x: Array, time: Float[Array, " b"]) -> Array:
            return consistency_function(model, context.target, x, time, corrector_inputs)

        states_and_targets = make_targets(noise, error, times, teacher_step, average_consistency)

        def error_at_levels(levels: Int[Array, " b"]) -> Float[Array, " b"]:
            x, target = states_and_targets(levels)
            pred = consistency_function(model, params, x, times[levels], corrector_inputs)
            squares = jnp.square(pred - jax.lax.stop_gradient(target))
            return squares.mean(tuple(range(1, squares.ndim)))

        def add_level(total: Float[Array, " b"], numbered_levels: tuple[Array, Array]) -> tuple[Array, None]:
            number, levels = numbered_levels
            # Levels beyond the epoch's count are not computed.
            level_error = jax.lax.cond(number < count, error_at_levels, lambda _: jnp.zeros_like(total), levels)
            return total + level_error, None

        levels = jnp.asarray(rows.draws["levels"]).T
        squares, _ = jax.lax.scan(add_level, jnp.zeros(len(error)), (jnp.arange(len(levels)), levels))
        mask = jnp.asarray(batch.mask)
        mean = jnp.sum(squares / count * mask) / jnp.maximum(mask.sum(), 1.0)
        return mean, {"consistency": mean}

    return loss


def distillation_draws(model: Corrector, predictor: Simulator | SteadySimulator, cfg: Config) -> Draw:
    """Return the function that adds the random draws of `distillation_losses` to a batch; existing draws are kept.

    The function adds the draws of `flow_draws`, and `levels`: for each row, indices of the sampler's times at which the
    student is trained. With the aim `teacher` the first index is 0.
    """
    flow, max_levels = flow_draws(model, predictor, cfg), max(level_count_schedule(cfg))

    def add_draws(batch: Batch, key: Key[Array, ""]) -> Batch:
        shape = (batch.fields.shape[0], max_levels)
        levels = jax.random.randint(jax_stream_key(key, "levels"), shape, 0, cfg.diffusion.num_steps)
        if cfg.stages.consistency_distill.aim == "teacher":
            levels = levels.at[:, 0].set(0)
        return with_draws(flow(batch, key), {"levels": levels})

    return add_draws


def _teacher_targets(
    noise: Array, error: Array, times: Float[Array, " n"], teacher_step: TeacherStep, average_consistency: Consistency
) -> StatesAndTargets:
    """Return the function levels -> (states on the teacher's path from noise, end of this path as target)."""
    path = _teacher_path(teacher_step, noise, times)
    return lambda levels: (path[levels, jnp.arange(len(levels))], path[-1])


def _average_targets(
    noise: Array, error: Array, times: Float[Array, " n"], teacher_step: TeacherStep, average_consistency: Consistency
) -> StatesAndTargets:
    """Return the function levels -> (mixtures of error and noise, output of the average student as target)."""

    def states_and_targets(levels: Int[Array, " b"]) -> tuple[Array, Array]:
        start, end = times[levels], times[levels + 1]
        time = start.reshape(-1, *(1,) * (error.ndim - 1))
        x = (1 - time) * noise + time * error
        return x, average_consistency(teacher_step(x, start, end), end)

    return states_and_targets


def _teacher_path(teacher_step: TeacherStep, noise: Float[Array, "b *s c"], times: Float[Array, " n"]) -> Array:
    """Return all states of the teacher's sampler, from noise to the sample, stacked on a new first axis."""
    rows = len(noise)

    def step(x: Array, ends: Float[Array, "2"]) -> tuple[Array, Array]:
        x = teacher_step(x, jnp.full(rows, ends[0]), jnp.full(rows, ends[1]))
        return x, x

    states = jax.lax.scan(step, noise, jnp.stack([times[:-1], times[1:]], axis=-1))[1]
    return jax.lax.stop_gradient(jnp.concatenate([noise[None], states]))


def level_count_schedule(cfg: Config) -> tuple[int, ...]:
    """Return the number of levels per row in each epoch; the last entry holds for all later epochs."""
    return cfg.stages.consistency_distill.tau_schedule or (cfg.training.distill_num_taus,)


def level_count_at(schedule: tuple[int, ...], epoch: Float[Array, ""] | None) -> Int[Array, ""]:
    """Return the number of levels (indices of the sampler's times) at which each row is trained in an epoch.

    Args:
        schedule: Number of levels in each epoch, as from `level_count_schedule`.
        epoch: Epochs completed, with the fraction of the current one; may be None if the schedule has one entry.

    Raises:
        ValueError: If `epoch` is None and the schedule has several entries.
    """
    if epoch is None:
        if len(schedule) > 1:
            raise ValueError(
                "stages.consistency_distill.tau_schedule: depends on the epoch; set `epoch` of StepContext"
            )
        return jnp.asarray(schedule[0])
    return jnp.asarray(schedule)[jnp.minimum(jnp.floor(epoch).astype(jnp.int32), len(schedule) - 1)]
