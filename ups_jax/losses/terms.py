"""The values of the terms of a bundle, one a sample, of one decoded prediction. Weights are not applied here."""

from __future__ import annotations

from collections.abc import Collection

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ups_jax.config import PhysicsPriorsConfig
from ups_jax.losses.boundary import boundary
from ups_jax.losses.field import forward, h1, nrmse, relative_mse
from ups_jax.losses.latent import latent_diversity, latent_norm
from ups_jax.losses.physics import conservation, divergence, positivity, smoothness
from ups_jax.losses.query import take_points
from ups_jax.losses.spectral import BANDS, spectral_band, spectral_energy
from ups_jax.losses.weights import channels_of
from ups_jax.task import Task

SampleTerms = dict[str, Float[Array, " b"]]


def field_terms(
    names: Collection[str],
    pred: Float[Array, "b *s c"],
    truth: Float[Array, "b *s c"],
    task: Task,
    queries: Int[Array, " q"] | Int[Array, "b q"] | None = None,
    points: Float[Array, "b *s"] | None = None,
) -> SampleTerms:
    """Errors of a normalised prediction. The pointwise ones are scored at `queries`, where there are any; of a set of
    points at those that are there, which the mask `points` says."""
    some_pred, some_truth = (x if queries is None else take_points(x, queries) for x in (pred, truth))
    mask = points if points is None or queries is None else take_points(points[..., None], queries)[..., 0]
    terms: SampleTerms = {}
    if "relative" in names:
        terms["relative"] = nrmse(some_pred, some_truth, reduction="none", mask=mask)
    if "relative_mse" in names:
        terms["relative_mse"] = relative_mse(some_pred, some_truth, reduction="none", mask=mask)
    if "h1" in names:
        terms["h1"] = h1(pred, truth, task.spacing, task.periodic, reduction="none")
    if "forward" in names:
        terms["forward"] = forward(some_pred, some_truth, reduction="none", mask=mask)
    if "spectral" in names:
        axes = range(1, pred.ndim - 1)
        energies = [spectral_energy(pred, truth, axis, reduction="none") for axis in axes]
        terms["spectral"] = jnp.stack(energies).mean(0)
    for band, (first, last) in BANDS.items():
        if f"spectral_{band}" in names:
            terms[f"spectral_{band}"] = spectral_band(pred, truth, first, last, reduction="none")
    return terms


def prior_terms(
    names: Collection[str],
    pred: Float[Array, "b *s c"],
    start: Float[Array, "b *s c"] | None,
    task: Task,
    priors: PhysicsPriorsConfig,
) -> SampleTerms:
    """Physics priors of a prediction in physical units; `start` is the given frame whose integrals should be kept."""

    def chosen(fields: Float[Array, "b *s c"], name: str) -> Float[Array, "b *s k"]:
        return fields[..., list(channels_of(getattr(priors, name), name, task))]

    terms: SampleTerms = {}
    if "divergence" in names:
        terms["divergence"] = divergence(chosen(pred, "velocity"), task.spacing, task.periodic, reduction="none")
    if "conservation" in names:
        if start is None:
            raise ValueError("conservation needs the frame that the prediction started from")
        std = jnp.asarray(task.statistics.std, jnp.float32).reshape((1,) * (pred.ndim - 1) + (-1,))
        # In standard deviations, so that the floor under the reference's size fits fields of any unit.
        ours, given = (chosen(x / std, "conservation_channels") for x in (pred, start))
        terms["conservation"] = conservation(ours, given, reduction="none")
    if "boundary" in names:
        terms["boundary"] = boundary(
            chosen(pred, "boundary_channels"),
            task.spacing,
            task.periodic,
            value=priors.bc_value,
            condition=priors.bc_condition,
            sides=priors.bc_type,
            reduction="none",
        )
    if "positivity" in names:
        terms["positivity"] = positivity(chosen(pred, "positivity_channels"), reduction="none")
    if "smoothness" in names:
        terms["smoothness"] = smoothness(
            chosen(pred, "smoothness_channels"), task.spacing, task.periodic, reduction="none"
        )
    return terms


def latent_terms(names: Collection[str], features: Float[Array, "b n d"]) -> SampleTerms:
    """Regularisers of the learned features of the tokens."""
    terms: SampleTerms = {}
    if "latent_norm" in names:
        terms["latent_norm"] = latent_norm(features, reduction="none")
    if "latent_diversity" in names:
        terms["latent_diversity"] = latent_diversity(features, reduction="none")
    return terms
