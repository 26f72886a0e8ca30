"""Metrics of physical fields `(b, t, *s, c)`: one number per trajectory and time, pure functions without a model.

`correlation_time` alone is one number per trajectory, of the correlations of a whole rollout.

Channels with different units never add up in a relative metric: `nrmse`, `vrmse` and `correlation` are taken per
channel and averaged. Absolute metrics (`rmse` and below) are root mean squares over space and channels together.
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

Fields = Float[Array | np.ndarray, "b t *s c"]
PerFrame = Float[Array, "b t"]

# Share of a channel's standard deviation below which a target counts as zero: float32 round-off of the field itself.
RELATIVE_FLOOR = 1e-6
# The same where no task gives a scale, in the field's own units.
ABSOLUTE_FLOOR = 1e-8

LOW_BAND = (0, 4)
MID_BAND = (5, 12)

# Correlation with the truth below which a rollout counts as lost.
DECORRELATION_THRESHOLD = 0.8


Points = Float[Array | np.ndarray, "b p"] | None


def all_metrics(pred: Fields, target: Fields, task: Task, points: Points = None) -> dict[str, PerFrame]:
    """Every metric of the evaluation contract, `METRICS`, in physical units; relative ones have the task's floor.

    Of a set of points those that need no grid, over the points that the mask `points` has.
    """
    values = _all_metrics(pred, target, task) if points is None else _point_metrics(pred, target, task, points)
    # A compiled function gives its dict back sorted; tables show the headline first.
    return {name: values[name] for name in METRICS if name in values}


@jax.jit
def rollout_metrics(pred: Fields, target: Fields, points: Points = None) -> dict[str, PerFrame]:
    """What rollouts are scored by besides `METRICS`: `mae`, `correlation`, and on a grid `spectrum_error_{band}`."""
    spectra = spectrum_error(pred, target) if points is None else {}
    return spectra | {"mae": mae(pred, target, points), "correlation": correlation(pred, target, points)}


def summary(values: Mapping[str, Float[Array | np.ndarray, "b t"]]) -> dict[str, float]:
    """Mean over trajectories and times in float64, of `max_error` the maximum. Non-finite values stay non-finite."""
    arrays = {name: np.asarray(value, np.float64) for name, value in values.items()}
    return {name: float(value.max() if name == "max_error" else value.mean()) for name, value in arrays.items()}


def nrmse(pred: Fields, target: Fields, floor: float | Sequence[float] = ABSOLUTE_FLOOR) -> PerFrame:
    """rms(error) / max(rms(target), floor) over space, per channel, then the mean over channels (PDEBench's nRMSE).

    A zero target gives rms(error) / floor: 0 for an exact prediction, otherwise large but finite. `floor` is in the
    units of the field, one number or one a channel. Source: Takamoto et al. 2022, appendix B.
    """
    axes = _space(target)
    scale = jnp.sqrt(jnp.mean(jnp.square(jnp.asarray(target)), axes))
    return jnp.mean(_channel_rmse(pred, target) / jnp.maximum(scale, _per_channel(floor, scale)), -1)


def vrmse(pred: Fields, target: Fields, floor: float | Sequence[float] = ABSOLUTE_FLOOR) -> PerFrame:
    """rms(error) / max(std of the target over space, floor), per channel, then the mean over channels.

    1 is what the spatial mean scores. Source: The Well (Ohana et al. 2024), equation 2; the floor is ours.
    """
    scale = jnp.std(jnp.asarray(target), _space(target))
    return jnp.mean(_channel_rmse(pred, target) / jnp.maximum(scale, _per_channel(floor, scale)), -1)


def correlation(pred: Fields, target: Fields, points: Points = None) -> PerFrame:
    """Pearson correlation over space, per channel, then the mean over channels; 0 where either field is constant."""
    if points is not None:
        ours, theirs = (field - _mean_of(field, points) for field in (jnp.asarray(pred), jnp.asarray(target)))
        both, *own = (_mean_of(product, points)[:, :, 0] for product in (ours * theirs, ours**2, theirs**2))
        return jnp.mean(both / jnp.maximum(jnp.sqrt(own[0] * own[1]), ABSOLUTE_FLOOR**2), -1)
    axes = _space(target)
    pred, target = (jnp.asarray(field) - jnp.mean(jnp.asarray(field), axes, keepdims=True) for field in (pred, target))
    norms = jnp.sqrt(jnp.mean(jnp.square(pred), axes)) * jnp.sqrt(jnp.mean(jnp.square(target), axes))
    return jnp.mean(jnp.mean(pred * target, axes) / jnp.maximum(norms, ABSOLUTE_FLOOR**2), -1)


@partial(jax.jit, static_argnames=("dt", "threshold"))
def correlation_time(
    correlations: Float[Array | np.ndarray, "b t"], dt: float, threshold: float = DECORRELATION_THRESHOLD
) -> Float[Array, " b"]:
    """Time from the last given frame until the correlation of the frames after it falls below `threshold`.

    `correlations` are those of the frames that follow, `dt` apart; at the given frame it is 1. In the unit of `dt`,
    linear between the first frame below and the one before. The whole horizon where it never falls; the time of the
    frame before where the first one below is not finite, as of a prediction that has blown up.
    """
    values = jnp.asarray(correlations)
    before = jnp.concatenate([jnp.ones_like(values[:, :1]), values[:, :-1]], 1)
    below = ~(values >= threshold)
    first = jnp.argmax(below, 1)
    high, low = (jnp.take_along_axis(rows, first[:, None], 1)[:, 0] for rows in (before, values))
    share = jnp.where(low < threshold, (high - threshold) / jnp.maximum(high - low, ABSOLUTE_FLOOR), 0.0)
    return dt * jnp.where(below.any(1), first + share, float(values.shape[1]))


def rmse(pred: Fields, target: Fields) -> PerFrame:
    """Root of the mean squared error over space and channels."""
    return jnp.sqrt(jnp.mean(jnp.square(_channel_rmse(pred, target)), -1))


def mae(pred: Fields, target: Fields, points: Points = None) -> PerFrame:
    """Mean absolute error over space and channels: the CRPS of a prediction without a distribution."""
    if points is not None:
        return jnp.mean(_mean_of(jnp.abs(_error(pred, target)), points), (2, 3))
    return jnp.mean(jnp.abs(_error(pred, target)), tuple(range(2, target.ndim)))


def max_error(pred: Fields, target: Fields) -> PerFrame:
    """Largest absolute error over space and channels."""
    error = _error(pred, target)
    return jnp.max(jnp.abs(error), tuple(range(2, error.ndim)))


def conservation_rmse(pred: Fields, target: Fields, conserved: tuple[int, ...] = ()) -> PerFrame:
    """Root mean square over channels of mean_x(pred) - mean_x(target); of the `conserved` channels if there are any."""
    drift = jnp.mean(_error(pred, target), _space(target))
    if conserved:
        drift = drift[..., list(conserved)]
    return jnp.sqrt(jnp.mean(jnp.square(drift), -1))


def boundary_rmse(pred: Fields, target: Fields) -> PerFrame:
    """Root mean square error on the first and last points of every axis (PDEBench's bRMSE).

    A corner belongs to every face that meets there and counts once for each.
    """
    error = jnp.square(_error(pred, target))
    faces = [
        jax.lax.index_in_dim(error, end, axis, keepdims=False).reshape(*error.shape[:2], -1)
        for axis in _space(target)
        for end in (0, -1)
    ]
    return jnp.sqrt(jnp.mean(jnp.concatenate(faces, -1), -1))


def fourier_rmse(pred: Fields, target: Fields) -> dict[str, PerFrame]:
    """The error in the wavenumber shells low 0..4, mid 5..12, high 13.. as `fourier_rmse_{low,mid,high}`.

    band = sqrt(mean_c sum_{k in band} |F(error)_k|^2) / N with the unnormalised transform F over all N grid points and
    k = |(k_1, .., k_d)| rounded, in waves per domain length. By Parseval low^2 + mid^2 + high^2 = rmse^2.
    The bands are PDEBench's fRMSE; that one averages over the wavenumbers of a band instead of summing.
    """
    shells = 2.0 * energy_spectrum(_error(pred, target)) / target.shape[-1]
    bands = _bands(shells.shape[-1])
    return {f"fourier_rmse_{name}": jnp.sqrt(jnp.sum(shells[..., band], -1)) for name, band in bands.items()}


def spectrum_error(pred: Fields, target: Fields) -> dict[str, PerFrame]:
    """sum_{k in band} |E_pred(k) - E_target(k)| / sum_{k in band} E_target(k), as `spectrum_error_{low,mid,high}`.

    Bands as in `fourier_rmse`, E as in `energy_spectrum`: phases do not matter, so that a rollout that has lost the
    truth still scores 0 where it has the right energy at every scale, and 1 where it has none. A band in which the
    target has less than a share `RELATIVE_FLOOR`^2 of its energy, float32 round-off, counts as having that share; one
    beyond the grid's wavenumbers scores 0.
    """
    _check_shapes(pred, target)
    ours, theirs = energy_spectrum(pred), energy_spectrum(target)
    floor = RELATIVE_FLOOR**2 * jnp.sum(theirs, -1) + ABSOLUTE_FLOOR**2
    return {
        f"spectrum_error_{name}": jnp.sum(jnp.abs(ours - theirs)[..., band], -1)
        / jnp.maximum(jnp.sum(theirs[..., band], -1), floor)
        for name, band in _bands(ours.shape[-1]).items()
    }


def energy_spectrum(fields: Fields) -> Float[Array, "b t k"]:
    """E(k) = 1/2 sum_c sum_{round|k|=k} |F_k|^2 / N^2, so that sum_k E(k) = 1/2 sum_c mean_x(u_c^2). In float32.

    k counts waves per domain length, from 0 to the corner of the Fourier grid.
    """
    axes = _space(fields)
    shape = tuple(fields.shape[axis] for axis in axes)
    shell = _shells(shape)
    transform = jnp.fft.fftn(jnp.asarray(fields, jnp.float32), axes=axes, norm="forward")
    power = jnp.sum(jnp.square(transform.real) + jnp.square(transform.imag), -1).reshape(*fields.shape[:2], -1)
    return jnp.zeros((*fields.shape[:2], int(shell.max()) + 1), jnp.float32).at[..., shell].add(0.5 * power)


@partial(jax.jit, static_argnames="task")
def _point_metrics(
    pred: Fields, target: Fields, task: Task, points: Float[Array | np.ndarray, "b p"]
) -> dict[str, PerFrame]:
    """`nrmse`, `rmse`, `max_error` and `vrmse` over the points that are there."""
    error, truth = _error(pred, target), jnp.asarray(target)
    mse = _mean_of(jnp.square(error), points)[:, :, 0]
    mean = _mean_of(truth, points)
    floor = jnp.asarray([RELATIVE_FLOOR * std for std in task.statistics.std], mse.dtype).reshape(1, 1, -1)

    def relative(squares: Float[Array, "b t c"]) -> PerFrame:
        return jnp.mean(jnp.sqrt(mse) / jnp.maximum(jnp.sqrt(squares), floor), -1)

    return {
        "nrmse": relative(_mean_of(jnp.square(truth), points)[:, :, 0]),
        "rmse": jnp.sqrt(jnp.mean(mse, -1)),
        "max_error": jnp.max(jnp.where(_there(points), jnp.abs(error), 0.0), (2, 3)),
        "vrmse": relative(_mean_of(jnp.square(truth - mean), points)[:, :, 0]),
    }


def _mean_of(values: Fields, points: Float[Array | np.ndarray, "b p"]) -> Float[Array, "b t 1 c"]:
    """The mean over the points that are there, whatever stands at the others."""
    there = _there(points)
    total = jnp.sum(jnp.where(there, values, 0.0), 2, keepdims=True)
    return total / jnp.maximum(jnp.sum(there, 2, keepdims=True), 1)


def _there(points: Float[Array | np.ndarray, "b p"]) -> Bool[Array, "b 1 p 1"]:
    return (jnp.asarray(points) > 0)[:, None, :, None]


@partial(jax.jit, static_argnames="task")
def _all_metrics(pred: Fields, target: Fields, task: Task) -> dict[str, PerFrame]:
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


def _bands(count: int) -> dict[str, np.ndarray]:
    """Which of the first `count` wavenumbers each band holds."""
    wavenumber = np.arange(count)
    return {
        "low": wavenumber <= LOW_BAND[1],
        "mid": (wavenumber >= MID_BAND[0]) & (wavenumber <= MID_BAND[1]),
        "high": wavenumber > MID_BAND[1],
    }


def _shells(shape: tuple[int, ...]) -> np.ndarray:
    """Rounded radial wavenumber of every point of the Fourier grid, flattened."""
    squares = [np.square(np.fft.fftfreq(size, 1.0 / size)) for size in shape]
    return np.rint(np.sqrt(sum(np.meshgrid(*squares, indexing="ij")))).astype(int).ravel()


def _space(fields: Fields) -> tuple[int, ...]:
    return tuple(range(2, fields.ndim - 1))


def _check_shapes(pred: Fields, target: Fields) -> None:
    # Without this check a singleton axis would broadcast into a wrong but plausible number.
    if pred.shape != target.shape:
        raise ValueError(f"prediction {pred.shape} and target {target.shape} differ in shape")


def _error(pred: Fields, target: Fields) -> Fields:
    _check_shapes(pred, target)
    return jnp.asarray(pred) - jnp.asarray(target)


def _channel_rmse(pred: Fields, target: Fields) -> Float[Array, "b t c"]:
    return jnp.sqrt(jnp.mean(jnp.square(_error(pred, target)), _space(target)))


def _per_channel(floor: float | Sequence[float], like: Float[Array, "b t c"]) -> Float[Array, "1 1 c"]:
    return jnp.broadcast_to(jnp.asarray(floor, like.dtype).reshape(1, 1, -1), (1, 1, like.shape[-1]))
