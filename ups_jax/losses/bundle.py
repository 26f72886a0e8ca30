"""The operator stage's loss: named terms, each weighted by its configuration key and logged by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from ups_jax.config import TrainingConfig
from ups_jax.losses.field import relative_gradient_error, relative_l2
from ups_jax.models import Conditions, Simulator, normalize, step
from ups_jax.task import Task

Terms = dict[str, Float[Array, ""]]
# A batch of windows as `ups_jax.data` makes it: on the host, on the device, or traced.
Batch = dict[str, Array | np.ndarray]
# (params, batch, key for what is random) -> (weighted sum, terms by name).
LossBundle = Callable[[Any, Batch, Key[Array, ""]], tuple[Float[Array, ""], Terms]]


def operator_losses(model: Simulator, config: TrainingConfig) -> LossBundle:
    """(params, batch, key) -> (weighted sum, terms by name), over an unrolled `rollout_horizon` that feeds back itself.

    `input_noise` is white noise on the frames of the context; the targets stay clean, so that a step learns to take
    small-scale errors out instead of letting them grow (Sanchez-Gonzalez et al. 2020).
    """
    weights = {"relative": config.lambda_relative, "h1": config.lambda_h1}
    weights = {name: weight for name, weight in weights.items() if weight > 0}

    def bundle(params: Any, batch: Batch, key: Key[Array, ""]) -> tuple[Float[Array, ""], Terms]:
        arrays = {name: jnp.asarray(values) for name, values in batch.items()}
        fields = normalize(arrays["fields"], model.task.statistics)
        cond = Conditions(dt=arrays["dt"], coefficients=arrays["cond"], mask=arrays["cond_mask"])

        def advance(window: Float[Array, "b k *s c"], truth: Float[Array, "b *s c"]) -> tuple[Array, dict[str, Array]]:
            pred = step(model, params, window, cond)
            next_window = jnp.concatenate([window[:, 1:], pred[:, None]], axis=1)
            return next_window, _terms(weights, pred, truth, model.task)

        window = _noisy(fields[:, : model.context], config.input_noise, key)
        targets = jnp.moveaxis(fields[:, model.context :], 1, 0)
        _, steps = jax.lax.scan(advance, window, targets)
        rows = arrays["mask"] / jnp.maximum(arrays["mask"].sum(), 1.0)
        terms = {name: jnp.sum(values.mean(0) * rows) for name, values in steps.items()}
        total = sum((weights[name] * value for name, value in terms.items()), jnp.zeros(()))
        return total, terms

    return bundle


def _noisy(frames: Float[Array, "b k *s c"], std: float, key: Key[Array, ""]) -> Float[Array, "b k *s c"]:
    """The frames with white noise of a standard deviation; as they are at 0."""
    return frames + std * jax.random.normal(key, frames.shape) if std > 0 else frames


def _terms(
    weights: dict[str, float], pred: Float[Array, "b *s c"], truth: Float[Array, "b *s c"], task: Task
) -> dict[str, Float[Array, " b"]]:
    """Per-sample value of each term that has a weight."""
    terms = {}
    if "relative" in weights:
        terms["relative"] = relative_l2(pred, truth)
    if "h1" in weights:
        terms["h1"] = relative_gradient_error(pred, truth, task.spacing, task.periodic)
    return terms
