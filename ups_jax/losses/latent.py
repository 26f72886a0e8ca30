"""Losses of latent tokens `(b, n, d)`: regularisers, and losses that make encoder and decoder inverse."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Num

from ups_jax.losses.field import Fields, mse
from ups_jax.losses.reduction import (
    Mask,
    Number,
    Reduction,
    at_least_float32,
    mean_per_sample,
    point_mask,
    reduce_samples,
    safe_abs,
    safe_sqrt,
    sample_mask,
)

Tokens = Float[Array | np.ndarray, "b n d"]


def latent_norm(
    z: Tokens, target: Number = 1.0, *, reduction: Reduction = "mean", mask: Mask = None
) -> Float[Array, "*b"]:
    """Return the mean over tokens of | |z|_2 - target |.

    Args:
        target: Euclidean norm that each token should have.
        mask: Samples `(b,)` or tokens `(b, n)` that count.
    """
    length = safe_sqrt(jnp.square(at_least_float32(z)).sum(-1, keepdims=True))
    return reduce_samples(
        mean_per_sample(safe_abs(length - target), point_mask(mask, z)), sample_mask(mask, z), reduction
    )


def latent_diversity(
    z: Tokens, *, eps: Number = 1e-8, reduction: Reduction = "mean", mask: Mask = None
) -> Float[Array, "*b"]:
    """Return the mean of |cos(z_i, z_j)| over all pairs of different tokens of a sample.

    It is 0 if all tokens are orthogonal or there is only one, and 1 if all are parallel.

    Args:
        eps: Smallest norm by which a token is divided.
        mask: Samples `(b,)` or tokens `(b, n)` that count.
    """
    values = at_least_float32(z)
    unit = values / jnp.maximum(safe_sqrt(jnp.square(values).sum(-1, keepdims=True)), eps)
    cosine = safe_abs(jnp.einsum("bid,bjd->bij", unit, unit))
    points = point_mask(mask, z)
    token_mask = jnp.ones(z.shape[:2], values.dtype) if points is None else points
    pairs = token_mask[:, :, None] * token_mask[:, None, :] * (1.0 - jnp.eye(z.shape[1], dtype=values.dtype))[None]
    value = (cosine * pairs).sum((1, 2)) / jnp.maximum(pairs.sum((1, 2)), 1e-30)
    return reduce_samples(value, sample_mask(mask, z), reduction)


def inverse_encoding(
    decode: Callable[[Any], Array], z: Tokens, fields: Fields, *, reduction: Reduction = "mean", mask: Mask = None
) -> Float[Array, "*b"]:
    """Return mean (decode(z) - fields)^2, which is small if the tokens reproduce the field they were encoded from.

    Args:
        decode: Maps tokens to fields of the shape of `fields`.
        z: Latent tokens, encoded from `fields`.
        fields: Fields `(b, *s, c)`, or their values at query points `(b, q, c)`.
        mask: Samples `(b,)` or points that count.
    """
    return mse(decode(z), fields, reduction=reduction, mask=mask)


def inverse_decoding(
    encode: Callable[[Any], Array],
    decode: Callable[[Any], Array],
    z: Tokens,
    *,
    reduction: Reduction = "mean",
    mask: Mask = None,
) -> Float[Array, "*b"]:
    """Return mean (encode(decode(z)) - stop_gradient(z))^2, which is small if encoding a decoded field gives `z` again.

    Without the stopped gradient the encoder could reduce the loss by making all tokens equal.

    Args:
        encode: Maps a field to tokens.
        decode: Maps tokens to a field.
        mask: Samples `(b,)` or tokens `(b, n)` that count.
    """
    return mse(encode(decode(z)), jax.lax.stop_gradient(z), reduction=reduction, mask=mask)


def inverse_weight(
    epoch: Num[Array | np.ndarray, ""] | Number, weight: Number, warmup_epochs: Number = 15, max_weight: Number = 0.05
) -> Float[Array, ""]:
    """Return the weight of an inverse loss at an epoch: 0, then a linear ramp, then constant.

    With E = `warmup_epochs`, the weight is 0 up to epoch E, then min(weight (epoch - E) / E, max_weight) up to epoch
    2 E, then min(weight, max_weight). If E is 0 it is min(weight, max_weight) from the start.

    Args:
        epoch: Epochs completed, with the fraction of the current one; may be traced.
        warmup_epochs: Epochs before the ramp, and the length of the ramp.
        max_weight: Upper bound of the weight.

    References:
        The curriculum of the Universal Physics Stack (UPS).
    """
    epochs = jnp.asarray(epoch, jnp.float32)
    ramp = jnp.clip((epochs - warmup_epochs) / warmup_epochs, 0.0, 1.0) if warmup_epochs > 0 else jnp.ones_like(epochs)
    return jnp.minimum(weight * ramp, max_weight)
