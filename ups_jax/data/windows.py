"""The windows of each batch and their augmentation: pure functions of (seed, stage, batch number), with NumPy only.

The whole global batch is drawn on every host; each host then keeps its rows.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from functools import cached_property, lru_cache

import numpy as np
from jaxtyping import Bool, Float32, Float64, Int

from ups_jax.core import rng
from ups_jax.core.task import Symmetry

_EPOCH, _BATCH = 0, 1


@dataclass(frozen=True, eq=False, kw_only=True)
class WindowPlan:
    """The settings by which the windows of one task are drawn in a stage.

    Attributes:
        key: Key of the random stream.
        windows_per_trajectory: Number of windows of each trajectory in an epoch.
        batch_size: Number of windows in a batch, on all hosts together.
        offsets: Stored frames of a window, relative to its first one.
        start_probabilities: Probability that a window starts at each of the stored frames 0, 1, ...
        shape: Number of grid points along each axis.
        roll_axes: Whether windows are rolled by random shifts along each axis.
        channels: Number of channels.
        symmetries: Symmetries that are applied at random, each with probability 1/2.
    """

    key: tuple[int, int]
    train_ids: Int[np.ndarray, " n"]
    windows_per_trajectory: int
    batch_size: int
    offsets: Int[np.ndarray, " t"]
    start_probabilities: Float64[np.ndarray, " s"]
    shape: tuple[int, ...]
    roll_axes: tuple[bool, ...]
    channels: int
    symmetries: tuple[Symmetry, ...]

    @property
    def windows_per_epoch(self) -> int:
        """The number of windows in an epoch."""
        return len(self.train_ids) * self.windows_per_trajectory

    @cached_property
    def start_cdf(self) -> Float64[np.ndarray, " s"]:
        """The cumulative distribution function of the frame at which a window starts."""
        return np.cumsum(self.start_probabilities)


@dataclass(frozen=True, eq=False, kw_only=True)
class WindowDraw:
    """The trajectory, frames and augmentation of each window in one or more batches.

    Augmentation first flips and rolls axes and multiplies channels by signs, then permutes axes and channels.
    `shifts`, `flips` and `signs` refer to the axes and channels before this permutation.

    Attributes:
        ids: Trajectory of each window.
        frames: Indices of the stored frames of each window.
        shifts: Number of points by which each axis is rolled.
        flips: Whether each axis is flipped.
        signs: Factor of each channel, 1 or -1.
        axis_order: Axis i of the result is axis `axis_order[i]` of the data.
        channel_order: Channel i of the result is channel `channel_order[i]` of the data.
    """

    ids: Int[np.ndarray, " b"]
    frames: Int[np.ndarray, "b t"]
    shifts: Int[np.ndarray, "b d"]
    flips: Bool[np.ndarray, "b d"]
    signs: Float32[np.ndarray, "b c"]
    axis_order: Int[np.ndarray, "b d"]
    channel_order: Int[np.ndarray, "b c"]

    def rows_of_host(self, process_index: int, process_count: int, count: int = 1) -> WindowDraw:
        """Return the windows of one host: an equal contiguous slice of each of the `count` batches in this draw."""
        if process_count == 1:
            return self
        host_rows = np.arange(len(self.ids)).reshape(count, process_count, -1)[:, process_index].ravel()
        return replace(self, **{item.name: getattr(self, item.name)[host_rows] for item in fields(self)})


def start_distribution(
    relative_change: Float64[np.ndarray, " t"], starts: int, last_context: int, share: float
) -> Float64[np.ndarray, " s"]:
    """Return the probability that a window starts at each of the first `starts` stored frames.

    Args:
        relative_change: Mean relative change of the field after each stored frame.
        last_context: Offset of the last context frame from the first frame of a window.
        share: Share of the probability that is proportional to the change after the context; the rest is uniform.
    """
    weights = relative_change[last_context : last_context + starts]
    total = weights.sum()
    uniform = np.full(starts, 1.0 / starts)
    return (1.0 - share) * uniform + share * weights / total if total > 0 else uniform


def draw_windows(plan: WindowPlan, n: int, count: int = 1) -> WindowDraw:
    """Draw the windows of the batches n to n + count - 1 for all hosts, concatenated in the order of the batches."""
    size, epoch = plan.batch_size, plan.windows_per_epoch
    first, end = n * size, (n + count) * size
    epochs = range(first // epoch, (end - 1) // epoch + 1)
    order = np.concatenate([_epoch_order(plan.key, number, epoch) for number in epochs])
    ids = plan.train_ids[order[first - epochs.start * epoch : end - epochs.start * epoch] % len(plan.train_ids)]
    numbers = [_random_starts_shifts_and_symmetries(plan, number) for number in range(n, n + count)]
    uniform, shifts, selected = (np.concatenate(values, axis=-1) for values in zip(*numbers, strict=True))
    cumulative = plan.start_cdf
    start = np.searchsorted(cumulative, uniform * cumulative[-1], side="right")
    frames = np.minimum(start, len(plan.start_probabilities) - 1)[:, None] + plan.offsets
    return WindowDraw(
        ids=ids, frames=frames, shifts=np.where(plan.roll_axes, shifts.T, 0), **_compose_symmetries(plan, selected)
    )


def _random_starts_shifts_and_symmetries(
    plan: WindowPlan, n: int
) -> tuple[Float64[np.ndarray, " b"], Int[np.ndarray, "d b"], Bool[np.ndarray, "k b"]]:
    """Return the random draws of batch n: numbers in [0, 1) that select the starts, shifts, and applied symmetries."""
    size, generator = plan.batch_size, rng.philox_generator(plan.key, (_BATCH, n))
    uniform = generator.random(size)
    shifts = generator.integers(0, plan.shape, (size, len(plan.shape))).T
    return uniform, shifts, generator.random((len(plan.symmetries), size)) < 0.5


def _compose_symmetries(plan: WindowPlan, selected: Bool[np.ndarray, "k b"]) -> dict[str, np.ndarray]:
    """Return the flips, signs and orders of `WindowDraw` that compose the symmetries selected for each window."""
    size = selected.shape[1]
    flips = np.zeros((size, len(plan.shape)), bool)
    signs = np.ones((size, plan.channels), np.float32)
    axis_order = np.tile(np.arange(len(plan.shape)), (size, 1))
    channel_order = np.tile(np.arange(plan.channels), (size, 1))
    for symmetry, is_selected in zip(plan.symmetries, selected, strict=True):
        rows = np.flatnonzero(is_selected)
        for axis in symmetry.reflect:
            flips[rows, axis_order[rows, axis]] ^= True
        for channel in symmetry.negate:
            signs[rows, channel_order[rows, channel]] *= -1
        for order, swapped in ((axis_order, symmetry.swap), (channel_order, symmetry.swap_channels)):
            if swapped:
                first, second = swapped
                order[rows, first], order[rows, second] = order[rows, second], order[rows, first]
    return {"flips": flips, "signs": signs, "axis_order": axis_order, "channel_order": channel_order}


def augment(windows: Float32[np.ndarray, "b t *s c"], draw: WindowDraw) -> Float32[np.ndarray, "b t *s c"]:
    """Return the windows, each changed by its shifts, flips, signs and orders in `draw`."""
    for axis, (shift, flip) in enumerate(zip(draw.shifts.T, draw.flips.T, strict=True)):
        if not (shift.any() or flip.any()):
            continue
        points = windows.shape[2 + axis]
        source = np.arange(points) - shift[:, None]
        index = np.where(flip[:, None], -1 - source, source) % points
        shape = [1] * windows.ndim
        shape[0], shape[2 + axis] = index.shape
        windows = np.take_along_axis(windows, index.reshape(shape), axis=2 + axis)
    signs = draw.signs.reshape(len(windows), *[1] * (windows.ndim - 2), -1)
    windows = windows if (signs == 1).all() else windows * signs
    return _permute_axes_and_channels(windows, draw)


def _permute_axes_and_channels(
    windows: Float32[np.ndarray, "b t *s c"], draw: WindowDraw
) -> Float32[np.ndarray, "b t *s c"]:
    """Return the windows with axes and channels permuted by `draw.axis_order` and `draw.channel_order`."""
    orders = np.concatenate([draw.axis_order, draw.axis_order.shape[1] + draw.channel_order], axis=1)
    identity = np.arange(orders.shape[1])
    if (orders == identity).all():
        return windows
    result = np.empty_like(windows)
    dimensions = draw.axis_order.shape[1]
    for order in np.unique(orders, axis=0):
        rows = (orders == order).all(axis=1)
        transposed = windows[rows].transpose(0, 1, *(2 + order[:dimensions]), windows.ndim - 1)
        result[rows] = transposed[..., order[dimensions:] - dimensions]
    return result


def augment_inputs(inputs: Float32[np.ndarray, "b *s i"], draw: WindowDraw) -> Float32[np.ndarray, "b *s i"]:
    """Return the input fields of steady solutions with the spatial part of the augmentation.

    Signs and orders of channels are drawn for the channels of the solution, so they are not applied to input fields.
    """
    size, channels = len(inputs), inputs.shape[-1]
    signs, channel_order = np.ones((size, channels), np.float32), np.tile(np.arange(channels), (size, 1))
    return augment(inputs[:, None], replace(draw, signs=signs, channel_order=channel_order))[:, 0]


@lru_cache(maxsize=4)
def _epoch_order(key: tuple[int, int], epoch: int, count: int) -> Int[np.ndarray, " n"]:
    """Return the indices of an epoch's `count` windows in random order, cached because drawing them takes time."""
    order = rng.philox_generator(key, (_EPOCH, epoch)).permutation(count)
    order.flags.writeable = False
    return order
