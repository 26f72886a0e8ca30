"""Loss terms of one decoded prediction, each as one value per sample, and the sampling of query points.

The weights of the terms are applied in `ups_jax.losses.operator`.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key, Shaped

from ups_jax.config import PhysicsPriorsConfig
from ups_jax.core.task import LossScales, Task
from ups_jax.losses.boundary import boundary
from ups_jax.losses.field import EPSILON, h1, mse, nrmse, relative_mse, relative_spacing
from ups_jax.losses.latent import latent_diversity, latent_norm
from ups_jax.losses.physics import conservation, divergence, positivity, smoothness
from ups_jax.losses.spectral import BANDS, spectral_band, spectral_energy
from ups_jax.losses.weights import channel_indices, wall_location

SampleTerms = dict[str, Float[Array, " b"]]

# Floor of the denominators of relative terms, as a share of their mean over the training set. A target at rest has a
# denominator near 0, and its relative error would dominate the batch. Measured in benchmarks/at_rest.py.
RESTING = 1e-2
_WITHOUT_FLOORS = LossScales(mean=(), std=(), square=0.0)


def field_terms(
    names: Collection[str],
    pred: Float[Array, "b *s c"],
    truth: Float[Array, "b *s c"],
    task: Task,
    queries: Int[Array, " q"] | Int[Array, "b q"] | None = None,
    point_mask: Float[Array, "b *s"] | None = None,
) -> SampleTerms:
    """Return the errors of a normalised prediction, for each term in `names`; other names are ignored.

    Args:
        pred: Predicted fields, normalised.
        truth: True fields, normalised.
        queries: Indices of the points at which pointwise terms are evaluated, shared or per row; None for all points.
        point_mask: 1 for each point of a point set that is present, 0 for padding; None on a grid.
    """
    query_pred, query_truth = (x if queries is None else take_points(x, queries) for x in (pred, truth))
    mask = point_mask if point_mask is None or queries is None else take_points(point_mask[..., None], queries)[..., 0]
    scales = task.loss_scales or _WITHOUT_FLOORS
    square = RESTING * scales.square
    terms: SampleTerms = {}
    if "relative" in names:
        terms["relative"] = nrmse(query_pred, query_truth, floor=square, reduction="none", mask=mask)
    if "relative_mse" in names:
        terms["relative_mse"] = relative_mse(query_pred, query_truth, floor=square, reduction="none", mask=mask)
    if "h1" in names:
        terms["h1"] = h1(pred, truth, task.spacing, task.periodic, floor=RESTING * scales.gradient, reduction="none")
    if "forward" in names:
        terms["forward"] = mse(query_pred, query_truth, reduction="none", mask=mask)
    if "spectral" in names:
        # By Parseval's theorem, the mean of |rfft|^2 is about the mean square times the number of points.
        energies = [
            spectral_energy(pred, truth, axis, floor=square * truth.shape[axis], reduction="none")
            for axis in range(1, pred.ndim - 1)
        ]
        terms["spectral"] = jnp.stack(energies).mean(0)
    for (band, (first, last)), energy in zip(BANDS.items(), scales.bands, strict=True):
        if f"spectral_{band}" in names:
            terms[f"spectral_{band}"] = spectral_band(
                pred, truth, first, last, floor=RESTING * energy, reduction="none"
            )
    return terms


def prior_terms(
    names: Collection[str],
    pred: Float[Array, "b *s c"],
    start_frame: Float[Array, "b *s c"] | None,
    task: Task,
    priors: PhysicsPriorsConfig,
) -> SampleTerms:
    """Return the physics priors of a prediction, for each term in `names`; other names are ignored.

    The terms are measured in standard deviations of the training fields and in lengths of the domain, so that they do
    not depend on units; for a task without `loss_scales`, in physical units.

    Args:
        pred: Predicted fields, normalised.
        start_frame: Newest input frame, normalised, whose integrals the prediction should keep; None for steady tasks.

    Raises:
        ValueError: If `conservation` is requested and `start_frame` is None.
    """
    units = prior_units(task)

    def channels(key: str) -> tuple[int, ...]:
        return channel_indices(getattr(priors, key), key, task)

    def in_units(
        fields: Float[Array, "b *s c"], key: str, origin: Sequence[float], unit: Sequence[float]
    ) -> Float[Array, "b *s k"]:
        """Return (u - origin) / unit for the channels of `key`, where u are the physical values of `fields`."""
        mean, std = task.statistics.mean, task.statistics.std
        kept = list(channels(key))
        ratios = [std[c] / unit[c] for c in kept]
        offsets = [(mean[c] - origin[c]) / unit[c] for c in kept]
        ratio, offset = (
            jnp.asarray(values, jnp.float32).reshape((1,) * (fields.ndim - 1) + (-1,)) for values in (ratios, offsets)
        )
        return fields[..., kept] * ratio + offset

    terms: SampleTerms = {}
    if "divergence" in names:
        # All components have one unit: the divergence adds them up.
        speed = root_mean_square([units.deviation[c] for c in channels("velocity")])
        velocity = in_units(pred, "velocity", units.mean, [speed] * len(task.channels))
        terms["divergence"] = divergence(velocity, units.spacing, task.periodic, reduction="none")
    if "conservation" in names:
        if start_frame is None:
            raise ValueError("the term conservation needs the newest input frame; pass `start_frame`")
        fields, start = (in_units(x, "conservation_channels", units.mean, units.deviation) for x in (pred, start_frame))
        eps = [EPSILON * task.statistics.std[c] / units.deviation[c] for c in channels("conservation_channels")]
        floor = 0.0 if task.loss_scales is None else RESTING
        terms["conservation"] = conservation(
            fields, start, eps=jnp.asarray([eps], jnp.float32), floor=floor, reduction="none"
        )
    if "boundary" in names:
        slope_unit = units.length if priors.bc_condition == "neumann" else 1.0
        origin = [0.0 if priors.bc_condition == "neumann" else mean for mean in units.mean]
        terms["boundary"] = boundary(
            in_units(pred, "boundary_channels", units.mean, units.deviation),
            units.spacing,
            task.periodic,
            value=[
                (priors.bc_value - origin[c]) / units.deviation[c] * slope_unit for c in channels("boundary_channels")
            ],
            condition=priors.bc_condition,
            sides=priors.bc_type,
            location=wall_location(task, priors),
            reduction="none",
        )
    if "positivity" in names:
        zero = (0.0,) * len(task.channels)
        terms["positivity"] = positivity(in_units(pred, "positivity_channels", zero, units.deviation), reduction="none")
    if "smoothness" in names:
        terms["smoothness"] = smoothness(
            in_units(pred, "smoothness_channels", units.mean, units.deviation),
            units.spacing,
            task.periodic,
            reduction="none",
        )
    return terms


@dataclass(frozen=True, kw_only=True)
class PriorUnits:
    """Units of the physics priors of a task, as physical values.

    Attributes:
        mean: Value of each channel that counts as 0.
        deviation: Unit of each channel.
        length: Unit of length.
        spacing: Grid spacing of each axis in this unit.
    """

    mean: tuple[float, ...]
    deviation: tuple[float, ...]
    length: float
    spacing: tuple[float, ...]


def prior_units(task: Task) -> PriorUnits:
    """Return the units of a task's physics priors: mean and deviation of the training fields and length of the domain.

    For a task without `loss_scales`, all units are 1.
    """
    channels, scales = len(task.channels), task.loss_scales
    if scales is None:
        return PriorUnits(mean=(0.0,) * channels, deviation=(1.0,) * channels, length=1.0, spacing=task.spacing)
    mean, std = task.statistics.mean, task.statistics.std
    spacing = tuple(map(float, relative_spacing(task.spacing, task.shape)))
    return PriorUnits(
        mean=tuple(m + s * offset for m, s, offset in zip(mean, std, scales.mean, strict=True)),
        deviation=tuple(s * ratio for s, ratio in zip(std, scales.std, strict=True)),
        length=task.spacing[0] / spacing[0],
        spacing=spacing,
    )


def root_mean_square(values: Sequence[float]) -> float:
    """Return the root mean square of positive numbers, without squaring values that could overflow."""
    largest = max(values)
    return largest * math.sqrt(math.fsum((value / largest) ** 2 for value in values) / len(values))


def latent_terms(names: Collection[str], features: Float[Array, "b n d"]) -> SampleTerms:
    """Return the regularisers of the tokens' learned features, for each term in `names`; other names are ignored."""
    terms: SampleTerms = {}
    if "latent_norm" in names:
        terms["latent_norm"] = latent_norm(features, reduction="none")
    if "latent_diversity" in names:
        terms["latent_diversity"] = latent_diversity(features, reduction="none")
    return terms


