"""The loss of the distillation: the corrector's sampler of many steps as one consistency function."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key, PyTree

from ups_jax.config import Config
from ups_jax.core.rng import stream
from ups_jax.core.stage_names import STAGE_NEEDS
from ups_jax.losses.diffusion import flow_draws, predictor_residual
from ups_jax.losses.step_context import Draw, StageLoss, StepContext, Terms
from ups_jax.models import Batch, Simulator, SteadySimulator, with_draws
from ups_jax.models.corrector import Corrector, velocity
from ups_jax.rollout.flow_sampler import advance, consistency, flow_times

# (x, from, to) -> x moved on by the teacher's step, and (levels) -> x_n of each row and what f should be there.
Onward = Callable[[Any, Any, Any], Array]
Pair = Callable[[Any], tuple[Array, Array]]


def distillation_losses(model: Corrector, base: Simulator | SteadySimulator, cfg: Config) -> StageLoss:
    """(params, batch, key, context) -> (loss, terms): mean square of f(x_n, t_n) less what
    it should be, at the times of the teacher's sampler: the fixed point is that sampler, not an ODE solved better.

    With the aim `teacher`, x_n lies on the path of the teacher's sampler from noise, and f should be where that ends
    (Luhman & Luhman 2021, at all times of the path): at n = 0, which one step asks for, and at times that are drawn.
    With `average` it should be f_target(x_{n+1}, t_{n+1}), where the teacher's step leads from x_n, the true error with
    noise, to x_{n+1} and `context.target` is the average of the student so far (consistency distillation, Song et al.
    2023, algorithm 2); what f misses at one time is handed on to all before it. At t = 1 every f is the identity. Each
    row is compared at so many of the times as the epoch's entry of `tau_schedule` says, or at
    `training.distill_num_taus`. What its teacher expects, `sampling.expected`, is not the student's to learn.
    """
    predictor, corrector = STAGE_NEEDS[model.task.kind]["consistency_distill"]
    residual, draw = predictor_residual(base, cfg.diffusion), distillation_draws(model, base, cfg)
    times = jnp.asarray(flow_times(cfg.diffusion.num_steps, cfg.diffusion.min_noise), jnp.float32)
    schedule, aimed = level_counts(cfg), {"teacher": _at_teacher, "average": _at_average}[_aim(cfg)]

    def bundle(
        params: PyTree, batch: Batch, key: Key[Array, ""], context: StepContext
    ) -> tuple[Float[Array, ""], Terms]:
        rows = draw(batch, key)
        given, error = residual(context.parents[predictor], rows)
        error = error / context.error_scale.reshape((1,) * (error.ndim - 1) + (-1,))
        noise, teacher = jnp.asarray(rows.draws["noise"]), context.parents[corrector].params
        count = level_count_at(schedule, context.epoch)

        def onward(x: Array, now: Float[Array, " b"], later: Float[Array, " b"]) -> Array:
            return advance(lambda y, t: velocity(model, teacher, y, t, given), x, now, later, cfg.diffusion.sampler)

        def averaged(x: Array, time: Float[Array, " b"]) -> Array:
            return consistency(model, context.target, x, time, given)

        pair = aimed(noise, error, times, onward, averaged)

        def apart(levels: Int[Array, " b"]) -> Float[Array, " b"]:
            x, aim = pair(levels)
            squares = jnp.square(consistency(model, params, x, times[levels], given) - jax.lax.stop_gradient(aim))
            return squares.mean(tuple(range(1, squares.ndim)))

        def add(total: Float[Array, " b"], numbered: tuple[Array, Array]) -> tuple[Array, None]:
            number, levels = numbered
            # What the epoch does not ask for is not computed.
            return total + jax.lax.cond(number < count, apart, lambda rows: jnp.zeros(rows.shape), levels), None

        levels = jnp.asarray(rows.draws["levels"]).T
        squares, _ = jax.lax.scan(add, jnp.zeros(len(error)), (jnp.arange(len(levels)), levels))
        mask = jnp.asarray(batch.mask)
        loss = jnp.sum(squares / count * mask) / jnp.maximum(mask.sum(), 1.0)
        return loss, {"consistency": loss}

    return bundle


def distillation_draws(model: Corrector, base: Simulator | SteadySimulator, cfg: Config) -> Draw:
    """`draw_flow`, and the numbers of the teacher's steps that each row is compared at, `levels`; the first is 0 with
    the aim `teacher`."""
    flow, most = flow_draws(model, base, cfg), max(level_counts(cfg))

    def draw(batch: Batch, key: Key[Array, ""]) -> Batch:
        shape = (batch.fields.shape[0], most)
        levels = jax.random.randint(stream(key, "levels"), shape, 0, cfg.diffusion.num_steps)
        if _aim(cfg) == "teacher":
            levels = levels.at[:, 0].set(0)
        return with_draws(flow(batch, key), {"levels": levels})

    return draw


def _aim(cfg: Config) -> str:
    return cfg.stages.consistency_distill.aim


def _at_teacher(noise: Array, error: Array, times: Float[Array, " n"], onward: Onward, averaged: Any) -> Pair:
    """States of the teacher's sampler from noise, and where it ends."""
    path = _path(onward, noise, times)
    return lambda levels: (path[levels, jnp.arange(len(levels))], path[-1])


def _at_average(noise: Array, error: Array, times: Float[Array, " n"], onward: Onward, averaged: Any) -> Pair:
    """The error with noise, and where the student's average says that the flow ends, a step of the teacher's later."""

    def pair(levels: Int[Array, " b"]) -> tuple[Array, Array]:
        now, later = times[levels], times[levels + 1]
        time = now.reshape(-1, *(1,) * (error.ndim - 1))
        x = (1 - time) * noise + time * error
        return x, averaged(onward(x, now, later), later)

    return pair


def _path(onward: Onward, noise: Float[Array, "b *s c"], times: Float[Array, " n"]) -> Array:
    """The states of the teacher's sampler from noise to its end, one behind the other on a new first axis."""
    rows = len(noise)

    def one(x: Array, ends: Float[Array, "2"]) -> tuple[Array, Array]:
        moved = onward(x, jnp.full(rows, ends[0]), jnp.full(rows, ends[1]))
        return moved, moved

    states = jax.lax.scan(one, noise, jnp.stack([times[:-1], times[1:]], axis=-1))[1]
    return jax.lax.stop_gradient(jnp.concatenate([noise[None], states]))


def level_counts(cfg: Config) -> tuple[int, ...]:
    """How many levels of noise a row is compared at, by epoch; the last from then on."""
    return cfg.stages.consistency_distill.tau_schedule or (cfg.training.distill_num_taus,)


def level_count_at(schedule: tuple[int, ...], epoch: Float[Array, ""] | None) -> Int[Array, ""]:
    """The entry of a schedule in an epoch, a number with its fraction; only a schedule of one entry needs none."""
    if epoch is None:
        if len(schedule) > 1:
            raise ValueError("the levels of the distillation depend on the epoch: set `epoch` of the StepContext")
        return jnp.asarray(schedule[0])
    return jnp.asarray(schedule)[jnp.minimum(jnp.floor(epoch).astype(jnp.int32), len(schedule) - 1)]
