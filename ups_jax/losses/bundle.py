"""The operator stage's loss: named terms, each weighted by its configuration key and logged by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ups_jax.config import TrainingConfig
from ups_jax.losses.field import relative_gradient_error, relative_l2
from ups_jax.models import Conditions, LatentState, Simulator, decode, encode, normalize, operate
from ups_jax.models.codec import carried_width

Terms = dict[str, Float[Array, ""]]
# A batch of windows as `ups_jax.data` makes it: on the host, on the device, or traced.
Batch = dict[str, Array | np.ndarray]
LossBundle = Callable[[Any, Batch], tuple[Float[Array, ""], Terms]]


def operator_losses(model: Simulator, config: TrainingConfig) -> LossBundle:
    """(params, batch) -> (weighted sum, terms by name), over an unrolled `rollout_horizon` that feeds back itself."""
    weights = {"relative": config.lambda_relative, "h1": config.lambda_h1, "latent": config.lambda_latent}
    weights = {name: weight for name, weight in weights.items() if weight > 0}

    def bundle(params: Any, batch: Batch) -> tuple[Float[Array, ""], Terms]:
        arrays = {name: jnp.asarray(values) for name, values in batch.items()}
        fields = normalize(arrays["fields"], model.task.statistics)
        cond = Conditions(dt=arrays["dt"], coefficients=arrays["cond"], mask=arrays["cond_mask"])

        def advance(window: Float[Array, "b k *s c"], truth: Float[Array, "b *s c"]) -> tuple[Array, dict[str, Array]]:
            start = LatentState(z=encode(model, params, window), t=jnp.zeros_like(cond.dt), cond=cond)
            state = operate(model, params, start)
            pred = decode(model, params, state.z)
            next_window = jnp.concatenate([window[:, 1:], pred[:, None]], axis=1)
            true_window = jnp.concatenate([window[:, 1:], truth[:, None]], axis=1)
            return next_window, _terms(model, params, weights, state.z, pred, truth, true_window)

        window, targets = fields[:, : model.context], jnp.moveaxis(fields[:, model.context :], 1, 0)
        _, steps = jax.lax.scan(advance, window, targets)
        rows = arrays["mask"] / jnp.maximum(arrays["mask"].sum(), 1.0)
        terms = {name: jnp.sum(values.mean(0) * rows) for name, values in steps.items()}
        total = sum((weights[name] * value for name, value in terms.items()), jnp.zeros(()))
        return total, terms

    return bundle


def _terms(
    model: Simulator,
    params: Any,
    weights: dict[str, float],
    z: Float[Array, "b n d"],
    pred: Float[Array, "b *s c"],
    truth: Float[Array, "b *s c"],
    true_window: Float[Array, "b k *s c"],
) -> dict[str, Float[Array, " b"]]:
    """Per-sample value of each term that has a weight."""
    terms = {}
    if "relative" in weights:
        terms["relative"] = relative_l2(pred, truth)
    if "h1" in weights:
        terms["h1"] = relative_gradient_error(pred, truth, model.task.spacing, model.task.periodic)
    if "latent" in weights:
        # The target is held fixed: the operator learns to arrive where the encoder would, not the reverse.
        start = carried_width(model.task, model.latent)
        there = jax.lax.stop_gradient(encode(model, params, true_window))
        terms["latent"] = relative_l2(z[..., start:], there[..., start:])
    return terms
