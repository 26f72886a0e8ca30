"""Optimizers, schedules and the parameter average, all optax."""

from ups_jax.optim.build import build_optimizer
from ups_jax.optim.ema import ema_init, ema_params, ema_update
from ups_jax.optim.schedules import build_schedule
from ups_jax.optim.table import parameter_table

__all__ = ["build_optimizer", "build_schedule", "ema_init", "ema_params", "ema_update", "parameter_table"]
