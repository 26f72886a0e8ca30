"""Do the dynamics commute with a declared symmetry? A local law of a frame's change is fitted, then tried mirrored.

The law is a ridge regression on a point's neighbourhood: linear terms, each also times every coefficient, and products
with the point's own values. Fitted on some trajectories, it must do as well on others after the symmetry as before it.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Float64, Int

from ups_jax.config import TaskConfig
from ups_jax.core.errors import DataError
from ups_jax.core.task import Symmetry
from ups_jax.data.sources.base import Source, read_all

_TRAJECTORIES = 32
_BYTES = 256 * 2**20
_POINTS = 12_000
_RADIUS = {1: 4, 2: 2, 3: 1}
_RIDGE = 1e-6
# A law that leaves most of the change unexplained cannot tell a broken symmetry from its own error.
_INFORMATIVE = 0.6
_WORSE_RATIO, _WORSE_SUM = 1.5, 0.05


def check(
    task: TaskConfig,
    source: Source,
    symmetries: Sequence[Symmetry],
    periodic: Sequence[bool],
    train: Int[np.ndarray, " m"],
    coefficients: Float64[np.ndarray, "n p"],
) -> Iterator[str]:
    """Raise `DataError` for a symmetry that the data break; a note for one that could not be tried.

    `coefficients` belong to all trajectories of the source, on any scale.
    """
    if not symmetries:
        return
    bytes_each = 8 * source.frames * source.channels * int(np.prod(source.grid.shape))
    ids = train[: max(2, min(_TRAJECTORIES, _BYTES // bytes_each))]
    if len(ids) < 2:
        yield f"{task.name}: the symmetries could not be checked with {len(ids)} training trajectory"
        return
    fields = read_all(source, ids).astype(np.float64)
    scale = np.sqrt(np.mean(fields**2, axis=tuple(range(fields.ndim - 1))))
    fields /= np.where(scale > 0, scale, 1.0)
    values = coefficients[ids]
    values = (values - values.mean(axis=0)) / np.where(values.std(axis=0) > 0, values.std(axis=0), 1.0)
    half = len(ids) // 2
    generator = np.random.default_rng(0)
    law = _fit(*_samples(fields[:half], values[:half], periodic, generator))
    held_out, held_values = fields[half:], values[half:]
    plain = _residual(law, *_samples(held_out, held_values, periodic, np.random.default_rng(1)))
    if plain > _INFORMATIVE:
        yield (
            f"{task.name}: the declared symmetries could not be checked on the data (a local law explains only "
            f"{1 - plain:.0%} of the change of a frame)"
        )
        return
    for number, symmetry in enumerate(symmetries):
        moved = mirrored(held_out, symmetry)
        residual = _residual(law, *_samples(moved, held_values, periodic, np.random.default_rng(1)))
        if residual > _WORSE_RATIO * plain + _WORSE_SUM:
            raise DataError(
                f"{source.name}: the data do not have symmetry {number} of data.tasks.{task.name}.symmetries: a law "
                f"that misses {plain:.2g} of a frame's change misses {residual:.2g} after the symmetry; take it out"
            )


def mirrored(fields: Float64[np.ndarray, "n t *s c"], symmetry: Symmetry) -> Float64[np.ndarray, "n t *s c"]:
    """The fields after the symmetry."""
    sign = np.ones(fields.shape[-1])
    sign[list(symmetry.negate)] = -1.0
    result = np.flip(fields, axis=tuple(2 + axis for axis in symmetry.reflect)) * sign
    if symmetry.swap:
        result = np.swapaxes(result, *(2 + axis for axis in symmetry.swap))
    if symmetry.swap_channels:
        order = np.arange(fields.shape[-1])
        order[list(symmetry.swap_channels)] = symmetry.swap_channels[::-1]
        result = result[..., order]
    return result


def _samples(
    fields: Float64[np.ndarray, "n t *s c"],
    coefficients: Float64[np.ndarray, "n p"],
    periodic: Sequence[bool],
    generator: np.random.Generator,
) -> tuple[Float64[np.ndarray, "m f"], Float64[np.ndarray, "m c"]]:
    """Features and change of a frame at random points; the stencil wraps on periodic axes only."""
    count, frames, *shape, channels = fields.shape
    radius = [min(_RADIUS[len(shape)], (points - 1) // 2) for points in shape]
    size = min(_POINTS, count * (frames - 1) * int(np.prod(shape)))
    row, time = generator.integers(0, count, size), generator.integers(0, frames - 1, size)
    centre = [
        generator.integers(0 if wraps else reach, points if wraps else points - reach, size)
        for points, reach, wraps in zip(shape, radius, periodic, strict=True)
    ]
    offsets = itertools.product(*(range(-reach, reach + 1) for reach in radius))
    near = np.stack(
        [
            fields[(row, time, *((c + o) % points for c, o, points in zip(centre, offset, shape, strict=True)))]
            for offset in offsets
        ],
        axis=1,
    ).reshape(size, -1)
    own = fields[(row, time, *centre)]
    linear = [near, *(near * coefficients[row, index, None] for index in range(coefficients.shape[1]))]
    products = [near * own[:, channel, None] for channel in range(channels)]
    features = np.concatenate([np.ones((size, 1)), *linear, *products], axis=1)
    return features, fields[(row, time + 1, *centre)] - own


def _fit(features: Float64[np.ndarray, "m f"], change: Float64[np.ndarray, "m c"]) -> Float64[np.ndarray, "f c"]:
    gram = features.T @ features
    gram[np.diag_indices_from(gram)] += _RIDGE * np.trace(gram) / len(gram)
    return np.linalg.solve(gram, features.T @ change)


def _residual(
    law: Float64[np.ndarray, "f c"], features: Float64[np.ndarray, "m f"], change: Float64[np.ndarray, "m c"]
) -> float:
    total = np.linalg.norm(change)
    return float(np.linalg.norm(features @ law - change) / total) if total > 0 else 0.0
