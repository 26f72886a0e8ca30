"""Metrics of fields `(b, t, *s, c)` in physical units: one number per trajectory and time.

Relative metrics (`nrmse`, `vrmse`, `correlation`) are computed per channel and averaged, because channels may have
different units. Absolute metrics (`rmse` and below) run over space and channels at once. `correlation_time` is one
number per trajectory.
"""

from __future__ import annotations

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

# Floor of the denominators of relative metrics, as a share of a channel's standard deviation: smaller targets are
# float32 round-off.
RELATIVE_FLOOR = 1e-6
# Floor in the units of the field, for calls without a task.
ABSOLUTE_FLOOR = 1e-8

# A rollout counts as decorrelated when its correlation with the truth falls below this.
DECORRELATION_THRESHOLD = 0.8

# 1 for a point of a point cloud, 0 for padding; None on a grid.
PointMask = Float[Array | np.ndarray, "b p"] | None


def all_metrics(pred: Fields, target: Fields, task: Task, point_mask: PointMask = None) -> dict[str, PerFrame]:
    """Return the metrics `METRICS`; for a point cloud, only those that need no grid.

    Args:
        task: Task of the fields; its standard deviations set the floor of relative metrics.
        point_mask: 1 for a point, 0 for padding; None on a grid.
    """
    values = _grid_metrics(pred, target, task) if point_mask is None else _point_metrics(pred, target, task, point_mask)
    # A compiled function returns its dict sorted by key; tables show the most important metric first.
    return {name: values[name] for name in METRICS if name in values}


@jax.jit
def rollout_metrics(pred: Fields, target: Fields, point_mask: PointMask = None) -> dict[str, PerFrame]:
    """Return the metrics that only rollouts have: `mae`, `correlation`, and on a grid `spectrum_error_{low,mid,high}`.

    Args:
        point_mask: 1 for a point, 0 for padding; None on a grid.
    """
    spectra = spectrum_error(pred, target) if point_mask is None else {}
    return spectra | {"mae": mae(pred, target, point_mask), "correlation": correlation(pred, target, point_mask)}


def summary(values: Mapping[str, Float[Array | np.ndarray, "b t"]]) -> dict[str, float]:
    """Return the mean of each metric over trajectories and times in float64, but the maximum of `max_error`.

    Non-finite values propagate.
    """
    arrays = {name: np.asarray(value, np.float64) for name, value in values.items()}
    return {name: float(value.max() if name == "max_error" else value.mean()) for name, value in arrays.items()}


def nrmse(pred: Fields, target: Fields, floor: float | Sequence[float] = ABSOLUTE_FLOOR) -> PerFrame:
    """Return rms(error) / max(rms(target), floor), computed over space per channel and averaged over channels.

    If the target is zero, the result is 0 for an exact prediction and otherwise rms(error) / floor, large but finite.

    Args:
        pred: Predicted fields in physical units.
        target: True fields of the same shape and units.
        floor: Smallest denominator in the units of the fields, one number or one per channel.

    References:
        Takamoto et al. 2022 (PDEBench), appendix B, nRMSE.
    """
    axes = _space_axes(target)
    scale = jnp.sqrt(jnp.mean(jnp.square(jnp.asarray(target)), axes))
    return jnp.mean(_channel_rmse(pred, target) / jnp.maximum(scale, _channel_floors(floor, scale)), -1)


def vrmse(pred: Fields, target: Fields, floor: float | Sequence[float] = ABSOLUTE_FLOOR) -> PerFrame:
    """Return rms(error) / max(std(target), floor), computed over space per channel and averaged over channels.

    Predicting the spatial mean of the target scores 1.

    Args:
        pred: Predicted fields in physical units.
        target: True fields of the same shape and units.
        floor: Smallest denominator in the units of the fields, one number or one per channel.

    References:
        Ohana et al. 2024 (The Well), equation 2, without a floor.
    """
    scale = jnp.std(jnp.asarray(target), _space_axes(target))
    return jnp.mean(_channel_rmse(pred, target) / jnp.maximum(scale, _channel_floors(floor, scale)), -1)


def correlation(pred: Fields, target: Fields, point_mask: PointMask = None) -> PerFrame:
    """Return the Pearson correlation over space, per channel, averaged over channels.

    It is 0 for a channel in which either field is constant.

    Args:
        pred: Predicted fields in physical units.
        target: True fields of the same shape and units.
        point_mask: 1 for a point, 0 for padding; None on a grid.
    """
    if point_mask is not None:
        p, q = (field - _masked_mean(field, point_mask) for field in (jnp.asarray(pred), jnp.asarray(target)))
        covariance, *variances = (_masked_mean(product, point_mask)[:, :, 0] for product in (p * q, p**2, q**2))
        return jnp.mean(covariance / jnp.maximum(jnp.sqrt(variances[0] * variances[1]), ABSOLUTE_FLOOR**2), -1)
    axes = _space_axes(target)
    pred, target = (jnp.asarray(field) - jnp.mean(jnp.asarray(field), axes, keepdims=True) for field in (pred, target))
    norms = jnp.sqrt(jnp.mean(jnp.square(pred), axes)) * jnp.sqrt(jnp.mean(jnp.square(target), axes))
    return jnp.mean(jnp.mean(pred * target, axes) / jnp.maximum(norms, ABSOLUTE_FLOOR**2), -1)


