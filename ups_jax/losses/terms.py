"""The values of the terms of a bundle, one a sample, of one decoded prediction. Weights are not applied here."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key, Shaped

from ups_jax.config import PhysicsPriorsConfig
from ups_jax.core.task import Task
from ups_jax.losses.boundary import boundary
from ups_jax.losses.field import forward, h1, nrmse, relative_mse
from ups_jax.losses.latent import latent_diversity, latent_norm
from ups_jax.losses.physics import conservation, divergence, positivity, smoothness
from ups_jax.losses.spectral import BANDS, spectral_band, spectral_energy
from ups_jax.losses.weights import channel_indices

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
        return fields[..., list(channel_indices(getattr(priors, name), name, task))]

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


QueryStrategy = Literal["uniform", "stratified"]


def sample_queries(
    key: Key[Array, ""],
    points: int,
    queries: int,
    strategy: QueryStrategy = "uniform",
    grid_shape: Sequence[int] | None = None,
) -> Int[Array, " q"]:
    """Indices of `queries` different points out of `points`; all of them, in order, where that is no fewer.

    `uniform` draws without replacement. `stratified` cuts the grid into floor(queries^(1/axes)) blocks an axis and
    draws from all blocks in turn, so that their counts differ by one at most as long as they have points left.
    ValueError for no queries, an unknown strategy, or a stratified draw without the shape of the grid (C order).
    """
    if queries < 1:
        raise ValueError(f"queries {queries}: draw at least one point")
    if strategy not in ("uniform", "stratified"):
        raise ValueError(f"Unknown sampling strategy {strategy!r}; use uniform or stratified")
    if strategy == "stratified":
        if grid_shape is None:
            raise ValueError("grid_shape required for stratified sampling")
        if math.prod(grid_shape) != points:
            raise ValueError(f"grid_shape {tuple(grid_shape)} has {math.prod(grid_shape)} points, not {points}")
    if queries >= points:
        return jnp.arange(points)
    if strategy == "uniform" or grid_shape is None:
        return jax.random.permutation(key, points)[:queries]
    within, between = jax.random.split(key)
    block = _blocks(grid_shape, queries)
    # In each block the points get turns 0, 1, 2.. at random; all first turns go before all second ones.
    order = jnp.lexsort((jax.random.uniform(within, (points,)), jnp.asarray(block)))
    ordered = np.sort(block)
    turn = jnp.zeros(points, jnp.int32).at[order].set(jnp.arange(points) - np.searchsorted(ordered, ordered))
    return jnp.lexsort((jax.random.uniform(between, (points,)), turn))[:queries]


def sample_present(key: Key[Array, ""], present: Shaped[Array, "b p"], queries: int) -> Int[Array, "b q"]:
    """Indices of `queries` different points of each row of a set, uniform among those that are `present` in it. Where a
    row has fewer they all come first, and those after them are not there.

    One draw for all rows: rows of the same points get the same ones, in whatever company they are.
    """
    order = jax.random.permutation(key, present.shape[1])
    first = jnp.argsort(present[:, order] == 0, axis=1, stable=True)
    return order[first[:, :queries]]


def take_points(
    values: Shaped[Array, "b *s c"], queries: Int[Array, " q"] | Int[Array, "b q"]
) -> Shaped[Array, "b q c"]:
    """Values at the points of `queries`, those of all rows or of each, which count the grid's points in C order."""
    flat = values.reshape(values.shape[0], -1, values.shape[-1])
    return flat[:, queries] if queries.ndim == 1 else jnp.take_along_axis(flat, queries[..., None], axis=1)


def _blocks(grid_shape: Sequence[int], queries: int) -> Int[np.ndarray, " n"]:
    """The number of the block that each point lies in."""
    axes = len(grid_shape)
    wanted = 1
    while (wanted + 1) ** axes <= queries:
        wanted += 1
    number = np.zeros(tuple(grid_shape), np.int64)
    for axis, size in enumerate(grid_shape):
        count = min(wanted, size)
        shape = [1] * axes
        shape[axis] = size
        number = number * count + (np.arange(size) * count // size).reshape(shape)
    return number.ravel()
