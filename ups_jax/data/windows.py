"""Which windows batch n holds, and how they are augmented: a pure function of (seed, stage, n), drawn with NumPy only.

The whole batch is drawn for all hosts; a host keeps its rows.
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
class Plan:
    """What the draws depend on. `offsets` are the frames of a window after its first, `starts` their distribution."""

    key: tuple[int, int]
    train: Int[np.ndarray, " n"]
    per_trajectory: int
    batch_size: int
    offsets: Int[np.ndarray, " t"]
    starts: Float64[np.ndarray, " s"]
    shape: tuple[int, ...]
    rolled: tuple[bool, ...]
    channels: int
    symmetries: tuple[Symmetry, ...]

    @property
    def epoch_windows(self) -> int:
        """Windows in an epoch: `per_trajectory` of every training trajectory."""
        return len(self.train) * self.per_trajectory

    @cached_property
    def cumulative(self) -> Float64[np.ndarray, " s"]:
        """The distribution function of the first frames."""
        return np.cumsum(self.starts)


@dataclass(frozen=True, eq=False, kw_only=True)
class Draw:
    """The windows of a batch: trajectory and frames, and the map that each undergoes.

    Axes are flipped and rolled and channels get signs, all by their place in the data; then axis i of the result is
    axis `axes[i]` of the data, and its channel i is channel `sources[i]`.
    """

    ids: Int[np.ndarray, " b"]
    frames: Int[np.ndarray, "b t"]
    shifts: Int[np.ndarray, "b d"]
    flips: Bool[np.ndarray, "b d"]
    signs: Float32[np.ndarray, "b c"]
    axes: Int[np.ndarray, "b d"]
    sources: Int[np.ndarray, "b c"]

    def rows(self, process_index: int, process_count: int, count: int = 1) -> Draw:
        """The rows of one host: its part of each of `count` batches, one after the other as the hosts are."""
        if process_count == 1:
            return self
        own = np.arange(len(self.ids)).reshape(count, process_count, -1)[:, process_index].ravel()
        return replace(self, **{item.name: getattr(self, item.name)[own] for item in fields(self)})


def start_distribution(
    change: Float64[np.ndarray, " t"], starts: int, last_context: int, share: float
) -> Float64[np.ndarray, " s"]:
    """Probability of each start frame: `share` in proportion to the change after the context, the rest uniform."""
    weights = change[last_context : last_context + starts]
    total = weights.sum()
    uniform = np.full(starts, 1.0 / starts)
    return (1.0 - share) * uniform + share * weights / total if total > 0 else uniform


def draw(plan: Plan, n: int, count: int = 1) -> Draw:
    """The global batch n, or `count` batches from it on, the rows of one behind those of the other."""
    size, epoch = plan.batch_size, plan.epoch_windows
    first, end = n * size, (n + count) * size
    epochs = range(first // epoch, (end - 1) // epoch + 1)
    order = np.concatenate([_order(plan.key, number, epoch) for number in epochs])
    ids = plan.train[order[first - epochs.start * epoch : end - epochs.start * epoch] % len(plan.train)]
    drawn = [_numbers(plan, number) for number in range(n, n + count)]
    place, shifts, chosen = (np.concatenate(parts, axis=-1) for parts in zip(*drawn, strict=True))
    cumulative = plan.cumulative
    start = np.searchsorted(cumulative, place * cumulative[-1], side="right")
    frames = np.minimum(start, len(plan.starts) - 1)[:, None] + plan.offsets
    return Draw(ids=ids, frames=frames, shifts=np.where(plan.rolled, shifts.T, 0), **_composed(plan, chosen))


def _numbers(plan: Plan, n: int) -> tuple[Float64[np.ndarray, " b"], Int[np.ndarray, "d b"], Bool[np.ndarray, "k b"]]:
    """All that is drawn for batch n: where in their distribution its windows start, shifts, and which symmetries."""
    size, generator = plan.batch_size, _generator(plan, _BATCH, n)
    place = generator.random(size)
    shifts = generator.integers(0, plan.shape, (size, len(plan.shape))).T
    return place, shifts, generator.random((len(plan.symmetries), size)) < 0.5


def _composed(plan: Plan, chosen: Bool[np.ndarray, "k b"]) -> dict[str, np.ndarray]:
    """The symmetries chosen for each row, one after the other, as one map."""
    size = chosen.shape[1]
    flips = np.zeros((size, len(plan.shape)), bool)
    signs = np.ones((size, plan.channels), np.float32)
    axes = np.tile(np.arange(len(plan.shape)), (size, 1))
    sources = np.tile(np.arange(plan.channels), (size, 1))
    for symmetry, drawn in zip(plan.symmetries, chosen, strict=True):
        rows = np.flatnonzero(drawn)
        for axis in symmetry.reflect:
            flips[rows, axes[rows, axis]] ^= True
        for channel in symmetry.negate:
            signs[rows, sources[rows, channel]] *= -1
        for places, swapped in ((axes, symmetry.swap), (sources, symmetry.swap_channels)):
            if swapped:
                first, second = swapped
                places[rows, first], places[rows, second] = places[rows, second], places[rows, first]
    return {"flips": flips, "signs": signs, "axes": axes, "sources": sources}


def augment(windows: Float32[np.ndarray, "b t *s c"], drawn: Draw) -> Float32[np.ndarray, "b t *s c"]:
    """Map each window as drawn."""
    for axis, (shift, flip) in enumerate(zip(drawn.shifts.T, drawn.flips.T, strict=True)):
        if not (shift.any() or flip.any()):
            continue
        points = windows.shape[2 + axis]
        source = np.arange(points) - shift[:, None]
        index = np.where(flip[:, None], -1 - source, source) % points
        shape = [1] * windows.ndim
        shape[0], shape[2 + axis] = index.shape
        windows = np.take_along_axis(windows, index.reshape(shape), axis=2 + axis)
    signs = drawn.signs.reshape(len(windows), *[1] * (windows.ndim - 2), -1)
    windows = windows if (signs == 1).all() else windows * signs
    return _permuted(windows, drawn)


def _permuted(windows: Float32[np.ndarray, "b t *s c"], drawn: Draw) -> Float32[np.ndarray, "b t *s c"]:
    orders = np.concatenate([drawn.axes, drawn.axes.shape[1] + drawn.sources], axis=1)
    kept = np.arange(orders.shape[1])
    if (orders == kept).all():
        return windows
    result = np.empty_like(windows)
    dimensions = drawn.axes.shape[1]
    for order in np.unique(orders, axis=0):
        rows = (orders == order).all(axis=1)
        moved = windows[rows].transpose(0, 1, *(2 + order[:dimensions]), windows.ndim - 1)
        result[rows] = moved[..., order[dimensions:] - dimensions]
    return result


def augment_inputs(inputs: Float32[np.ndarray, "b *s i"], drawn: Draw) -> Float32[np.ndarray, "b *s i"]:
    """Map the given fields of steady solutions as these; signs and swapped channels are the solutions' alone."""
    size, channels = len(inputs), inputs.shape[-1]
    signs, sources = np.ones((size, channels), np.float32), np.tile(np.arange(channels), (size, 1))
    return augment(inputs[:, None], replace(drawn, signs=signs, sources=sources))[:, 0]


@lru_cache(maxsize=4)
def _order(key: tuple[int, int], epoch: int, count: int) -> Int[np.ndarray, " n"]:
    """The order of an epoch's windows, kept for its next batch: drawing it anew was a fifth of a batch's time."""
    order = rng.generator(key, (_EPOCH, epoch)).permutation(count)
    order.flags.writeable = False
    return order


def _generator(plan: Plan, purpose: int, index: int) -> np.random.Generator:
    return rng.generator(plan.key, (purpose, index))
