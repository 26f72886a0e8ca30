"""Metrics of fields `(b, t, *s, c)` in physical units: one number per trajectory and time.

Relative metrics (`nrmse`, `vrmse`, `correlation`, `spectrum_error`) are computed per channel and averaged, because
channels may have different units. Absolute metrics (`rmse` and below) run over space and channels at once.
`correlation_time` is one number per trajectory. Values are squared only after a division by a power of two near their
size, so that no unit of the fields makes the squares leave the range of float32.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from ups_jax.core.task import Task
from ups_jax.metrics import METRICS
from ups_jax.metrics.bands import LOW_BAND, MID_BAND

Fields = Float[Array | np.ndarray, "b t *s c"]
PerFrame = Float[Array, "b t"]
# Typical size of each channel in the units of the fields; None for the standard deviation of each trajectory.
Scale = float | Sequence[float] | Float[Array | np.ndarray, " c"] | None

# Floor of the denominators of relative metrics, as a share of a channel's scale: smaller targets are float32 round-off.
RELATIVE_FLOOR = 1e-6
# Regularisation of the variance in `vrmse`, as a share of the squared scale.
VARIANCE_EPSILON = 1e-7
# Floor of the energy of a band in `spectrum_error`, as a share of the energy of all wavenumbers above 0.
BAND_FLOOR = 1e-6

# A rollout counts as decorrelated when its correlation with the truth falls below this.
DECORRELATION_THRESHOLD = 0.8

# 1 for a point of a point cloud, 0 for padding; None on a grid.
PointMask = Float[Array | np.ndarray, "b p"] | None


def all_metrics(pred: Fields, target: Fields, task: Task, point_mask: PointMask = None) -> dict[str, PerFrame]:
    """Return the metrics `METRICS`; for a point cloud, only those that need no grid.

    Args:
        task: Task of the fields; `scale` of its statistics sets the floor of relative metrics.
        point_mask: 1 for a point, 0 for padding; None on a grid.
    """
    values = _all_metrics(pred, target, task, point_mask)
    # A compiled function returns its dict sorted by key; tables show the most important metric first.
    return {name: values[name] for name in METRICS if name in values}


@partial(jax.jit, static_argnames="task")
def rollout_metrics(
    pred: Fields, target: Fields, task: Task, point_mask: PointMask = None
) -> dict[str, Float[Array, "b t ..."]]:
    """Return further metrics: `mae`, `correlation`, and on a grid `spectrum_error_{low,mid,high}`.

    The entry `channel_nrmse` has the shape (b, t, c).

    Args:
        task: Task of the fields; `scale` of its statistics sets the floor of relative metrics.
        point_mask: 1 for a point, 0 for padding; None on a grid.
    """
    scale = task.statistics.scale
    spectra = spectrum_error(pred, target, scale) if point_mask is None else {}
    return {
        "channel_nrmse": channel_nrmse(pred, target, scale, point_mask),
        "mae": mae(pred, target, point_mask),
        "correlation": correlation(pred, target, point_mask),
        **spectra,
    }


def summary(values: Mapping[str, Float[Array | np.ndarray, "b t"]]) -> dict[str, float]:
    """Return the mean of each metric over trajectories and times in float64, but the maximum of `max_error`.

    Non-finite values propagate.
    """
    arrays = {name: np.asarray(value, np.float64) for name, value in values.items()}
    return {name: float(value.max() if name == "max_error" else value.mean()) for name, value in arrays.items()}


def nrmse(pred: Fields, target: Fields, scale: Scale = None, point_mask: PointMask = None) -> PerFrame:
    """Return rms(error) / max(rms(target), floor), computed over space per channel and averaged over channels.

    The floor is `RELATIVE_FLOOR` times `scale`. If the target is zero, the result is 0 for an exact prediction and
    otherwise rms(error) / floor, large but finite.

    Args:
        pred: Predicted fields in physical units.
        target: True fields of the same shape and units.
        scale: Typical size in the units of the fields, one number or one per channel, such as the training standard
            deviation; None for the standard deviation of each trajectory over times and space.
        point_mask: 1 for a point, 0 for padding; None on a grid.

    References:
        Takamoto et al. 2022 (PDEBench), appendix B, nRMSE.
    """
    return jnp.mean(channel_nrmse(pred, target, scale, point_mask), -1)


def channel_nrmse(
    pred: Fields, target: Fields, scale: Scale = None, point_mask: PointMask = None
) -> Float[Array, "b t c"]:
    """Return the terms of `nrmse`, one per channel; the arguments are those of `nrmse`."""
    size, unit = _size_and_unit(scale, pred, target, point_mask)
    error, truth = (_space_rms(field, point_mask) / unit for field in (_error(pred, target), target))
    return error / jnp.maximum(truth, RELATIVE_FLOOR * (size / unit))


def vrmse(pred: Fields, target: Fields, scale: Scale = None, point_mask: PointMask = None) -> PerFrame:
    """Return sqrt(mean(error^2) / (var(target) + epsilon)), computed over space per channel and averaged over channels.

    The variance over the n points is unbiased, with the denominator n - 1; predicting the spatial mean of the target
    scores sqrt((n - 1) / n). The epsilon is `VARIANCE_EPSILON` times the square of `scale`.

    Args:
        pred: Predicted fields in physical units.
        target: True fields of the same shape and units.
        scale: As in `nrmse`.
        point_mask: 1 for a point, 0 for padding; None on a grid.

    References:
        Ohana et al. 2024 (The Well), equation 2, as in the code of the_well: with an epsilon of 1e-7 in the squared
        unit of the field. It is equal to that code's value if `scale` is 1; here the epsilon follows the unit.
    """
    size, unit = _size_and_unit(scale, pred, target, point_mask)
    count = math.prod(target.shape[2:-1]) if point_mask is None else jnp.sum(_broadcast_mask(point_mask), 2)
    deviation, error = (
        _space_rms(field, point_mask) / unit for field in (_centred(target, point_mask), _error(pred, target))
    )
    variance = jnp.square(deviation) * (count / jnp.maximum(count - 1, 1))
    return jnp.mean(error / jnp.sqrt(variance + VARIANCE_EPSILON * jnp.square(size / unit)), -1)


def correlation(pred: Fields, target: Fields, point_mask: PointMask = None) -> PerFrame:
    """Return the Pearson correlation over space, per channel, averaged over channels.

    It is 0 for a channel in which either field is constant.

    Args:
        pred: Predicted fields in physical units.
        target: True fields of the same shape and units.
        point_mask: 1 for a point, 0 for padding; None on a grid.
    """
    _check_shapes(pred, target)
    p, q = (
        field / _power_of_two(_space_max(field, point_mask))
        for field in (_centred(pred, point_mask), _centred(target, point_mask))
    )
    covariance, p_variance, q_variance = (
        jnp.squeeze(_space_mean(product, point_mask), _space_axes(target))
        for product in (p * q, jnp.square(p), jnp.square(q))
    )
    norms = jnp.sqrt(p_variance) * jnp.sqrt(q_variance)
    return jnp.mean(covariance / jnp.where(norms == 0, 1.0, norms), -1)


@partial(jax.jit, static_argnames=("dt", "threshold"))
def correlation_time(
    correlations: Float[Array | np.ndarray, "b t"], dt: float, threshold: float = DECORRELATION_THRESHOLD
) -> Float[Array, " b"]:
    """Return the time at which the correlation with the truth first falls below a threshold, in the unit of `dt`.

    Time 0 is the last input frame, whose correlation is 1. The time is interpolated linearly between the first frame
    below the threshold and the frame before it. If that first frame is not finite, as after a blow-up, the result is
    the time of the frame before it. If no frame is below the threshold, the result is the length of the rollout.

    Args:
        correlations: Correlation of each predicted frame.
        dt: Physical time between two frames.
        threshold: Correlation below which a rollout counts as decorrelated.
    """
    values = jnp.asarray(correlations)
    previous = jnp.concatenate([jnp.ones_like(values[:, :1]), values[:, :-1]], 1)
    below = ~(values >= threshold)
    first = jnp.argmax(below, 1)
    high, low = (jnp.take_along_axis(rows, first[:, None], 1)[:, 0] for rows in (previous, values))
    share = jnp.where(low < threshold, (high - threshold) / jnp.where(low < threshold, high - low, 1.0), 0.0)
    return dt * jnp.where(below.any(1), first + share, float(values.shape[1]))


def rmse(pred: Fields, target: Fields, point_mask: PointMask = None) -> PerFrame:
    """Return the root mean square error over space and channels.

    Args:
        point_mask: 1 for a point, 0 for padding; None on a grid.
    """
    error, unit = _scaled_error(pred, target, point_mask)
    return unit * jnp.sqrt(jnp.mean(_space_mean(jnp.square(error), point_mask), tuple(range(2, error.ndim))))


def mae(pred: Fields, target: Fields, point_mask: PointMask = None) -> PerFrame:
    """Return the mean absolute error over space and channels, which is the CRPS of a deterministic prediction.

    Args:
        point_mask: 1 for a point, 0 for padding; None on a grid.
    """
    error, unit = _scaled_error(pred, target, point_mask)
    return unit * jnp.mean(_space_mean(jnp.abs(error), point_mask), tuple(range(2, error.ndim)))


def max_error(pred: Fields, target: Fields, point_mask: PointMask = None) -> PerFrame:
    """Return the largest absolute error over space and channels.

    Args:
        point_mask: 1 for a point, 0 for padding; None on a grid.
    """
    return jnp.max(_space_max(_error(pred, target), point_mask), tuple(range(2, target.ndim)))


def conservation_rmse(pred: Fields, target: Fields, conserved: tuple[int, ...] = ()) -> PerFrame:
    """Return the root mean square over channels of mean_x(pred) - mean_x(target).

    Args:
        conserved: Indices of the channels to include; empty for all channels.
    """
    channels = list(conserved or range(target.shape[-1]))
    error, unit = _scaled_error(pred[..., channels], target[..., channels])
    drift = _space_mean(error, None)
    return unit * jnp.sqrt(jnp.mean(jnp.square(drift), tuple(range(2, drift.ndim))))


def boundary_rmse(pred: Fields, target: Fields) -> PerFrame:
    """Return the root mean square error at the first and last points of every axis (bRMSE of PDEBench).

    A corner point counts once for each face that it belongs to.
    """
    scaled, unit = _scaled_error(pred, target)
    error = jnp.square(scaled)
    faces = [
        jax.lax.index_in_dim(error, end, axis, keepdims=False).reshape(*error.shape[:2], -1)
        for axis in _space_axes(target)
        for end in (0, -1)
    ]
    return unit * jnp.sqrt(jnp.mean(jnp.concatenate(faces, -1), -1))


def fourier_rmse(pred: Fields, target: Fields) -> dict[str, PerFrame]:
    """Return the error in three bands of wavenumbers as `fourier_rmse_{low,mid,high}`: 0..3, 4..11, and 12 and above.

    The error of a band is sqrt(mean_c sum_{k in band} |F(error)_k|^2) / N. F is the unnormalised Fourier transform over
    all N grid points and k is the rounded length of the wavevector, in waves per domain length. By Parseval's theorem
    low^2 + mid^2 + high^2 = rmse^2. Same unit as the fields.

    References:
        Takamoto et al. 2022 (PDEBench), fRMSE, has the same bands, but another sum: it averages |F(error)_k| over the
        wavenumbers of a band, with |F(error)_k|^2 averaged over the samples; it counts wavevectors with non-negative
        components only, rounds their length down, leaves out wavenumbers from half the number of points on, and
        multiplies by the length of the domain.
    """
    error, unit = _scaled_error(pred, target)
    shells = 2.0 * energy_spectrum(error) / target.shape[-1]
    bands = _band_masks(shells.shape[-1])
    return {f"fourier_rmse_{name}": unit * jnp.sqrt(jnp.sum(shells[..., band], -1)) for name, band in bands.items()}


def spectrum_error(pred: Fields, target: Fields, scale: Scale = None) -> dict[str, PerFrame]:
    """Return the relative error of the energy spectrum in three bands, as `spectrum_error_{low,mid,high}`.

    The error of a band is sum_{k in band} |E_pred(k) - E_target(k)| / sum_{k in band} E_target(k), averaged over
    channels, with E of one channel as in `energy_spectrum` and the bands of `fourier_rmse`. Phases do not matter: a
    decorrelated rollout scores 0 if it has the right energy at every scale, and 1 if it has no energy.

    The denominator is at least `BAND_FLOOR` times the target's energy at all wavenumbers above 0, so that a band that
    holds only round-off does not give a huge number. For a target that is nearly constant, it is also at least
    `RELATIVE_FLOOR`^2 times the target's total energy and times half the square of `scale`. A band above the largest
    wavenumber of the grid scores 0.

    Args:
        pred: Predicted fields in physical units.
        target: True fields of the same shape and units.
        scale: As in `nrmse`.
    """
    _check_shapes(pred, target)
    size, unit = _size_and_unit(scale, pred, target, None)
    unit_of_fields = unit.reshape(*unit.shape[:2], *[1] * (target.ndim - 3), -1)
    pred_energy, target_energy = (
        _channel_spectra(jnp.asarray(field, jnp.float32) / unit_of_fields) for field in (pred, target)
    )
    total = jnp.maximum(jnp.sum(target_energy, -1), 0.5 * jnp.square(size / unit))
    floor = jnp.maximum(BAND_FLOOR * jnp.sum(target_energy[..., 1:], -1), RELATIVE_FLOOR**2 * total)
    return {
        f"spectrum_error_{name}": jnp.mean(
            jnp.sum(jnp.abs(pred_energy - target_energy)[..., band], -1)
            / jnp.maximum(jnp.sum(target_energy[..., band], -1), floor),
            -1,
        )
        for name, band in _band_masks(pred_energy.shape[-1]).items()
    }


def energy_spectrum(fields: Fields) -> Float[Array, "b t k"]:
    """Return the energy spectrum E(k) = 1/2 sum_c sum_{round|q|=k} |F_q|^2 / N^2 in float32.

    F is the unnormalised Fourier transform over all N grid points and q the wavevector, so that
    sum_k E(k) = 1/2 sum_c mean_x(u_c^2). k is in waves per domain length, from 0 to the corner of the Fourier grid.

    Args:
        fields: Fields whose squares float32 can represent; divide others by their size.
    """
    return _sum_over_shells(jnp.sum(_fourier_power(fields), -1), fields)


def _channel_spectra(fields: Fields) -> Float[Array, "b t c k"]:
    """Return the energy spectrum of each channel, as in `energy_spectrum`."""
    return _sum_over_shells(jnp.moveaxis(_fourier_power(fields), -1, 2), fields)


def _fourier_power(fields: Fields) -> Float[Array, "b t n c"]:
    """Return |F_q|^2 / N^2 of every wavevector q and channel, with the wavevectors flattened."""
    transform = jnp.fft.fftn(jnp.asarray(fields, jnp.float32), axes=_space_axes(fields), norm="forward")
    power = jnp.square(transform.real) + jnp.square(transform.imag)
    return power.reshape(*fields.shape[:2], -1, fields.shape[-1])


def _sum_over_shells(power: Float[Array, "... n"], fields: Fields) -> Float[Array, "... k"]:
    """Return half the sum of `power` over the wavevectors of each rounded length on the Fourier grid of `fields`."""
    shell = _rounded_wavenumbers(tuple(fields.shape[axis] for axis in _space_axes(fields)))
    return jnp.zeros((*power.shape[:-1], int(shell.max()) + 1), jnp.float32).at[..., shell].add(0.5 * power)


@partial(jax.jit, static_argnames="task")
def _all_metrics(pred: Fields, target: Fields, task: Task, point_mask: PointMask) -> dict[str, PerFrame]:
    """Return the metrics `METRICS` that the fields can have, computed by one compiled function."""
    scale = task.statistics.scale
    values = {
        "nrmse": nrmse(pred, target, scale, point_mask),
        "rmse": rmse(pred, target, point_mask),
        "max_error": max_error(pred, target, point_mask),
        "vrmse": vrmse(pred, target, scale, point_mask),
    }
    if point_mask is not None:
        return values
    return values | {
        "conservation_rmse": conservation_rmse(pred, target, task.conserved),
        "boundary_rmse": boundary_rmse(pred, target),
        **fourier_rmse(pred, target),
    }


def _size_and_unit(
    scale: Scale, pred: Fields, target: Fields, point_mask: PointMask
) -> tuple[Float[Array, "#b 1 c"], Float[Array, "#b 1 c"]]:
    """Return the scale of each channel, and the largest power of two up to it; by default of each trajectory."""
    channels = target.shape[-1]
    if scale is not None:
        size = jnp.broadcast_to(jnp.asarray(scale, jnp.float32).reshape(1, 1, -1), (1, 1, channels))
        return size, _power_of_two(size)
    axes = (1, *_space_axes(target))
    # The deviations of a zero target are those of the prediction.
    target_max, pred_max = (
        jnp.max(_space_max(field, point_mask), axes, keepdims=True)
        for field in (jnp.asarray(target), jnp.asarray(pred))
    )
    largest = jnp.where(target_max > 0, target_max, pred_max)
    unit = _power_of_two(largest)
    # Relative to the first point of the first frame, so that a large offset costs no digits.
    first = _first_point(jnp.asarray(target), point_mask)[:, :1]
    deviation = (jnp.asarray(target) - first) / unit
    mean = jnp.mean(_space_mean(deviation, point_mask), 1, keepdims=True)
    variance = jnp.mean(_space_mean(jnp.square(deviation - mean), point_mask), axes, keepdims=True)
    size = (unit * jnp.maximum(jnp.sqrt(variance), RELATIVE_FLOOR)).reshape(-1, 1, channels)
    return size, _power_of_two(size)


def _power_of_two(values: Float[Array, "*n"]) -> Float[Array, "*n"]:
    """Return the largest power of two up to each positive value; 1 for values that are zero or not finite.

    A division by it changes only the exponent of a float, so it adds no rounding error.
    """
    exponents = jax.lax.bitcast_convert_type(jnp.asarray(values, jnp.float32), jnp.int32) & 0x7F800000
    powers = jax.lax.bitcast_convert_type(exponents, jnp.float32)
    return jnp.where((powers > 0) & jnp.isfinite(powers), powers, 1.0)


def root_mean_square(values: Float[Array, "..."], axes: tuple[int, ...]) -> Float[Array, "..."]:
    """Return the root mean square over `axes`; no square leaves the range of float32."""
    unit = _power_of_two(jnp.max(jnp.abs(values), axes, keepdims=True))
    return jnp.squeeze(unit, axes) * jnp.sqrt(jnp.mean(jnp.square(values / unit), axes))


def _space_rms(fields: Fields, point_mask: PointMask) -> Float[Array, "b t c"]:
    """Return the root mean square over space for each channel; no square leaves the range of float32."""
    unit = _power_of_two(_space_max(fields, point_mask))
    mean_square = _space_mean(jnp.square(jnp.asarray(fields) / unit), point_mask)
    return jnp.squeeze(unit * jnp.sqrt(mean_square), _space_axes(fields))


def _scaled_error(
    pred: Fields, target: Fields, point_mask: PointMask = None
) -> tuple[Float[Array, "b t *s c"], PerFrame]:
    """Return pred - target of each frame divided by a power of two near its largest value, and this power."""
    error = _error(pred, target)
    others = tuple(range(2, error.ndim))
    unit = _power_of_two(jnp.max(_space_max(error, point_mask), others))
    return error / jnp.expand_dims(unit, others), unit


def _centred(fields: Fields, point_mask: PointMask) -> Float[Array, "b t *s c"]:
    """Return the fields minus their spatial mean; exactly zero where a field is constant.

    The first point is subtracted first: the float32 mean of 101325 + u would be off by more than a small u.
    """
    shifted = jnp.asarray(fields) - _first_point(jnp.asarray(fields), point_mask)
    unit = _power_of_two(_space_max(shifted, point_mask))
    return shifted - unit * _space_mean(shifted / unit, point_mask)


def _first_point(fields: Float[Array, "b t *s c"], point_mask: PointMask) -> Float[Array, "b t *_s c"]:
    """Return the value at the first point that is not padding, with space axes of length 1."""
    if point_mask is None:
        return fields[:, :, *[slice(1)] * (fields.ndim - 3)]
    first = jnp.argmax(jnp.asarray(point_mask) > 0, 1)[:, None, None, None]
    return jnp.take_along_axis(fields, first, 2)


def _space_mean(fields: Fields, point_mask: PointMask) -> Float[Array, "b t *_s c"]:
    """Return the mean over space, with space axes of length 1; values at padding may be non-finite."""
    if point_mask is None:
        return jnp.mean(jnp.asarray(fields), _space_axes(fields), keepdims=True)
    present = _broadcast_mask(point_mask)
    total = jnp.sum(jnp.where(present, fields, 0.0), 2, keepdims=True)
    return total / jnp.maximum(jnp.sum(present, 2, keepdims=True), 1)


def _space_max(fields: Fields, point_mask: PointMask) -> Float[Array, "b t *_s c"]:
    """Return the largest absolute value over space, with space axes of length 1; values at padding do not count."""
    magnitude = jnp.abs(jnp.asarray(fields))
    if point_mask is not None:
        magnitude = jnp.where(_broadcast_mask(point_mask), magnitude, 0.0)
    return jnp.max(magnitude, _space_axes(fields), keepdims=True)


def _broadcast_mask(point_mask: Float[Array | np.ndarray, "b p"]) -> Bool[Array, "b 1 p 1"]:
    """Return the mask as booleans, in a shape that broadcasts with fields."""
    return (jnp.asarray(point_mask) > 0)[:, None, :, None]


def _band_masks(wavenumber_count: int) -> dict[str, np.ndarray]:
    """Return, for each band, a mask of the wavenumbers 0 to `wavenumber_count` - 1 that belong to the band."""
    wavenumber = np.arange(wavenumber_count)
    return {
        "low": wavenumber <= LOW_BAND[1],
        "mid": (wavenumber >= MID_BAND[0]) & (wavenumber <= MID_BAND[1]),
        "high": wavenumber > MID_BAND[1],
    }


def _rounded_wavenumbers(shape: tuple[int, ...]) -> np.ndarray:
    """Return the rounded length of the wavevector at every point of the Fourier grid of `shape`, flattened."""
    squares = [np.square(np.fft.fftfreq(size, 1.0 / size)) for size in shape]
    return np.rint(np.sqrt(sum(np.meshgrid(*squares, indexing="ij")))).astype(int).ravel()


def _space_axes(fields: Fields) -> tuple[int, ...]:
    """Return the indices of the space axes of `fields`."""
    return tuple(range(2, fields.ndim - 1))


def _check_shapes(pred: Fields, target: Fields) -> None:
    """Raise ValueError if prediction and target differ in shape: broadcasting would give a plausible wrong number."""
    if pred.shape != target.shape:
        raise ValueError(f"the prediction has shape {pred.shape}, the target has {target.shape}; pass equal shapes")


def _error(pred: Fields, target: Fields) -> Float[Array, "b t *s c"]:
    """Return pred - target after checking that the shapes are equal."""
    _check_shapes(pred, target)
    return jnp.asarray(pred) - jnp.asarray(target)
