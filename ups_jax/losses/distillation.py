"""The loss of the distillation: the corrector's sampler of many steps as one consistency function."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from ups_jax.config import STAGE_NEEDS, Config
from ups_jax.losses.bundle import Batch, StageLoss, Terms
from ups_jax.losses.diffusion import draw_flow
from ups_jax.losses.residual import residual_of
from ups_jax.models import Simulator, SteadySimulator
from ups_jax.models.corrector import Corrector, velocity
from ups_jax.sampling import advance, consistency, flow_times
from ups_jax.streams import stream


def distillation_losses(model: Corrector, base: Simulator | SteadySimulator, cfg: Config) -> StageLoss:
    """(params, batch, key[, epoch], *, parents, scale, target) -> (loss, terms): mean square of f(x_n, t_n) less
    f_target(x_{n+1}, t_{n+1}), where the teacher's own step of its sampler leads from x_n to x_{n+1}.

    Consistency distillation (Song et al. 2023, algorithm 2) on the times of the teacher's sampler, so that the fixed
    point is that sampler, not an ODE solved better. `target` is the average of the student so far; at t = 1 every f is
    the identity. Each row is compared at so many of the times as the epoch's entry of `tau_schedule` says, or at
    `training.distill_num_taus`. What its teacher expects, `sampling.expected`, is not the student's to learn.
    """
    predictor, corrector = STAGE_NEEDS[model.task.kind]["consistency_distill"]
    residual, draw = residual_of(base, cfg.diffusion), draw_levels(model, base, cfg)
    times = jnp.asarray(flow_times(cfg.diffusion.num_steps, cfg.diffusion.min_noise), jnp.float32)
    schedule = level_counts(cfg)

    def bundle(
        params: Any,
        batch: Batch,
        key: Key[Array, ""],
        epoch: Float[Array, ""] | None = None,
        *,
        parents: Mapping[str, Any],
        scale: Float[Array, " c"],
        target: Any,
    ) -> tuple[Float[Array, ""], Terms]:
        rows = draw(batch, key)
        given, error = residual(parents[predictor], rows)
        error = error / scale.reshape((1,) * (error.ndim - 1) + (-1,))
        noise, teacher = jnp.asarray(rows["noise"]), parents[corrector].params
        count = count_at(schedule, epoch)

        def apart(levels: Int[Array, " b"]) -> Float[Array, " b"]:
            now, later = times[levels], times[levels + 1]
            time = now.reshape(-1, *(1,) * (error.ndim - 1))
            x = (1 - time) * noise + time * error
            moved = advance(lambda y, t: velocity(model, teacher, y, t, given), x, now, later, cfg.diffusion.sampler)
            aim = consistency(model, target, moved, later, given)
            squares = jnp.square(consistency(model, params, x, now, given) - jax.lax.stop_gradient(aim))
            return squares.mean(tuple(range(1, squares.ndim)))

        def add(total: Float[Array, " b"], numbered: tuple[Array, Array]) -> tuple[Array, None]:
            number, levels = numbered
            # What the epoch does not ask for is not computed.
            return total + jax.lax.cond(number < count, apart, lambda rows: jnp.zeros(rows.shape), levels), None

        levels = jnp.asarray(rows["levels"]).T
        squares, _ = jax.lax.scan(add, jnp.zeros(len(error)), (jnp.arange(len(levels)), levels))
        mask = jnp.asarray(batch["mask"])
        loss = jnp.sum(squares / count * mask) / jnp.maximum(mask.sum(), 1.0)
        return loss, {"consistency": loss}

    return bundle


def draw_levels(
    model: Corrector, base: Simulator | SteadySimulator, cfg: Config
) -> Callable[[Batch, Key[Array, ""]], Batch]:
    """`draw_flow`, and the numbers of the teacher's steps that each row is compared at, `levels`."""
    flow, most = draw_flow(model, base, cfg), max(level_counts(cfg))

    def draw(batch: Batch, key: Key[Array, ""]) -> Batch:
        shape = (batch["fields"].shape[0], most)
        levels = jax.random.randint(stream(key, "levels"), shape, 0, cfg.diffusion.num_steps)
        return {"levels": levels} | flow(batch, key)

    return draw


def level_counts(cfg: Config) -> tuple[int, ...]:
    """How many levels of noise a row is compared at, by epoch; the last from then on."""
    return cfg.stages.consistency_distill.tau_schedule or (cfg.training.distill_num_taus,)


def count_at(schedule: tuple[int, ...], epoch: Float[Array, ""] | None) -> Int[Array, ""]:
    """The entry of a schedule in an epoch, a number with its fraction; only a schedule of one entry needs none."""
    if epoch is None:
        if len(schedule) > 1:
            raise ValueError("the levels of the distillation depend on the epoch: give it to the bundle")
        return jnp.asarray(schedule[0])
    return jnp.asarray(schedule)[jnp.minimum(jnp.floor(epoch).astype(jnp.int32), len(schedule) - 1)]
