"""Learning-rate schedules, per optimizer step."""

from __future__ import annotations

import optax

from ups_jax.config import SchedulerConfig


def build_schedule(config: SchedulerConfig, learning_rate: float, total_steps: int) -> optax.Schedule:
    """Step -> learning rate: linear from 0 over `warmup * total_steps`, then the named curve to the last step."""
    warmup = round(config.warmup * total_steps)
    rest = max(total_steps - warmup, 1)
    curves = {
        "constant": lambda: optax.constant_schedule(learning_rate),
        "cosineannealinglr": lambda: optax.cosine_decay_schedule(
            learning_rate, rest, alpha=config.eta_min / learning_rate
        ),
    }
    curve = curves[config.name]()
    if warmup == 0:
        return curve
    # The first step must move: the ramp counts from 1/warmup, not from 0.
    ramp = optax.linear_schedule(learning_rate / warmup, learning_rate, warmup - 1 or 1)
    return optax.join_schedules([ramp, curve], [warmup])
