"""A test of whether the dynamics in the data commute with the declared symmetries.

On half of the trajectories, ridge regression fits a local law, which predicts the change of a point to the next frame
from the values in its neighbourhood, and from their products with each coefficient and with each channel at the point.
If a symmetry holds, applying it to the other half of the trajectories hardly changes the error of the law on them.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Float64, Int

from ups_jax.config import TaskConfig
from ups_jax.core.errors import DataError
from ups_jax.core.task import Symmetry
from ups_jax.data.sources.base import Source, read_trajectories

# Largest numbers of trajectories, bytes and points that the test uses.
_TRAJECTORIES = 32
_BYTES = 64 * 2**20
_POINTS = 12_000
# Radius of the neighbourhood for one, two and three space axes.
_RADIUS = {1: 4, 2: 2, 3: 1}
_RIDGE = 1e-6
# A law with a larger relative error than this is too poor to detect a broken symmetry.
_INFORMATIVE = 0.6
# The data break a symmetry if the error after it exceeds _WORSE_RATIO times the error before, plus _WORSE_SUM.
_WORSE_RATIO, _WORSE_SUM = 1.5, 0.05


def check_symmetries(
    task_cfg: TaskConfig,
    source: Source,
    symmetries: Sequence[Symmetry],
    periodic: Sequence[bool],
    train_ids: Int[np.ndarray, " m"],
    coefficients: Float64[np.ndarray, "n p"],
    *,
    first_index: int = 0,
) -> Iterator[str]:
    """Test symmetries on training trajectories; yield a note if the data do not suffice for the test.

    Args:
        task_cfg: The task, for messages.
        periodic: Whether each axis is periodic.
        coefficients: PDE coefficients of all trajectories of the source, on any scale.
        first_index: Index of `symmetries[0]` in the configuration, for messages.

    Raises:
        DataError: The data break a symmetry.
    """
    if not symmetries:
        return
    trajectory_bytes = 8 * source.frames * source.channels * int(np.prod(source.grid.shape))
    ids = train_ids[: max(2, min(_TRAJECTORIES, _BYTES // trajectory_bytes))]
    if len(ids) < 2:
        yield (
            f"{task_cfg.name}: the declared symmetries were not tested on the data, because the test needs 2 or more "
            f"training trajectories (there is {len(ids)})"
        )
        return
    fields = read_trajectories(source, ids).astype(np.float64)
    scale = np.sqrt(np.mean(fields**2, axis=tuple(range(fields.ndim - 1))))
    fields /= np.where(scale > 0, scale, 1.0)
    values = coefficients[ids]
    values = (values - values.mean(axis=0)) / np.where(values.std(axis=0) > 0, values.std(axis=0), 1.0)
    half = len(ids) // 2
    generator = np.random.default_rng(0)
    law = _fit_law(*_sample_features_and_changes(fields[:half], values[:half], periodic, generator))
    test_fields, test_values = fields[half:], values[half:]
    error_before = _relative_error(
        law, *_sample_features_and_changes(test_fields, test_values, periodic, np.random.default_rng(1))
    )
    if error_before > _INFORMATIVE:
        yield (
            f"{task_cfg.name}: the declared symmetries were not tested on the data (the fitted local law explains only "
            f"{1 - error_before:.0%} of the change of a frame)"
        )
        return
    for number, symmetry in enumerate(symmetries, first_index):
        mapped = apply_symmetry(test_fields, symmetry)
        error_after = _relative_error(
            law, *_sample_features_and_changes(mapped, test_values, periodic, np.random.default_rng(1))
        )
        if error_after > _WORSE_RATIO * error_before + _WORSE_SUM:
            raise DataError(
                f"{source.name}: the data break the symmetry `data.tasks.{task_cfg.name}.symmetries.{number}` (the "
                f"relative error of a fitted local law is {error_before:.2g} before and {error_after:.2g} after the "
                "symmetry is applied); remove the symmetry"
            )


def apply_symmetry(fields: Float64[np.ndarray, "n t *s c"], symmetry: Symmetry) -> Float64[np.ndarray, "n t *s c"]:
    """Return the fields with a symmetry applied: reflect axes, negate channels, swap two axes, swap two channels."""
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


def _sample_features_and_changes(
    fields: Float64[np.ndarray, "n t *s c"],
    coefficients: Float64[np.ndarray, "n p"],
    periodic: Sequence[bool],
    generator: np.random.Generator,
) -> tuple[Float64[np.ndarray, "m f"], Float64[np.ndarray, "m c"]]:
    """Return the features of the law at random points, and the changes of the fields there to the next frame.

    No point is drawn so close to the end of an axis that is not periodic that its neighbourhood would not fit.
    """
    count, frames, *shape, channels = fields.shape
    radius = [min(_RADIUS[len(shape)], (points - 1) // 2) for points in shape]
    size = min(_POINTS, count * (frames - 1) * int(np.prod(shape)))
    row, time = generator.integers(0, count, size), generator.integers(0, frames - 1, size)
    centre = [
        generator.integers(0 if wraps else reach, points if wraps else points - reach, size)
        for points, reach, wraps in zip(shape, radius, periodic, strict=True)
    ]
    offsets = itertools.product(*(range(-reach, reach + 1) for reach in radius))
    neighbours = np.stack(
        [
            fields[(row, time, *((c + o) % points for c, o, points in zip(centre, offset, shape, strict=True)))]
            for offset in offsets
        ],
        axis=1,
    ).reshape(size, -1)
    at_centre = fields[(row, time, *centre)]
    linear = [neighbours, *(neighbours * coefficients[row, index, None] for index in range(coefficients.shape[1]))]
    products = [neighbours * at_centre[:, channel, None] for channel in range(channels)]
    features = np.concatenate([np.ones((size, 1)), *linear, *products], axis=1)
    return features, fields[(row, time + 1, *centre)] - at_centre


def _fit_law(features: Float64[np.ndarray, "m f"], change: Float64[np.ndarray, "m c"]) -> Float64[np.ndarray, "f c"]:
    """Return the weights of the local law, from a ridge regression of the change on the features."""
    gram = features.T @ features
    gram[np.diag_indices_from(gram)] += _RIDGE * np.trace(gram) / len(gram)
    return np.linalg.solve(gram, features.T @ change)


def _relative_error(
    law: Float64[np.ndarray, "f c"], features: Float64[np.ndarray, "m f"], change: Float64[np.ndarray, "m c"]
) -> float:
    """Return the norm of the law's error divided by the norm of the change, or 0 if the change is 0."""
    total = np.linalg.norm(change)
    return float(np.linalg.norm(features @ law - change) / total) if total > 0 else 0.0
