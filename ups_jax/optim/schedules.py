"""Learning-rate schedules as functions of the optimizer step, and the conversion of lengths in epochs to steps."""

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

# Default lengths as fractions of the run, if neither epochs nor steps are configured.
_STEP_SIZE_FRACTION = 1 / 3
_PATIENCE_FRACTION = 1 / 10


def build_schedule(
    config: SchedulerConfig, learning_rate: float, total_steps: int, steps_per_epoch: int
) -> optax.Schedule:
    """Return the schedule: a linear warmup over `config.warmup * total_steps` steps, followed by the configured curve.

    The curve of `reducelronplateau` is constant; its reductions are in the optimizer's state. After `t_max` the cosine
    stays at `eta_min`, unlike torch's, which rises again.

    Args:
        learning_rate: Peak learning rate.
        total_steps: Optimizer steps of the stage.
    """
    warmup = round(config.warmup * total_steps)

    def cosine() -> optax.Schedule:
        steps = _cosine_end(config, total_steps, steps_per_epoch) - warmup
        return optax.cosine_decay_schedule(learning_rate, max(steps, 1), alpha=config.eta_min / learning_rate)

    def staircase() -> optax.Schedule:
        interval = _length_in_steps(config.step_size, config.step_size_steps, steps_per_epoch)
        if interval is None:
            interval = math.ceil(_STEP_SIZE_FRACTION * total_steps)
        interval = max(interval, 1)

        def rate(step: Int[Array, ""] | int) -> Array | float:
            return learning_rate * config.gamma ** ((step + warmup) // interval)

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
    # The warmup starts at 1 / warmup instead of 0, so that the first step has an effect.
    ramp = optax.linear_schedule(learning_rate / warmup, learning_rate, warmup - 1 or 1)
    return optax.join_schedules([ramp, curve], [warmup])


def host_schedule(schedule: optax.Schedule, *, block_size: int = 4096) -> Callable[[int], float]:
    """Return the schedule as a host function, which computes the rates of `block_size` steps at a time on the device.

    Computing each rate on its own would make the host wait for the dispatched training steps. A block of the default
    size has 16 KB and covers at least half a minute.
    """

    @jax.jit
    def rates_from(first_step: Int[Array, ""] | int) -> Float[Array, " n"]:
        return jax.vmap(lambda step: jnp.asarray(schedule(step), jnp.float32))(first_step + jnp.arange(block_size))

    @functools.lru_cache(maxsize=2)
    def rate_block(number: int) -> np.ndarray:
        return np.asarray(rates_from(number * block_size))

    return lambda step: float(rate_block(step // block_size)[step % block_size])


def build_plateau_rule(
    config: StageConfig, total_steps: int, steps_per_epoch: int, eval_steps: int
) -> PlateauRule | None:
    """Return the rule that reduces the learning rate of a stage; None for schedules other than `reducelronplateau`.

    Args:
        eval_steps: Optimizer steps between two evaluations.
    """
    scheduler = config.scheduler
    if scheduler.name != "reducelronplateau":
        return None
    patience = patience_evaluations(scheduler, steps_per_epoch, eval_steps)
    if patience is None:
        patience = _evaluations_to_exceed(round(_PATIENCE_FRACTION * total_steps), eval_steps)
    return PlateauRule(
        factor=scheduler.factor,
        patience=patience,
        threshold=scheduler.threshold,
        floor=scheduler.min_lr / config.optimizer.lr,
    )


def check_schedule(
    config: SchedulerConfig, learning_rate: float, total_steps: int, steps_per_epoch: int, section: str
) -> None:
    """Raise ConfigError if the cosine ends before the warmup does, or the lowest learning rate is above the peak.

    Args:
        learning_rate: Peak learning rate.
        section: Name of the section in messages.
    """
    lowest = {"cosineannealinglr": ("eta_min", config.eta_min), "reducelronplateau": ("min_lr", config.min_lr)}
    if config.name in lowest and lowest[config.name][1] > learning_rate:
        key, value = lowest[config.name]
        raise ConfigError(
            f"{section}.{key}={value:g} is above the learning rate {learning_rate:g}; lower {section}.{key}"
        )
    warmup = round(config.warmup * total_steps)
    if config.t_max is None and config.t_max_steps is None:
        return
    end = _cosine_end(config, total_steps, steps_per_epoch)
    if config.name == "cosineannealinglr" and end <= warmup:
        raise ConfigError(
            f"{section}: the cosine ends at step {end}, but the warmup ends at step {warmup}; increase t_max or reduce "
            "warmup"
        )


def patience_evaluations(config: StageConfig | SchedulerConfig, steps_per_epoch: int, eval_steps: int) -> int | None:
    """Return the number of evaluations without improvement that exhausts the patience; None for no limit.

    Args:
        config: Section of the configuration with `patience` (in epochs) or `patience_steps`.
        eval_steps: Optimizer steps between two evaluations.
    """
    patience = _length_in_steps(config.patience, config.patience_steps, steps_per_epoch)
    return None if patience is None else _evaluations_to_exceed(patience, eval_steps)


def _evaluations_to_exceed(steps: int, eval_steps: int) -> int:
    """Return the smallest number of evaluations that together span more than `steps` optimizer steps."""
    return steps // eval_steps + 1


def _length_in_steps(epochs: float | None, steps: int | None, steps_per_epoch: int) -> int | None:
    """Convert a length that is configured in steps or in epochs to optimizer steps; None if both are None."""
    if steps is not None:
        return steps
    return None if epochs is None else round(epochs * steps_per_epoch)


def _cosine_end(config: SchedulerConfig, total_steps: int, steps_per_epoch: int) -> int:
    """Return the step at which the cosine ends, from `t_max` or `t_max_steps`; the last step if both are None."""
    end = _length_in_steps(config.t_max, config.t_max_steps, steps_per_epoch)
    return total_steps if end is None else end
