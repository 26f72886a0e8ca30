"""Typical sizes of the training fields, in which loss terms are measured, from a sample of the training split."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from jaxtyping import Float, Float64, Int

from ups_jax.core.task import LossScales, Statistics
from ups_jax.data.sources.base import Grid, Source, frame_counts
from ups_jax.metrics.bands import LOW_BAND, MID_BAND

# Size of the sample, and its least number of frames. The largest numbers of trajectories and of frames of each.
_BYTES = 16 * 2**20
_MIN_FRAMES = 16
_TRAJECTORIES = 256


def channel_scales(
    mean: Float64[np.ndarray, " c"], std: Float64[np.ndarray, " c"], statistics: Statistics
) -> LossScales:
    """Return the scales that follow from the moments of the channels alone, as a point cloud has them.

    Args:
        mean: Mean of each channel over the training split, in physical units.
        std: Standard deviation of each channel, likewise.
        statistics: Statistics by which the fields are normalised.
    """
    centre = (mean - np.asarray(statistics.mean)) / np.asarray(statistics.std)
    deviation = std / np.asarray(statistics.std)
    return LossScales(
        mean=tuple(centre.tolist()), std=tuple(deviation.tolist()), square=float(np.mean(centre**2 + deviation**2))
    )


def grid_scales(
    source: Source,
    train_ids: Int[np.ndarray, " m"],
    periodic: Sequence[bool],
    channels: LossScales,
    statistics: Statistics,
) -> LossScales:
    """Return the scales of fields on a grid: those of the channels, of their gradients and of their Fourier modes.

    Gradients and modes are averaged over an evenly spaced sample of trajectories and frames of the training split.

    Args:
        periodic: Whether each axis is periodic.
        channels: Scales that follow from the moments of the channels, from `channel_scales`.
        statistics: Statistics by which the fields are normalised.
    """
    grid: Grid = source.grid
    frame_bytes = 4 * source.channels * math.prod(grid.shape)
    frames = max(_MIN_FRAMES, _BYTES // frame_bytes)
    count = min(len(train_ids), frames, _TRAJECTORIES)
    ids = train_ids[np.linspace(0, len(train_ids) - 1, count).round().astype(int)]
    stored_frames = int(frame_counts(source)[ids[0]])
    stride = -(-stored_frames // max(1, min(stored_frames, frames // count)))
    gradient, spectrum = 0.0, np.zeros(1)
    # One trajectory at a time: the sample in float64 and its transforms would need many times its size.
    for row, index in enumerate(ids):
        # Another first frame for each trajectory, so that the sample has frames of all times.
        times = np.arange(row * stride // count, stored_frames, stride)[None]
        fields = source.read(np.array([index]), times)[0]
        normalised = (fields.astype(np.float64) - np.asarray(statistics.mean)) / np.asarray(statistics.std)
        gradient += _mean_square_gradient(normalised, grid, periodic) / count
        spectrum = spectrum + _mean_spectrum(normalised) / count
    low, mid, high = (float(part.sum()) for part in np.split(spectrum, (LOW_BAND[1] + 1, MID_BAND[1] + 1)))
    return replace(channels, gradient=gradient, bands=(low, mid, high))


def _mean_square_gradient(fields: Float64[np.ndarray, "t *s c"], grid: Grid, periodic: Sequence[bool]) -> float:
    """Return the sum over axes of the mean square of forward differences, as the loss term `h1` has it."""
    length = math.prod(
        (size * step) ** (1 / len(grid.shape)) for size, step in zip(grid.shape, grid.spacing, strict=True)
    )
    total = 0.0
    for axis, (step, wraps) in enumerate(zip(grid.spacing, periodic, strict=True), start=1):
        difference = np.roll(fields, -1, axis) - fields if wraps else np.diff(fields, axis=axis)
        total += float(np.mean(difference**2)) * (length / step) ** 2 if difference.size else 0.0
    return total


def _mean_spectrum(fields: Float64[np.ndarray, "t *s c"]) -> Float[np.ndarray, " k"]:
    """Return the mean square of the Fourier modes with each rounded wavenumber |k|, over frames and channels."""
    shape = fields.shape[1:-1]
    numbers = [np.fft.fftfreq(size, 1 / size) for size in shape]
    shells = np.rint(np.sqrt(sum(k**2 for k in np.meshgrid(*numbers, indexing="ij")))).astype(int)
    transform = np.fft.fftn(fields, axes=tuple(range(1, fields.ndim - 1)), norm="forward")
    power = (transform.real**2 + transform.imag**2).mean(axis=(0, -1))
    return np.bincount(shells.ravel(), weights=power.ravel())
