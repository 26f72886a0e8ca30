"""Losses of a field's Fourier spectrum, computed in float32. They take masks of samples, not of points.

The transform treats every axis as periodic; on a non-periodic axis the jump between its ends adds energy at small
scales.
"""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ups_jax.losses.reduction import (
    Mask,
    Number,
    Reduction,
    check_same_shape,
    pooled_mean,
    reduce_samples,
    safe_abs,
    safe_sqrt,
    sample_mask,
)
from ups_jax.metrics.bands import LOW_BAND, MID_BAND
from ups_jax.metrics.field import energy_spectrum

Fields = Float[Array | np.ndarray, "b *_s c"]

# First and last wavenumber of each band, in waves per domain length, as in `ups_jax.metrics`; None: no upper limit.
BANDS: dict[str, tuple[int, int | None]] = {"low": LOW_BAND, "mid": MID_BAND, "high": (MID_BAND[1] + 1, None)}


def spectral_energy(
    pred: Fields,
    target: Fields,
    axis: int,
    *,
    eps: Number = 1e-8,
    floor: Number = 0.0,
    reduction: Reduction = "mean",
    mask: Mask = None,
) -> Float[Array, "*b"]:
    """Return |P - T| / (max(T, floor) + eps), where P and T are means of |rfft|^2 along an axis of pred and target.

    Phases are not compared. With `reduction="mean"` this is one ratio of the whole batch; with `none` it is computed
    for each sample, and `sum` adds these ratios.

    Args:
        pred: Predicted fields `(b, *s, c)`.
        target: True fields of the same shape and units.
        floor: Smallest value of T by which is divided.
        mask: Samples `(b,)` that count.

    Raises:
        ValueError: If `axis` is the axis of the samples, or `mask` is not a mask of samples.

    References:
        The loss of the Universal Physics Stack (UPS).
    """
    check_same_shape(pred, target)
    if axis % target.ndim == 0:
        raise ValueError(f"axis {axis} holds the samples; choose an axis of space for the spectrum")
    _check_sample_mask(mask)
    pred_power, target_power = _mean_power(pred, axis), _mean_power(target, axis)
    if reduction == "mean":
        pred_power, target_power = pooled_mean(pred_power, mask, target), pooled_mean(target_power, mask, target)
    error = safe_abs(pred_power - target_power) / (jnp.maximum(target_power, floor) + eps)
    return error if reduction == "mean" else reduce_samples(error, sample_mask(mask, target), reduction)


def spectral_band(
    pred: Fields,
    target: Fields,
    first: int,
    last: int | None = None,
    *,
    eps: Number = 1e-8,
    floor: Number = 0.0,
    reduction: Reduction = "mean",
    mask: Mask = None,
) -> Float[Array, "*b"]:
    """Return the relative error within a band of wavenumbers: sqrt(E(pred - target) / (max(E(target), floor) + eps)).

    E is the mean square of the Fourier modes in the band, for each sample. Because the error is relative to the band,
    a band with little energy has as much weight as the others.

    Args:
        pred: Predicted fields `(b, *s, c)`.
        target: True fields of the same shape and units.
        first: First wavenumber |k| of the band, rounded, in waves per domain length.
        last: Last wavenumber of the band; None for no upper limit.
        floor: Smallest value of E(target) by which is divided.
        mask: Samples `(b,)` that count.

    Raises:
        ValueError: If the grid resolves no wavenumber of the band, or `mask` is not a mask of samples.
    """
    check_same_shape(pred, target)
    _check_sample_mask(mask)
    error = jnp.asarray(pred, jnp.float32) - jnp.asarray(target, jnp.float32)
    error_energy, target_energy = (
        2.0 * energy_spectrum(x[:, None])[:, 0] for x in (error, jnp.asarray(target, jnp.float32))
    )
    top = error_energy.shape[-1] - 1 if last is None else last
    band = error_energy[:, first : top + 1]
    if band.shape[-1] == 0:
        raise ValueError(
            f"the band starts at wavenumber {first}, the grid ends at {error_energy.shape[-1] - 1}; choose another band"
        )
    channels = target.shape[-1]
    size = target_energy[:, first : top + 1].sum(-1) / channels
    ratio = (band.sum(-1) / channels) / (jnp.maximum(size, floor) + eps)
    return reduce_samples(safe_sqrt(ratio), sample_mask(mask, target), reduction)


def _mean_power(x: Fields, axis: int) -> Float[Array, " b"]:
    """Return the mean of |rfft|^2 along `axis`, for each sample."""
    transform = jnp.fft.rfft(jnp.asarray(x, jnp.float32), axis=axis)
    return (jnp.square(transform.real) + jnp.square(transform.imag)).mean(tuple(range(1, x.ndim)))


def _check_sample_mask(mask: Mask) -> None:
    """Raise ValueError for a mask of points, because a spectrum needs the whole grid."""
    if mask is not None and mask.ndim != 1:
        raise ValueError(f"the mask of points {mask.shape} does not suit a spectral loss; pass a mask of samples (b,)")