QueryStrategy = Literal["uniform", "stratified"]


def sample_queries(
    key: Key[Array, ""],
    num_points: int,
    num_queries: int,
    strategy: QueryStrategy = "uniform",
    grid_shape: Sequence[int] | None = None,
) -> Int[Array, " q"]:
    """Return the indices of `num_queries` different points of a grid, drawn at random.

    If `num_queries` is at least `num_points`, all indices are returned in order.

    Args:
        strategy: `uniform` draws without replacement. `stratified` divides the grid into floor(num_queries^(1/axes))
            blocks along each axis and draws from all blocks in turn; the counts of any two blocks differ by at most one
            unless a block runs out of points.
        grid_shape: Shape of the grid (points in C order), required for `stratified`.

    Raises:
        ValueError: If `num_queries` is below 1, the strategy is unknown, or `grid_shape` is missing or does not match.
    """
    if num_queries < 1:
        raise ValueError(f"num_queries is {num_queries}; draw at least one point")
    if strategy not in ("uniform", "stratified"):
        raise ValueError(f"unknown sampling strategy {strategy!r}; use uniform or stratified")
    if strategy == "stratified":
        if grid_shape is None:
            raise ValueError("stratified sampling needs the shape of the grid; pass `grid_shape`")
        if math.prod(grid_shape) != num_points:
            raise ValueError(
                f"grid_shape {tuple(grid_shape)} has {math.prod(grid_shape)} points, not {num_points}; "
                "pass the shape of the sampled grid"
            )
    if num_queries >= num_points:
        return jnp.arange(num_points)
    if strategy == "uniform" or grid_shape is None:
        return jax.random.permutation(key, num_points)[:num_queries]
    within, between = jax.random.split(key)
    block = _block_numbers(grid_shape, num_queries)
    # Each block ranks its points 0, 1, 2, ... at random. All points of rank 0 are taken first, then those of rank 1.
    order = jnp.lexsort((jax.random.uniform(within, (num_points,)), jnp.asarray(block)))
    sorted_blocks = np.sort(block)
    rank = (
        jnp.zeros(num_points, jnp.int32)
        .at[order]
        .set(jnp.arange(num_points) - np.searchsorted(sorted_blocks, sorted_blocks))
    )
    return jnp.lexsort((jax.random.uniform(between, (num_points,)), rank))[:num_queries]


