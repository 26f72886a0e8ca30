"""The loss of steady solutions: the operator's field terms, on the normalised solution."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from ups_jax.config import TrainingConfig
from ups_jax.losses.bundle import Batch, LossBundle, Terms
from ups_jax.losses.field import relative_gradient_error, relative_l2
from ups_jax.models import Conditions, SteadySimulator, normalize, normalize_inputs, steady_field


def steady_losses(model: SteadySimulator, config: TrainingConfig) -> LossBundle:
    """(params, batch, key) -> (weighted sum, terms by name); nothing is random, `input_noise` is of time steps."""
    weights = {"relative": config.lambda_relative, "h1": config.lambda_h1}
    weights = {name: weight for name, weight in weights.items() if weight > 0}
    task = model.task

    def bundle(params: Any, batch: Batch, key: Key[Array, ""]) -> tuple[Float[Array, ""], Terms]:
        del key
        arrays = {name: jnp.asarray(values) for name, values in batch.items()}
        cond = Conditions(dt=arrays["dt"], coefficients=arrays["cond"], mask=arrays["cond_mask"])
        truth = normalize(arrays["fields"][:, 0], task.statistics)
        pred = steady_field(model, params, normalize_inputs(arrays["inputs"], task.inputs), cond)
        errors = {
            "relative": lambda: relative_l2(pred, truth),
            "h1": lambda: relative_gradient_error(pred, truth, task.spacing, task.periodic),
        }
        rows = arrays["mask"] / jnp.maximum(arrays["mask"].sum(), 1.0)
        terms = {name: jnp.sum(errors[name]() * rows) for name in weights}
        total = sum((weights[name] * value for name, value in terms.items()), jnp.zeros(()))
        return total, terms

    return bundle
