"""Learning-rate schedules, per optimizer step, and the lengths in epochs that they and the patience are given in."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

from ups_jax.config import SchedulerConfig, StageConfig
from ups_jax.core.errors import ConfigError
from ups_jax.optim.plateau import PlateauRule

# What a length means where neither epochs nor steps are given, as a share of the run.
_STEP_SIZE_SHARE = 1 / 3
_PATIENCE_SHARE = 1 / 10


def build_schedule(
    config: SchedulerConfig, learning_rate: float, total_steps: int, steps_per_epoch: int
) -> optax.Schedule:
    """Step -> learning rate: linear from 0 over `warmup * total_steps`, then the named curve.

    A plateau's curve is constant: its reductions are in the optimizer's state. Past `t_max` the cosine stays at
    `eta_min`; torch's own rises again, which no one who gives `t_max` for the length of a run wants.
    """
    warmup = round(config.warmup * total_steps)

    def cosine() -> optax.Schedule:
        steps = _cosine_end(config, total_steps, steps_per_epoch) - warmup
        return optax.cosine_decay_schedule(learning_rate, max(steps, 1), alpha=config.eta_min / learning_rate)

    def staircase() -> optax.Schedule:
        every = _in_steps(config.step_size, config.step_size_steps, steps_per_epoch)
        if every is None:
            every = math.ceil(_STEP_SIZE_SHARE * total_steps)
        every = max(every, 1)

        def rate(step: Int[Array, ""] | int) -> Array | float:
            return learning_rate * config.gamma ** ((step + warmup) // every)

        return rate

    curves = {
        "constant": lambda: optax.constant_schedule(learning_rate),
        "steplr": staircase,
        "cosineannealinglr": cosine,
        "reducelronplateau": lambda: optax.constant_schedule(learning_rate),
    }
    curve = curves[config.name]()
    if warmup == 0:
        return curve
    # The first step must move: the ramp counts from 1/warmup, not from 0.
    ramp = optax.linear_schedule(learning_rate / warmup, learning_rate, warmup - 1 or 1)
    return optax.join_schedules([ramp, curve], [warmup])


def host_schedule(schedule: optax.Schedule, *, block_size: int = 4096) -> Callable[[int], float]:
    """Return the schedule as a function of the host, computed for `block_size` steps at a time.

    Reading a single value would block on the training steps that are under way. The default block is 16 KB, half a
    minute of the shortest steps.
    """

    @jax.jit
    def from_step(first: Int[Array, ""] | int) -> Float[Array, " n"]:
        return jax.vmap(lambda step: jnp.asarray(schedule(step), jnp.float32))(first + jnp.arange(block_size))

    @functools.lru_cache(maxsize=2)
    def block(number: int) -> np.ndarray:
        return np.asarray(from_step(number * block_size))

    return lambda step: float(block(step // block_size)[step % block_size])


def build_plateau(config: StageConfig, total_steps: int, steps_per_epoch: int, eval_steps: int) -> PlateauRule | None:
    """How a stage's evaluations, one every `eval_steps`, reduce its learning rate; None with any other schedule."""
    scheduler = config.scheduler
    if scheduler.name != "reducelronplateau":
        return None
    bad = patience_evaluations(scheduler, steps_per_epoch, eval_steps)
    if bad is None:
        bad = _evaluations_beyond(round(_PATIENCE_SHARE * total_steps), eval_steps)
    return PlateauRule(
        factor=scheduler.factor, patience=bad, threshold=scheduler.threshold, floor=scheduler.min_lr / config.optimizer.lr
    )


def check_schedule(
    config: SchedulerConfig, learning_rate: float, total_steps: int, steps_per_epoch: int, where: str
) -> None:
    """ConfigError, naming the section `where`, if a cosine ends before its warm-up or a curve above where it starts."""
    lowest = {"cosineannealinglr": ("eta_min", config.eta_min), "reducelronplateau": ("min_lr", config.min_lr)}
    if config.name in lowest and lowest[config.name][1] > learning_rate:
        key, value = lowest[config.name]
        raise ConfigError(
            f"{where}.{key} is {value:g}, above the learning rate of {learning_rate:g} that it is the lowest value of"
        )
    warmup = round(config.warmup * total_steps)
    if config.t_max is None and config.t_max_steps is None:
        return
    end = _cosine_end(config, total_steps, steps_per_epoch)
    if config.name == "cosineannealinglr" and end <= warmup:
        raise ConfigError(
            f"{where}: the cosine ends at step {end}, its warm-up at step {warmup}; "
            "give a greater t_max or a smaller warmup"
        )


def patience_evaluations(config: StageConfig | SchedulerConfig, steps_per_epoch: int, eval_steps: int) -> int | None:
    """The first number of evaluations in a row, one every `eval_steps`, that takes more than the patience of `config`.

    None where it has no patience, which is to wait for ever.
    """
    patience = _in_steps(config.patience, config.patience_steps, steps_per_epoch)
    return None if patience is None else _evaluations_beyond(patience, eval_steps)


def _evaluations_beyond(steps: int, eval_steps: int) -> int:
    return steps // eval_steps + 1


def _in_steps(epochs: float | None, steps: int | None, steps_per_epoch: int) -> int | None:
    """A length in optimizer steps, from whichever of its two units it is given in; None where it is in neither."""
    if steps is not None:
        return steps
    return None if epochs is None else round(epochs * steps_per_epoch)


def _cosine_end(config: SchedulerConfig, total_steps: int, steps_per_epoch: int) -> int:
    given = _in_steps(config.t_max, config.t_max_steps, steps_per_epoch)
    return total_steps if given is None else given
