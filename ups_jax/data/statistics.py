"""Statistics of the training split, accumulated in float64 over chunks of trajectories."""

from __future__ import annotations

from typing import Literal

import numpy as np
from jaxtyping import Float, Float32, Float64

from ups_jax.core.errors import DataError
from ups_jax.core.task import Statistics

# Below this share of its rms a float32 channel varies by rounding only.
_CONSTANT = 1e-6


class Moments:
    """Per channel: moments of the field and of its difference over `stride` frames; per frame: its relative change."""

    def __init__(self, name: str, frames: int, channels: int, stride: int) -> None:
        self._name = name
        self._stride = stride
        self._count = 0
        self._trajectories = 0
        self._sum, self._squares, self._delta_squares = np.zeros((3, channels))
        self._change = np.zeros(max(0, frames - stride))

    def update(self, fields: Float[np.ndarray, "n t *s c"], mask: Float[np.ndarray, "n *s"] | None = None) -> None:
        """Take in training trajectories; where a mask is given, fields are 0 at the points that it leaves out."""
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
        """Root mean square of each channel."""
        return np.sqrt(self._squares / self._count)

    @property
    def mean(self) -> Float64[np.ndarray, " c"]:
        """Mean of each channel."""
        return self._sum / self._count

    @property
    def spread(self) -> Float64[np.ndarray, " c"]:
        """Standard deviation of each channel."""
        return self._spread()

    @property
    def change(self) -> Float64[np.ndarray, " t"]:
        """Mean over trajectories of ||u[t + stride] - u[t]|| / ||u[t]||, for every frame t that has a successor."""
        return self._change / self._trajectories

    def statistics(self, normalize: Literal["zscore", "rms", "none"], channels: tuple[str, ...]) -> Statistics:
        """Mean and std that the normaliser uses, and the rms difference. Raises `DataError` for a constant one."""
        frames = len(self._change)
        pairs = self._count * frames // (frames + self._stride)
        spread, delta = self._spread(), np.sqrt(self._delta_squares / pairs)
        for name, rms, std, change in zip(channels, self.rms, spread, delta, strict=True):
            if change <= _CONSTANT * rms or (normalize == "zscore" and std <= _CONSTANT * rms):
                what = "does not change in time" if std > _CONSTANT * rms else "is constant"
                raise DataError(
                    f"{self._name}: channel {name} {what} "
                    f"(rms {rms:.3g}, std {std:.3g}, rms change of a step {change:.3g}); leave it out of the file"
                )
        return self._normaliser(normalize, delta)

    def steady_statistics(self, normalize: Literal["zscore", "rms", "none"], channels: tuple[str, ...]) -> Statistics:
        """The same of solutions without time: `delta_std` is their std, the rms difference from the mean."""
        spread = self._spread()
        for name, rms, std in zip(channels, self.rms, spread, strict=True):
            if std <= _CONSTANT * rms:
                raise DataError(f"{self._name}: channel {name} is constant (rms {rms:.3g}); leave it out of the file")
        return self._normaliser(normalize, spread)

    def _spread(self) -> Float64[np.ndarray, " c"]:
        return np.sqrt(np.maximum(self._squares / self._count - (self._sum / self._count) ** 2, 0.0))

    def _normaliser(self, normalize: Literal["zscore", "rms", "none"], delta: Float64[np.ndarray, " c"]) -> Statistics:
        mean = self._sum / self._count
        mean, std = {
            "zscore": (mean, self._spread()),
            "rms": (np.zeros_like(mean), self.rms),
            "none": (np.zeros_like(mean), np.ones_like(mean)),
        }[normalize]
        return Statistics(mean=tuple(mean.tolist()), std=tuple(std.tolist()), delta_std=tuple(delta.tolist()))


def coefficient_moments(values: Float32[np.ndarray, " n"], scale: str) -> tuple[float, float]:
    """Mean and std of the training trajectories' values on `scale`; std 1 where they are all the same or none."""
    if not len(values):
        return 0.0, 1.0
    scaled = np.log10(values.astype(np.float64)) if scale == "log10" else values.astype(np.float64)
    mean, std = float(scaled.mean()), float(scaled.std())
    return mean, std if std > _CONSTANT * max(1.0, abs(mean)) else 1.0
