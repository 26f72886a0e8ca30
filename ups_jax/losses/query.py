"""Query sampling: which points of a grid a loss is scored at, drawn anew by a key, with static shapes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, Key, Shaped

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
