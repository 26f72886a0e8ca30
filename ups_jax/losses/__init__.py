"""Training losses: pure functions of fields, one file a family."""

from ups_jax.losses.bundle import Batch, LossBundle, operator_losses
from ups_jax.losses.field import relative_gradient_error, relative_l2
from ups_jax.losses.steady import steady_losses

__all__ = ["Batch", "LossBundle", "operator_losses", "relative_gradient_error", "relative_l2", "steady_losses"]
