"""Losses of the codec alone, after Universal Physics Transformers: what it decodes, and what it encodes again.

`inverse_weight` brings them in late and bounds them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Num

from ups_jax.losses.field import Fields, forward
from ups_jax.losses.reduction import Mask, Number, Reduction

Tokens = Float[Array | np.ndarray, "b n d"]


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
    epoch: Num[Array | np.ndarray, ""] | Number,
    weight: Number,
    warmup_epochs: Number = 15,
    max_weight: Number = 0.05,
) -> Float[Array, ""]:
    """The weight of an inverse loss at an epoch or a fraction of one, traced or not: UPS's curriculum.

    0 up to `warmup_epochs` E, then min(weight (epoch - E) / E, max_weight) up to 2 E, then min(weight, max_weight);
    the last of them from the start where E is 0.
    """
    passed = jnp.asarray(epoch, jnp.float32)
    ramp = jnp.clip((passed - warmup_epochs) / warmup_epochs, 0.0, 1.0) if warmup_epochs > 0 else jnp.ones_like(passed)
    return jnp.minimum(weight * ramp, max_weight)
