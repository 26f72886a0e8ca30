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
    """The settings from which the windows of every batch of a stage are drawn.

    Attributes:
        key: Key of the random stream.
        train: Ids of the training trajectories.
        windows_per_trajectory: Windows of each trajectory in an epoch.
        batch_size: Windows of a global batch.
        offsets: Stored frames of a window, relative to its first one.
        start_probabilities: Probability of each first frame.
        shape: Grid points along each axis.
        roll_axes: Whether windows are rolled by random shifts along each axis.
        channels: Number of channels.
        symmetries: Symmetries that are applied at random, each with probability 1/2.
    """

    key: tuple[int, int]
    train: Int[np.ndarray, " n"]
    windows_per_trajectory: int
    batch_size: int
    offsets: Int[np.ndarray, " t"]
    start_probabilities: Float64[np.ndarray, " s"]
    shape: tuple[int, ...]
    roll_axes: tuple[bool, ...]
    channels: int
    symmetries: tuple[Symmetry, ...]

    @property
    def epoch_windows(self) -> int:
        """The number of windows in an epoch."""
        return len(self.train) * self.windows_per_trajectory

    @cached_property
    def cumulative(self) -> Float64[np.ndarray, " s"]:
        """The cumulative distribution of the first frames."""
        return np.cumsum(self.start_probabilities)


@dataclass(frozen=True, eq=False, kw_only=True)
class WindowDraw:
    """The windows of a batch, and the augmentation of each one.

    Augmentation first flips and rolls the axes and multiplies the channels by signs, all indexed as in the data. Then
    it permutes axes and channels.

    Attributes:
        ids: Trajectory of each window.
        frames: Stored frames of each window.
        shifts: Points by which each axis is rolled.
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

    def rows(self, process_index: int, process_count: int, count: int = 1) -> WindowDraw:
        """Return the rows of one host in each of `count` consecutive batches.

        Args:
            process_index: Index of the host.
            process_count: Number of hosts. Each has an equal contiguous slice of every batch.
            count: Number of batches in this draw.
        """
        if process_count == 1:
            return self
        host_rows = np.arange(len(self.ids)).reshape(count, process_count, -1)[:, process_index].ravel()
        return replace(self, **{item.name: getattr(self, item.name)[host_rows] for item in fields(self)})


def start_distribution(
    change: Float64[np.ndarray, " t"], starts: int, last_context: int, share: float
) -> Float64[np.ndarray, " s"]:
    """Return the probability of each frame to be the first frame of a window.

    Args:
        change: Mean relative change of the field after each frame.
        starts: Number of possible first frames.
        last_context: Offset from the first frame of a window to the last frame of its context.
        share: Share of the probability that is proportional to the change after the context; the rest is uniform.
    """
    weights = change[last_context : last_context + starts]
    total = weights.sum()
    uniform = np.full(starts, 1.0 / starts)
    return (1.0 - share) * uniform + share * weights / total if total > 0 else uniform


def draw_windows(plan: WindowPlan, n: int, count: int = 1) -> WindowDraw:
    """Return the windows of the global batches n to n + count - 1, concatenated along the rows."""
    size, epoch = plan.batch_size, plan.epoch_windows
    first, end = n * size, (n + count) * size
    epochs = range(first // epoch, (end - 1) // epoch + 1)
    order = np.concatenate([_epoch_order(plan.key, number, epoch) for number in epochs])
    ids = plan.train[order[first - epochs.start * epoch : end - epochs.start * epoch] % len(plan.train)]
    numbers = [_random_numbers(plan, number) for number in range(n, n + count)]
    uniform, shifts, selected = (np.concatenate(values, axis=-1) for values in zip(*numbers, strict=True))
    cumulative = plan.cumulative
    start = np.searchsorted(cumulative, uniform * cumulative[-1], side="right")
    frames = np.minimum(start, len(plan.start_probabilities) - 1)[:, None] + plan.offsets
    return WindowDraw(
        ids=ids, frames=frames, shifts=np.where(plan.roll_axes, shifts.T, 0), **_compose_symmetries(plan, selected)
    )


def _random_numbers(
    plan: WindowPlan, n: int
) -> tuple[Float64[np.ndarray, " b"], Int[np.ndarray, "d b"], Bool[np.ndarray, "k b"]]:
    """Return the random numbers of batch n: uniform numbers for the first frames, shifts, and symmetries to apply."""
    size, generator = plan.batch_size, rng.philox_generator(plan.key, (_BATCH, n))
    uniform = generator.random(size)
    shifts = generator.integers(0, plan.shape, (size, len(plan.shape))).T
    return uniform, shifts, generator.random((len(plan.symmetries), size)) < 0.5


def _compose_symmetries(plan: WindowPlan, selected: Bool[np.ndarray, "k b"]) -> dict[str, np.ndarray]:
    """Return the composition of the selected symmetries of each row, as fields of `WindowDraw`."""
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
    """Return the windows after the augmentation that was drawn for each of them."""
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
    return _permute(windows, draw)


def _permute(windows: Float32[np.ndarray, "b t *s c"], draw: WindowDraw) -> Float32[np.ndarray, "b t *s c"]:
    """Return the windows, each with its axes and channels in the order that was drawn for it."""
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
    """Return the input fields of steady solutions after the spatial part of the augmentation.

    The drawn signs and channel orders are those of the solution's channels, so they are not applied to inputs.
    """
    size, channels = len(inputs), inputs.shape[-1]
    signs, channel_order = np.ones((size, channels), np.float32), np.tile(np.arange(channels), (size, 1))
    return augment(inputs[:, None], replace(draw, signs=signs, channel_order=channel_order))[:, 0]


@lru_cache(maxsize=4)
def _epoch_order(key: tuple[int, int], epoch: int, count: int) -> Int[np.ndarray, " n"]:
    """Return the random order of an epoch's windows. Drawing it anew for every batch took a fifth of a batch's time."""
    order = rng.philox_generator(key, (_EPOCH, epoch)).permutation(count)
    order.flags.writeable = False
    return order
