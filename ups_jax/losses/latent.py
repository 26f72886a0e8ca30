"""Regularisers of latent tokens `(b, n, d)`: their length, and how alike they are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Num

from ups_jax.losses.field import Fields, forward
from ups_jax.losses.reduction import (
    Mask,
    Number,
    Reduction,
    at_least_float32,
    point_mask,
    reduce_rows,
    row_mask,
    safe_abs,
    safe_sqrt,
    sample_mean,
)

Tokens = Float[Array | np.ndarray, "b n d"]


def latent_norm(
    z: Tokens, target: Number = 1.0, *, reduction: Reduction = "mean", mask: Mask = None
) -> Float[Array, "*b"]:
    """mean over tokens of | |z|_2 - target |; a mask is of samples `(b,)` or tokens `(b, n)`."""
    length = safe_sqrt(jnp.square(at_least_float32(z)).sum(-1, keepdims=True))
    return reduce_rows(sample_mean(safe_abs(length - target), point_mask(mask, z)), row_mask(mask, z), reduction)


def latent_diversity(
    z: Tokens, *, eps: Number = 1e-8, reduction: Reduction = "mean", mask: Mask = None
) -> Float[Array, "*b"]:
    """mean over pairs of different tokens of a sample of |cos(z_i, z_j)|: 0 where all are at right angles, 1 where all
    are parallel; 0 for a single token. A mask is of samples `(b,)` or tokens `(b, n)`.
    """
    values = at_least_float32(z)
    unit = values / jnp.maximum(safe_sqrt(jnp.square(values).sum(-1, keepdims=True)), eps)
    cosine = safe_abs(jnp.einsum("bid,bjd->bij", unit, unit))
    points = point_mask(mask, z)
    kept = jnp.ones(z.shape[:2], values.dtype) if points is None else points
    pairs = kept[:, :, None] * kept[:, None, :] * (1.0 - jnp.eye(z.shape[1], dtype=values.dtype))[None]
    value = (cosine * pairs).sum((1, 2)) / jnp.maximum(pairs.sum((1, 2)), 1e-30)
    return reduce_rows(value, row_mask(mask, z), reduction)


def inverse_encoding(
    decode: Callable[[Any], Any], z: Tokens, fields: Fields, *, reduction: Reduction = "mean", mask: Mask = None
) -> Float[Array, "*b"]:
    """mean (decode(z) - fields)^2: tokens must hold the field that they were made of.

    `decode` gives the field where `fields` is known, which may be query points alone: `(b, q, c)`.
    """
    return forward(decode(z), fields, reduction=reduction, mask=mask)


def inverse_decoding(
    encode: Callable[[Any], Any],
    decode: Callable[[Any], Any],
    z: Tokens,
    *,
    reduction: Reduction = "mean",
    mask: Mask = None,
) -> Float[Array, "*b"]:
    """mean (encode(decode(z)) - z)^2, z held fixed: encoding a decoded field must give its tokens back.

    Without holding z fixed the encoder could meet the term by making all tokens alike.
    """
    return forward(encode(decode(z)), jax.lax.stop_gradient(z), reduction=reduction, mask=mask)


def inverse_weight(
    epoch: Num[Array | np.ndarray, ""] | Number, weight: Number, warmup_epochs: Number = 15, max_weight: Number = 0.05
) -> Float[Array, ""]:
    """The weight of an inverse loss at an epoch or a fraction of one, traced or not: UPS's curriculum.

    0 up to `warmup_epochs` E, then min(weight (epoch - E) / E, max_weight) up to 2 E, then min(weight, max_weight);
    the last of them from the start where E is 0.
    """
    passed = jnp.asarray(epoch, jnp.float32)
    ramp = jnp.clip((passed - warmup_epochs) / warmup_epochs, 0.0, 1.0) if warmup_epochs > 0 else jnp.ones_like(passed)
    return jnp.minimum(weight * ramp, max_weight)
