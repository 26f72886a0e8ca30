"""Losses of a field's Fourier spectrum, in float32 whatever the field is stored in. A mask can only leave out samples.

The transform takes every axis as periodic; across a wall the jump between the two ends counts as fine scales.
"""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ups_jax.losses.reduction import (
    Mask,
    Number,
    Reduction,
    pooled_mean,
    reduce_rows,
    row_mask,
    safe_abs,
    safe_sqrt,
    same_shape,
)
from ups_jax.metrics.field import LOW_BAND, MID_BAND, energy_spectrum

Fields = Float[Array | np.ndarray, "b *_s c"]

# First and last wavenumber of each band, in waves per domain length, as the metrics have them; the last one is open.
BANDS: dict[str, tuple[int, int | None]] = {"low": LOW_BAND, "mid": MID_BAND, "high": (MID_BAND[1] + 1, None)}


def spectral_energy(
    pred: Fields, target: Fields, axis: int, *, eps: Number = 1e-8, reduction: Reduction = "mean", mask: Mask = None
) -> Float[Array, "*b"]:
    """|P - T| / (T + eps), P and T the means of |rfft|^2 along `axis` of prediction and target: no phase is compared.

    `mean` forms one ratio of the whole batch, as UPS does; `none` that of each sample, `sum` the sum of those.
    ValueError for the axis of the samples.
    """
    same_shape(pred, target)
    if axis % target.ndim == 0:
        raise ValueError("axis 0 holds the samples; give the axis that the spectrum is taken along")
    _only_rows(mask)
    ours, theirs = _power(pred, axis), _power(target, axis)
    if reduction == "mean":
        ours, theirs = pooled_mean(ours, mask, target), pooled_mean(theirs, mask, target)
        return safe_abs(ours - theirs) / (theirs + eps)
    return reduce_rows(safe_abs(ours - theirs) / (theirs + eps), row_mask(mask, target), reduction)


def spectral_band(
    pred: Fields,
    target: Fields,
    first: int,
    last: int | None = None,
    *,
    eps: Number = 1e-8,
    reduction: Reduction = "mean",
    mask: Mask = None,
) -> Float[Array, "*b"]:
    """sqrt(E(pred - target) / (E(target) + eps)), E the mean square in wavenumbers `first` to `last` (open if None).

    The relative error of a sample with nothing else of the spectrum in it: a band of little energy weighs as much as
    the others. Wavenumbers are |k| rounded, in waves per domain length. ValueError where the grid has none of them.
    """
    same_shape(pred, target)
    _only_rows(mask)
    error = jnp.asarray(pred, jnp.float32) - jnp.asarray(target, jnp.float32)
    wrong, true = (2.0 * energy_spectrum(x[:, None])[:, 0] for x in (error, jnp.asarray(target, jnp.float32)))
    top = wrong.shape[-1] - 1 if last is None else last
    inside = wrong[:, first : top + 1]
    if inside.shape[-1] == 0:
        raise ValueError(f"wavenumbers {first} to {top} are beyond the grid's largest, {wrong.shape[-1] - 1}")
    channels = target.shape[-1]
    ratio = (inside.sum(-1) / channels) / (true[:, first : top + 1].sum(-1) / channels + eps)
    return reduce_rows(safe_sqrt(ratio), row_mask(mask, target), reduction)


def _power(x: Fields, axis: int) -> Float[Array, " b"]:
    transform = jnp.fft.rfft(jnp.asarray(x, jnp.float32), axis=axis)
    return (jnp.square(transform.real) + jnp.square(transform.imag)).mean(tuple(range(1, x.ndim)))


def _only_rows(mask: Mask) -> None:
    if mask is not None and mask.ndim != 1:
        raise ValueError(f"a spectrum is of the whole grid: give a mask of the samples, not of points {mask.shape}")
