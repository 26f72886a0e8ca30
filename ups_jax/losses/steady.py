"""The loss of steady solutions: the operator's field terms and priors, of the one solution there is."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from ups_jax.config import TrainingConfig
from ups_jax.losses.bundle import Batch, LossBundle, Terms, query_points, weighted_sum
from ups_jax.losses.per_task import per_task_terms
from ups_jax.losses.terms import field_terms, prior_terms
from ups_jax.losses.weights import PHYSICAL, checked_weights
from ups_jax.models import Conditions, SteadySimulator, denormalize, normalize, normalize_inputs, steady_field
from ups_jax.models.latent_state import conditions_of


def steady_losses(model: SteadySimulator, config: TrainingConfig) -> LossBundle:
    """(params, batch, key[, epoch]) -> (weighted sum, terms by name); ConfigError for a weighted term of time steps or
    of latent states. Errors are of the normalised solution, priors of the one in physical units; `input_noise` is of
    time steps.
    """
    task = model.task
    weights = checked_weights(config, task)
    names = sorted(weights)

    def solve_batch(params: Any, inputs: Float[Array, "b *s i"], cond: Conditions) -> Float[Array, "b *s c"]:
        return steady_field(model, params, normalize_inputs(inputs, task.inputs), cond)

    solve = jax.checkpoint(solve_batch) if config.remat == "full" else solve_batch

    def bundle(
        params: Any, batch: Batch, key: Key[Array, ""], epoch: Float[Array, ""] | None = None
    ) -> tuple[Float[Array, ""], Terms]:
        arrays = {name: jnp.asarray(values) for name, values in batch.items()}
        cond = conditions_of(arrays)
        truth = normalize(arrays["fields"][:, 0], task.statistics)
        pred = solve(params, arrays["inputs"], cond)
        samples = field_terms(names, pred, truth, task, query_points(config, task, key))
        if any(name in PHYSICAL for name in names):
            samples |= prior_terms(names, denormalize(pred, task.statistics), None, task, config.physics_priors)
        rows = arrays["mask"] / jnp.maximum(arrays["mask"].sum(), 1.0)
        terms = {name: jnp.sum(values * rows) for name, values in samples.items()}
        total = weighted_sum(weights, terms, config, epoch)
        if config.log_per_task_metrics or task.siblings:
            per_sample = weighted_sum(weights, samples, config, epoch)
            terms |= per_task_terms((task.name,), per_sample, arrays["mask"])
        return total, terms

    return bundle