def sample_present_points(key: Key[Array, ""], present: Shaped[Array, "b p"], num_queries: int) -> Int[Array, "b q"]:
    """Return for each row the indices of `num_queries` different points, drawn uniformly from its present points.

    A row with fewer present points gets all of them first, followed by padding points. All rows use one permutation of
    the points, so the draw of a row does not depend on the other rows of the batch.

    Args:
        present: 1 for each point of a row that is present, 0 for padding.
    """
    order = jax.random.permutation(key, present.shape[1])
    present_first = jnp.argsort(present[:, order] == 0, axis=1, stable=True)
    return order[present_first[:, :num_queries]]


def take_points(
    values: Shaped[Array, "b *s c"], queries: Int[Array, " q"] | Int[Array, "b q"]
) -> Shaped[Array, "b q c"]:
    """Return the values at the points with the indices `queries`.

    Args:
        values: Fields, channels last.
        queries: Indices of the points in C order, shared by all rows `(q,)` or per row `(b, q)`.
    """
    flat = values.reshape(values.shape[0], -1, values.shape[-1])
    return flat[:, queries] if queries.ndim == 1 else jnp.take_along_axis(flat, queries[..., None], axis=1)


def _block_numbers(grid_shape: Sequence[int], num_queries: int) -> Int[np.ndarray, " n"]:
    """Return, for each grid point, the number of its block in stratified sampling."""
    axes = len(grid_shape)
    blocks_per_axis = 1
    while (blocks_per_axis + 1) ** axes <= num_queries:
        blocks_per_axis += 1
    number = np.zeros(tuple(grid_shape), np.int64)
    for axis, size in enumerate(grid_shape):
        count = min(blocks_per_axis, size)
        shape = [1] * axes
        shape[axis] = size
        number = number * count + (np.arange(size) * count // size).reshape(shape)
    return number.ravel()