@partial(jax.jit, static_argnames=("dt", "threshold"))
def correlation_time(
    correlations: Float[Array | np.ndarray, "b t"], dt: float, threshold: float = DECORRELATION_THRESHOLD
) -> Float[Array, " b"]:
    """Return the time at which the correlation with the truth first falls below a threshold, in the unit of `dt`.

    Time 0 is the last input frame, whose correlation is 1. The time is interpolated linearly between the first frame
    below the threshold and the frame before it. If that first frame is not finite, as after a blow-up, it is the time
    of the frame before. If no frame is below the threshold, it is the length of the rollout.

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
    share = jnp.where(low < threshold, (high - threshold) / jnp.maximum(high - low, ABSOLUTE_FLOOR), 0.0)
    return dt * jnp.where(below.any(1), first + share, float(values.shape[1]))


def rmse(pred: Fields, target: Fields) -> PerFrame:
    """Return the root mean square error over space and channels."""
    return jnp.sqrt(jnp.mean(jnp.square(_channel_rmse(pred, target)), -1))


def mae(pred: Fields, target: Fields, point_mask: PointMask = None) -> PerFrame:
    """Return the mean absolute error over space and channels, which is the CRPS of a deterministic prediction.

    Args:
        point_mask: 1 for a point, 0 for padding; None on a grid.
    """
    if point_mask is not None:
        return jnp.mean(_masked_mean(jnp.abs(_error(pred, target)), point_mask), (2, 3))
    return jnp.mean(jnp.abs(_error(pred, target)), tuple(range(2, target.ndim)))


def max_error(pred: Fields, target: Fields) -> PerFrame:
    """Return the largest absolute error over space and channels."""
    error = _error(pred, target)
    return jnp.max(jnp.abs(error), tuple(range(2, error.ndim)))


def conservation_rmse(pred: Fields, target: Fields, conserved: tuple[int, ...] = ()) -> PerFrame:
    """Return the root mean square over channels of mean_x(pred) - mean_x(target).

    Args:
        conserved: Indices of the channels to include; empty for all channels.
    """
    drift = jnp.mean(_error(pred, target), _space_axes(target))
    if conserved:
        drift = drift[..., list(conserved)]
    return jnp.sqrt(jnp.mean(jnp.square(drift), -1))


def boundary_rmse(pred: Fields, target: Fields) -> PerFrame:
    """Return the root mean square error at the first and last points of every axis (bRMSE of PDEBench).

    A corner point counts once for each face that it belongs to.
    """
    error = jnp.square(_error(pred, target))
    faces = [
        jax.lax.index_in_dim(error, end, axis, keepdims=False).reshape(*error.shape[:2], -1)
        for axis in _space_axes(target)
        for end in (0, -1)
    ]
    return jnp.sqrt(jnp.mean(jnp.concatenate(faces, -1), -1))


def fourier_rmse(pred: Fields, target: Fields) -> dict[str, PerFrame]:
    """Return the error in three bands of wavenumbers as `fourier_rmse_{low,mid,high}`: 0..4, 5..12, and 13 and above.

    The error of a band is sqrt(mean_c sum_{k in band} |F(error)_k|^2) / N. F is the unnormalised Fourier transform over
    all N grid points and k is the rounded length of the wavevector, in waves per domain length. By Parseval's theorem
    low^2 + mid^2 + high^2 = rmse^2. Same unit as the fields.

    References:
        Takamoto et al. 2022 (PDEBench), fRMSE, which averages over the wavenumbers of a band instead of summing.
    """
    shells = 2.0 * energy_spectrum(_error(pred, target)) / target.shape[-1]
    bands = _band_masks(shells.shape[-1])
    return {f"fourier_rmse_{name}": jnp.sqrt(jnp.sum(shells[..., band], -1)) for name, band in bands.items()}


def spectrum_error(pred: Fields, target: Fields) -> dict[str, PerFrame]:
    """Return the relative error of the energy spectrum in three bands, as `spectrum_error_{low,mid,high}`.

    The error of a band is sum_{k in band} |E_pred(k) - E_target(k)| / sum_{k in band} E_target(k), with E as in
    `energy_spectrum` and the bands of `fourier_rmse`. Phases do not matter: a decorrelated rollout scores 0 if it has
    the right energy at every scale, and 1 if it has no energy. The denominator is at least `RELATIVE_FLOOR`^2 times the
    target's total energy, because smaller energies are float32 round-off. A band above the largest wavenumber of the
    grid scores 0.
    """
    _check_shapes(pred, target)
    pred_energy, target_energy = energy_spectrum(pred), energy_spectrum(target)
    floor = RELATIVE_FLOOR**2 * jnp.sum(target_energy, -1) + ABSOLUTE_FLOOR**2
    return {
        f"spectrum_error_{name}": jnp.sum(jnp.abs(pred_energy - target_energy)[..., band], -1)
        / jnp.maximum(jnp.sum(target_energy[..., band], -1), floor)
        for name, band in _band_masks(pred_energy.shape[-1]).items()
    }


def energy_spectrum(fields: Fields) -> Float[Array, "b t k"]:
    """Return the energy spectrum E(k) = 1/2 sum_c sum_{round|q|=k} |F_q|^2 / N^2 in float32.

    F is the unnormalised Fourier transform over all N grid points and q the wavevector, so that
    sum_k E(k) = 1/2 sum_c mean_x(u_c^2). k is in waves per domain length, from 0 to the corner of the Fourier grid.
    """
    axes = _space_axes(fields)
    shape = tuple(fields.shape[axis] for axis in axes)
    shell = _rounded_wavenumbers(shape)
    transform = jnp.fft.fftn(jnp.asarray(fields, jnp.float32), axes=axes, norm="forward")
    power = jnp.sum(jnp.square(transform.real) + jnp.square(transform.imag), -1).reshape(*fields.shape[:2], -1)
    return jnp.zeros((*fields.shape[:2], int(shell.max()) + 1), jnp.float32).at[..., shell].add(0.5 * power)


@partial(jax.jit, static_argnames="task")
def _point_metrics(
    pred: Fields, target: Fields, task: Task, point_mask: Float[Array | np.ndarray, "b p"]
) -> dict[str, PerFrame]:
    """Return `nrmse`, `rmse`, `max_error` and `vrmse` over the points of each cloud, without padding."""
    error, truth = _error(pred, target), jnp.asarray(target)
    mse = _masked_mean(jnp.square(error), point_mask)[:, :, 0]
    mean = _masked_mean(truth, point_mask)
    floor = jnp.asarray([RELATIVE_FLOOR * std for std in task.statistics.std], mse.dtype).reshape(1, 1, -1)

    def relative_rmse(mean_square: Float[Array, "b t c"]) -> PerFrame:
        return jnp.mean(jnp.sqrt(mse) / jnp.maximum(jnp.sqrt(mean_square), floor), -1)

    return {
        "nrmse": relative_rmse(_masked_mean(jnp.square(truth), point_mask)[:, :, 0]),
        "rmse": jnp.sqrt(jnp.mean(mse, -1)),
        "max_error": jnp.max(jnp.where(_broadcast_mask(point_mask), jnp.abs(error), 0.0), (2, 3)),
        "vrmse": relative_rmse(_masked_mean(jnp.square(truth - mean), point_mask)[:, :, 0]),
    }


def _masked_mean(values: Fields, point_mask: Float[Array | np.ndarray, "b p"]) -> Float[Array, "b t 1 c"]:
    """Return the mean over the points of each cloud; values at padding may be non-finite."""
    present = _broadcast_mask(point_mask)
    total = jnp.sum(jnp.where(present, values, 0.0), 2, keepdims=True)
    return total / jnp.maximum(jnp.sum(present, 2, keepdims=True), 1)


def _broadcast_mask(point_mask: Float[Array | np.ndarray, "b p"]) -> Bool[Array, "b 1 p 1"]:
    """Return the mask as booleans, in a shape that broadcasts with fields."""
    return (jnp.asarray(point_mask) > 0)[:, None, :, None]


@partial(jax.jit, static_argnames="task")
def _grid_metrics(pred: Fields, target: Fields, task: Task) -> dict[str, PerFrame]:
    """Return the metrics of fields on a grid, computed by one compiled function."""
    floor = tuple(RELATIVE_FLOOR * std for std in task.statistics.std)
    return {
        "nrmse": nrmse(pred, target, floor),
        "rmse": rmse(pred, target),
        "max_error": max_error(pred, target),
        "vrmse": vrmse(pred, target, floor),
        "conservation_rmse": conservation_rmse(pred, target, task.conserved),
        "boundary_rmse": boundary_rmse(pred, target),
        **fourier_rmse(pred, target),
    }


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


def _error(pred: Fields, target: Fields) -> Fields:
    """Return pred - target after checking that the shapes are equal."""
    _check_shapes(pred, target)
    return jnp.asarray(pred) - jnp.asarray(target)


def _channel_rmse(pred: Fields, target: Fields) -> Float[Array, "b t c"]:
    """Return the root mean square error over space for each channel."""
    return jnp.sqrt(jnp.mean(jnp.square(_error(pred, target)), _space_axes(target)))


def _channel_floors(floor: float | Sequence[float], like: Float[Array, "b t c"]) -> Float[Array, "1 1 c"]:
    """Return the floor as one value per channel, with the type and the number of channels of `like`."""
    return jnp.broadcast_to(jnp.asarray(floor, like.dtype).reshape(1, 1, -1), (1, 1, like.shape[-1]))
