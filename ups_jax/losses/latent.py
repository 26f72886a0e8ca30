"""Regularisers of latent tokens `(b, n, d)`: their length, and how alike they are."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ups_jax.losses.reduction import (
    Mask,
    Number,
    Reduction,
    magnitude,
    points_of,
    reduced,
    root,
    rows_of,
    sample_mean,
    single,
)

Tokens = Float[Array | np.ndarray, "b n d"]


def latent_norm(
    z: Tokens, target: Number = 1.0, *, reduction: Reduction = "mean", mask: Mask = None
) -> Float[Array, "*b"]:
    """mean over tokens of | |z|_2 - target |; a mask is of samples `(b,)` or tokens `(b, n)`."""
    length = root(jnp.square(single(z)).sum(-1, keepdims=True))
    return reduced(sample_mean(magnitude(length - target), points_of(mask, z)), rows_of(mask, z), reduction)


def latent_diversity(
    z: Tokens, *, eps: Number = 1e-8, reduction: Reduction = "mean", mask: Mask = None
) -> Float[Array, "*b"]:
    """mean over pairs of different tokens of a sample of |cos(z_i, z_j)|: 0 where all are at right angles, 1 where all
    are parallel; 0 for a single token. A mask is of samples `(b,)` or tokens `(b, n)`.
    """
    values = single(z)
    unit = values / jnp.maximum(root(jnp.square(values).sum(-1, keepdims=True)), eps)
    cosine = magnitude(jnp.einsum("bid,bjd->bij", unit, unit))
    points = points_of(mask, z)
    kept = jnp.ones(z.shape[:2], values.dtype) if points is None else points
    pairs = kept[:, :, None] * kept[:, None, :] * (1.0 - jnp.eye(z.shape[1], dtype=values.dtype))[None]
    value = (cosine * pairs).sum((1, 2)) / jnp.maximum(pairs.sum((1, 2)), 1e-30)
    return reduced(value, rows_of(mask, z), reduction)
