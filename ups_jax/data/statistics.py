"""Statistics of the training split, in float64, from the record of a scan."""

from __future__ import annotations

from typing import Literal

import numpy as np
from jaxtyping import Float32, Float64, Int

from ups_jax.core.errors import DataError
from ups_jax.core.task import Statistics
from ups_jax.data.scan import ScanRecord

# A float32 channel whose standard deviation is below this fraction of its rms varies by rounding only.
_CONSTANT = 1e-6
# Smallest rms of a channel. Below 1.2e-38 float32 loses digits, and a field has values that are smaller than its rms.
_SMALLEST = 1e-35


class Moments:
    """Mean, rms and standard deviation of fields over trajectories, and of their changes over `stride` frames.

    Args:
        source_name: Name of the data in messages.
        points: Number of points of each trajectory.
        sums: Sums of each channel over the points of each frame.
        squares: Sums of squares, likewise.
        changes: Sums of squared changes over `stride` frames, likewise.
    """

    def __init__(
        self,
        source_name: str,
        points: Int[np.ndarray, " n"],
        sums: Float64[np.ndarray, "n t c"],
        squares: Float64[np.ndarray, "n t c"],
        changes: Float64[np.ndarray, "n r c"],
    ) -> None:
        self._source_name = source_name
        self._count = int(points.sum()) * sums.shape[1]
        self._pairs = int(points.sum()) * changes.shape[1]
        self._sum, self._squares = sums.sum(axis=(0, 1)), squares.sum(axis=(0, 1))
        self._delta_squares = changes.sum(axis=(0, 1))
        before = squares[:, : changes.shape[1]]
        ratio = np.sqrt(np.divide(changes, before, out=np.zeros_like(before), where=before > 0))
        self._relative_change = ratio.mean(axis=-1).mean(axis=0)

    @staticmethod
    def of_fields(source_name: str, record: ScanRecord, ids: Int[np.ndarray, " m"]) -> Moments:
        """Return the moments of the fields of the trajectories `ids`."""
        selected = record.select(ids)
        return Moments(source_name, selected.points, selected.sums, selected.squares, selected.changes)

    @staticmethod
    def of_inputs(source_name: str, record: ScanRecord, ids: Int[np.ndarray, " m"]) -> Moments:
        """Return the moments of the input fields of the trajectories `ids`."""
        sums, squares = record.input_sums[ids, None], record.input_squares[ids, None]
        return Moments(source_name, record.points[ids], sums, squares, squares[:, :0])

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
        return self._relative_change

    def statistics(self, normalize: Literal["zscore", "rms", "none"], channels: tuple[str, ...]) -> Statistics:
        """Return the statistics that normalise fields and their changes in one model step.

        Raise `DataError` if one of the `channels` is constant, or too small for float32. `normalize` is the value of
        `data.normalize`.
        """
        self._check_range(channels)
        deviations, delta = self.std, np.sqrt(self._delta_squares / self._pairs)
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

        Raise `DataError` if one of the `channels` is constant, or too small for float32.
        """
        self._check_range(channels)
        deviations = self.std
        for name, rms, std in zip(channels, self.rms, deviations, strict=True):
            if std <= _CONSTANT * rms:
                raise DataError(
                    f"{self._source_name}: channel {name} is constant (rms {rms:.3g}); remove it from the task's "
                    "`channels`"
                )
        return self._build_statistics(normalize, deviations)

    def _check_range(self, channels: tuple[str, ...]) -> None:
        """Raise `DataError` if the values of one of the `channels` lose digits in float32 because they are tiny."""
        for name, rms in zip(channels, self.rms, strict=True):
            if 0 < rms < _SMALLEST:
                raise DataError(
                    f"{self._source_name}: the rms of channel {name} is {rms:.3g}, where float32 has few digits; give "
                    f"the field in a unit in which it is above {_SMALLEST:.1g}"
                )

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
