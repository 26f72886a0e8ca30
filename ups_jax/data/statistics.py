"""Statistics of the training split, accumulated in float64 over chunks of trajectories."""

from __future__ import annotations

from typing import Literal

import numpy as np
from jaxtyping import Float, Float32, Float64

from ups_jax.core.errors import DataError
from ups_jax.core.task import Statistics

# A float32 channel whose standard deviation is below this fraction of its rms varies by rounding only.
_CONSTANT = 1e-6


class Moments:
    """An accumulator of mean, rms and standard deviation of fields, and of their changes over `stride` frames.

    Args:
        source_name: Name of the data in messages.
        frames: Number of stored frames in a trajectory.
        channels: Number of channels.
        stride: Model step in stored frames.
    """

    def __init__(self, source_name: str, frames: int, channels: int, stride: int) -> None:
        self._source_name = source_name
        self._stride = stride
        self._count = 0
        self._trajectories = 0
        self._sum, self._squares, self._delta_squares = np.zeros((3, channels))
        self._change = np.zeros(max(0, frames - stride))

    def update(self, fields: Float[np.ndarray, "n t *s c"], mask: Float[np.ndarray, "n *s"] | None = None) -> None:
        """Add the fields of further trajectories to the statistics.

        Args:
            fields: Fields, which must be 0 where `mask` is 0.
            mask: 1 for points that count, 0 for padding; all points count by default.
        """
        exact = fields.astype(np.float64)
        space = tuple(range(2, exact.ndim - 1))
        delta = exact[:, self._stride :] - exact[:, : -self._stride]
        squares, delta_squares = (exact**2).sum(axis=space), (delta**2).sum(axis=space)
        self._count += exact[..., 0].size if mask is None else int(mask.sum()) * exact.shape[1]
        self._trajectories += len(exact)
        self._sum += exact.sum(axis=tuple(range(exact.ndim - 1)))
        self._squares += squares.sum(axis=(0, 1))
        self._delta_squares += delta_squares.sum(axis=(0, 1))
        before = squares[:, : -self._stride]
        ratio = np.sqrt(np.divide(delta_squares, before, out=np.zeros_like(before), where=before > 0))
        self._change += ratio.mean(axis=-1).sum(axis=0)

    @property
    def rms(self) -> Float64[np.ndarray, " c"]:
        """The root mean square of each channel."""
        return np.sqrt(self._squares / self._count)

    @property
    def mean(self) -> Float64[np.ndarray, " c"]:
        """The mean of each channel."""
        return self._sum / self._count

    @property
    def std(self) -> Float64[np.ndarray, " c"]:
        """The standard deviation of each channel."""
        return np.sqrt(np.maximum(self._squares / self._count - (self._sum / self._count) ** 2, 0.0))

    @property
    def relative_change(self) -> Float64[np.ndarray, " t"]:
        """The mean of ||u[t + stride] - u[t]|| / ||u[t]|| over trajectories and channels, for each frame t."""
        return self._change / self._trajectories

    def statistics(self, normalize: Literal["zscore", "rms", "none"], channels: tuple[str, ...]) -> Statistics:
        """Return the statistics that normalise fields and their changes in one model step.

        Raise `DataError` if one of the `channels` is constant. `normalize` is the value of `data.normalize`.
        """
        frames = len(self._change)
        pairs = self._count * frames // (frames + self._stride)
        deviations, delta = self.std, np.sqrt(self._delta_squares / pairs)
        for name, rms, std, change in zip(channels, self.rms, deviations, delta, strict=True):
            if change <= _CONSTANT * rms or (normalize == "zscore" and std <= _CONSTANT * rms):
                problem = "does not change in time" if std > _CONSTANT * rms else "is constant"
                raise DataError(
                    f"{self._source_name}: channel {name} {problem} "
                    f"(rms {rms:.3g}, std {std:.3g}, rms change per step {change:.3g}); remove it from the task's "
                    "`channels`"
                )
        return self._build_statistics(normalize, delta)

    def steady_statistics(self, normalize: Literal["zscore", "rms", "none"], channels: tuple[str, ...]) -> Statistics:
        """Return the statistics of steady solutions, in which `delta_std` is the standard deviation of the field.

        Raise `DataError` if one of the `channels` is constant.
        """
        deviations = self.std
        for name, rms, std in zip(channels, self.rms, deviations, strict=True):
            if std <= _CONSTANT * rms:
                raise DataError(
                    f"{self._source_name}: channel {name} is constant (rms {rms:.3g}); remove it from the task's "
                    "`channels`"
                )
        return self._build_statistics(normalize, deviations)

    def _build_statistics(
        self, normalize: Literal["zscore", "rms", "none"], delta_std: Float64[np.ndarray, " c"]
    ) -> Statistics:
        """Return the statistics that a method of normalisation uses; for `none`, mean 0 and standard deviation 1."""
        mean, scale = self._sum / self._count, self.std
        mean, std = {
            "zscore": (mean, scale),
            "rms": (np.zeros_like(mean), self.rms),
            "none": (np.zeros_like(mean), np.ones_like(mean)),
        }[normalize]
        return Statistics(
            mean=tuple(mean.tolist()),
            std=tuple(std.tolist()),
            delta_std=tuple(delta_std.tolist()),
            scale=tuple(scale.tolist()),
        )


def coefficient_mean_and_std(values: Float32[np.ndarray, " n"], scale: str) -> tuple[float, float]:
    """Return the mean and standard deviation of a coefficient on its scale, `linear` or `log10`.

    Without values, the result is (0, 1). If all values are equal, the standard deviation is replaced by the absolute
    value of the mean (`nonzero_std`), and on the scale `log10`, on which a change of unit is a shift, by 1.
    """
    if not len(values):
        return 0.0, 1.0
    if scale == "log10":
        logarithms = np.log10(values.astype(np.float64))
        mean, std = float(logarithms.mean()), float(logarithms.std())
        return mean, std if std > _CONSTANT else 1.0
    exact = values.astype(np.float64)
    mean, std = exact.mean(keepdims=True), exact.std(keepdims=True)
    return mean.item(), nonzero_std(mean, std).item()


def nonzero_std(mean: Float64[np.ndarray, "*c"], std: Float64[np.ndarray, "*c"]) -> Float64[np.ndarray, "*c"]:
    """Return the standard deviation `std` of values, or a scale to use instead if the values are constant.

    This scale is the absolute value of `mean`, or 1 if the values are 0. In another unit, the result is therefore the
    same multiple of the values.
    """
    level = np.abs(mean)
    return np.where(std > _CONSTANT * level, std, np.where(level > 0, level, 1.0))
