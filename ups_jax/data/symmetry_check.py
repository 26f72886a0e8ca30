"""Tests of whether the data keep the declared symmetries.

For trajectories, ridge regression fits a local law on half of them, which predicts the change of a point to the next
frame from the values in its neighbourhood, and from their products with each coefficient and with each channel at the
point. If a symmetry holds, applying it to the other half hardly changes the error of the law on them.

For steady solutions, a symmetry that holds leaves the statistics of input fields and solutions unchanged, up to their
sampling error.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Float, Float64, Int

from ups_jax.config import TaskConfig
from ups_jax.core.errors import DataError
from ups_jax.core.task import Symmetry
from ups_jax.data.scan import trajectory_bytes, trajectory_chunks
from ups_jax.data.sources.base import Source, read_trajectories

# Largest numbers of trajectories, bytes and points that the test of trajectories uses.
_TRAJECTORIES = 32
_BYTES = 64 * 2**20
_POINTS = 12_000
# Radius of the neighbourhood for one, two and three space axes.
_RADIUS = {1: 4, 2: 2, 3: 1}
_RIDGE = 1e-6
# A law with a larger relative error than this is too poor to detect a broken symmetry.
_INFORMATIVE = 0.6
# How to remove a symmetry, which a configuration may inherit.
_REMOVE = "remove it from the task, or set an empty list if an included configuration declares it"
# The data break a symmetry if the error after it exceeds _WORSE_RATIO times the error before, plus _WORSE_SUM.
_WORSE_RATIO, _WORSE_SUM = 1.5, 0.05

# Smallest and largest number of solutions, and largest number of points, that the test of steady solutions uses.
_FEWEST_SOLUTIONS, _MOST_SOLUTIONS, _SOLUTION_POINTS = 20, 512, 512
# Changes of a mean below this fraction of the standard deviation do not count.
_NEGLIGIBLE = 0.02
# The data break a symmetry if the change of their statistics exceeds _LARGEST_RATIO times the largest one among
# _SIGNS random signs. In 36 tests on the built-in Darcy flow (12 seeds) the largest ratio is 0.95.
_LARGEST_RATIO, _SIGNS = 1.5, 100
# Ridge of the linear law from input fields to solutions, relative to the mean square of the input fields.
_STEADY_RIDGE = 1e-2


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
    """Test symmetries on training trajectories or steady solutions; yield a note if these do not suffice for the test.

    Args:
        task_cfg: The task: its kind decides how it is tested, and messages contain its name.
        periodic: Whether each axis is periodic.
        coefficients: PDE coefficients of all trajectories of the source, on any scale.
        first_index: Index of `symmetries[0]` in the configuration, for messages.

    Raises:
        DataError: The data break a symmetry.
    """
    if not symmetries:
        return
    if task_cfg.kind == "steady":
        yield from _check_steady_symmetries(task_cfg, source, symmetries, train_ids, coefficients, first_index)
        return
    ids = train_ids[: max(2, min(_TRAJECTORIES, _BYTES // trajectory_bytes(source)))]
    if len(ids) < 2:
        yield (
            f"{task_cfg.name}: the declared symmetries were not tested on the data, because the test needs 2 or more "
            f"training trajectories (there is {len(ids)})"
        )
        return
    fields, values = read_trajectories(source, ids), _standardized(coefficients[ids])
    half = len(ids) // 2
    law = _fit_law(_draw_samples(fields[:half], values[:half], periodic, np.random.default_rng(0)))
    test_fields, test_values = fields[half:], values[half:]
    error_before = law.relative_error(_draw_samples(test_fields, test_values, periodic, np.random.default_rng(1)))
    if error_before > _INFORMATIVE:
        yield (
            f"{task_cfg.name}: the declared symmetries were not tested on the data (the fitted local law explains only "
            f"{1 - error_before:.0%} of the change of a frame)"
        )
        return
    for number, symmetry in enumerate(symmetries, first_index):
        # The map acts on physical values: a change of sign is not one of the values around their mean.
        mapped = apply_symmetry(test_fields, symmetry)
        error_after = law.relative_error(_draw_samples(mapped, test_values, periodic, np.random.default_rng(1)))
        if error_after > _WORSE_RATIO * error_before + _WORSE_SUM:
            raise DataError(
                f"{source.name}: the data break the symmetry `data.tasks.{task_cfg.name}.symmetries.{number}` (the "
                f"relative error of a fitted local law is {error_before:.2g} before and {error_after:.2g} after the "
                f"symmetry is applied); {_REMOVE}"
            )


def apply_symmetry(fields: Float[np.ndarray, "n t *s c"], symmetry: Symmetry) -> Float[np.ndarray, "n t *s c"]:
    """Return the fields with a symmetry applied: reflect axes, negate channels, swap two axes, swap two channels."""
    sign = np.ones(fields.shape[-1], fields.dtype)
    sign[list(symmetry.negate)] = -1.0
    result = np.flip(fields, axis=tuple(2 + axis for axis in symmetry.reflect)) * sign
    if symmetry.swap:
        result = np.swapaxes(result, *(2 + axis for axis in symmetry.swap))
    if symmetry.swap_channels:
        order = np.arange(fields.shape[-1])
        order[list(symmetry.swap_channels)] = symmetry.swap_channels[::-1]
        result = result[..., order]
    return result


def _standardized(values: Float64[np.ndarray, "n p"]) -> Float64[np.ndarray, "n p"]:
    """Return values with mean 0 and standard deviation 1 in each column, 0 in a constant column."""
    varies = np.ptp(values, axis=0) > 0
    return np.where(varies, values - values.mean(axis=0), 0.0) / np.where(varies, values.std(axis=0), 1.0)


@dataclass(frozen=True, eq=False, kw_only=True)
class _Samples:
    """Values at random points with those in their neighbourhood, and their changes to the next frame.

    Attributes:
        neighbours: Values at the points of each neighbourhood.
        centre: Values at the point itself.
        change: Change of `centre` to the next frame.
        coefficients: PDE coefficients of the trajectory.
    """

    neighbours: Float64[np.ndarray, "m o c"]
    centre: Float64[np.ndarray, "m c"]
    change: Float64[np.ndarray, "m c"]
    coefficients: Float64[np.ndarray, "m p"]


def _draw_samples(
    fields: Float[np.ndarray, "n t *s c"],
    coefficients: Float64[np.ndarray, "n p"],
    periodic: Sequence[bool],
    generator: np.random.Generator,
) -> _Samples:
    """Return the samples at random points of random frames.

    Points whose neighbourhood would extend beyond the end of a non-periodic axis are not drawn.
    """
    count, frames, *shape, _ = fields.shape
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
    )
    at_centre = fields[(row, time, *centre)].astype(np.float64)
    return _Samples(
        neighbours=neighbours.astype(np.float64),
        centre=at_centre,
        change=fields[(row, time + 1, *centre)] - at_centre,
        coefficients=coefficients[row],
    )


@dataclass(frozen=True, eq=False, kw_only=True)
class _Law:
    """A local law for standardised values.

    Attributes:
        mean: Mean of each channel.
        std: Standard deviation of each channel.
        weights: Weight of each feature of a neighbourhood.
    """

    mean: Float64[np.ndarray, " c"]
    std: Float64[np.ndarray, " c"]
    weights: Float64[np.ndarray, "f c"]

    def relative_error(self, samples: _Samples) -> float:
        """Return the norm of the law's error divided by the norm of the change, or 0 if the change is 0."""
        features, change = _features_and_change(samples, self.mean, self.std)
        total = np.linalg.norm(change)
        return float(np.linalg.norm(features @ self.weights - change) / total) if total > 0 else 0.0


def _fit_law(samples: _Samples) -> _Law:
    """Return the local law from a ridge regression of the change on the features."""
    mean, std = samples.neighbours.mean(axis=(0, 1)), samples.neighbours.std(axis=(0, 1))
    std = np.where(std > 0, std, 1.0)
    features, change = _features_and_change(samples, mean, std)
    gram = features.T @ features
    gram[np.diag_indices_from(gram)] += _RIDGE * np.trace(gram) / len(gram)
    return _Law(mean=mean, std=std, weights=np.linalg.solve(gram, features.T @ change))


def _features_and_change(
    samples: _Samples, mean: Float64[np.ndarray, " c"], std: Float64[np.ndarray, " c"]
) -> tuple[Float64[np.ndarray, "m f"], Float64[np.ndarray, "m c"]]:
    """Return the features of the law, of values standardised by `mean` and `std`, and the changes in units of `std`."""
    neighbours = ((samples.neighbours - mean) / std).reshape(len(samples.centre), -1)
    centre = (samples.centre - mean) / std
    linear = [neighbours, *(neighbours * values[:, None] for values in samples.coefficients.T)]
    products = [neighbours * values[:, None] for values in centre.T]
    return np.concatenate([np.ones((len(centre), 1)), *linear, *products], axis=1), samples.change / std


def _check_steady_symmetries(
    task_cfg: TaskConfig,
    source: Source,
    symmetries: Sequence[Symmetry],
    train_ids: Int[np.ndarray, " m"],
    coefficients: Float64[np.ndarray, "n p"],
    first_index: int,
) -> Iterator[str]:
    """Test symmetries on training pairs of input fields and solutions, as `check_symmetries` describes.

    If only statistics that contain the solution change, the solutions break the symmetry. If those of the input fields
    change too, the input fields prefer one side, which is no reason against the symmetry; then it has to make a linear
    law from input fields to solutions worse.
    """
    if not symmetries:
        return
    largest = max(_FEWEST_SOLUTIONS, min(_MOST_SOLUTIONS, _BYTES // trajectory_bytes(source)))
    ids = train_ids[np.linspace(0, len(train_ids) - 1, min(largest, len(train_ids))).astype(int)]
    maps = [Symmetry(), *symmetries]
    # Input fields are mapped as in training: along the axes only.
    spatial_maps = [replace(symmetry, negate=(), swap_channels=()) for symmetry in maps]
    shape, generator = source.grid.shape, np.random.default_rng(0)
    total = int(np.prod(shape))
    points = np.unravel_index(generator.permutation(total)[: min(total, _SOLUTION_POINTS)], shape)
    inputs: list[list[np.ndarray]] = [[] for _ in maps]
    solutions: list[list[np.ndarray]] = [[] for _ in maps]
    for chunk, fields in trajectory_chunks(source, ids):
        input_fields = source.read_input_fields(chunk)[:, None]
        for number, (symmetry, spatial) in enumerate(zip(maps, spatial_maps, strict=True)):
            inputs[number].append(_values_at(apply_symmetry(input_fields, spatial)[:, 0], points))
            solutions[number].append(_values_at(apply_symmetry(fields, symmetry)[:, 0], points))
    pairs = [_Pairs(np.concatenate(a), np.concatenate(u)) for a, u in zip(inputs, solutions, strict=True)]
    finite = np.isfinite(pairs[0].inputs).all(axis=(1, 2, 3)) & np.isfinite(pairs[0].solutions).all(axis=(1, 2, 3))
    if finite.sum() < _FEWEST_SOLUTIONS:
        yield (
            f"{task_cfg.name}: the declared symmetries were not tested on the data, because the test needs "
            f"{_FEWEST_SOLUTIONS} or more training solutions (there are {int(finite.sum())})"
        )
        return
    original, *mapped = _standardized_pairs([item.select(finite) for item in pairs])
    values = _standardized(coefficients[ids][finite])
    for number, image in enumerate(mapped, first_index):
        change, limit = _change_and_limit(original.solution_features(values), image.solution_features(values))
        if change <= limit:
            continue
        key = f"data.tasks.{task_cfg.name}.symmetries.{number}"
        input_change, input_limit = _change_and_limit(original.input_features(values), image.input_features(values))
        if input_change <= input_limit:
            raise DataError(
                f"{source.name}: the solutions break the symmetry `{key}` (it changes their mean values, squares and "
                f"products with the input fields by {change:.3g} sampling errors squared, limit {limit:.2g}); "
                f"{_REMOVE}, or store the fields at points that it maps onto each other"
            )
        plain, symmetrised = _errors_of_linear_laws(original, image)
        if symmetrised > _WORSE_RATIO * plain + _WORSE_SUM:
            raise DataError(
                f"{source.name}: the solutions break the symmetry `{key}` (the relative error of a linear law is "
                f"{plain:.2g} without and {symmetrised:.2g} with mapped solutions in its training set); "
                f"{_REMOVE}, or store the fields at points that it maps onto each other"
            )
        yield (
            f"{task_cfg.name}: the symmetry `{key}` also changes the statistics of the input fields, so that only a "
            "linear law could test it; remove it unless it maps the points of the grid onto each other"
        )


@dataclass(frozen=True, eq=False)
class _Pairs:
    """Input fields and solutions at some points (index 0 of the second axis) and at the next points along each axis."""

    inputs: Float64[np.ndarray, "n o p i"]
    solutions: Float64[np.ndarray, "n o p c"]

    def select(self, rows: np.ndarray) -> _Pairs:
        """Return the pairs in `rows`."""
        return _Pairs(self.inputs[rows], self.solutions[rows])

    def input_features(self, coefficients: Float64[np.ndarray, "n k"]) -> Float64[np.ndarray, "n f"]:
        """Return values of the input fields, and their products with each other at the same and at the next points."""
        return _features(self.inputs, self.inputs, coefficients)

    def solution_features(self, coefficients: Float64[np.ndarray, "n k"]) -> Float64[np.ndarray, "n f"]:
        """Return values and squares of the solutions, and their products with the input fields."""
        squares = np.square(self.solutions[:, 0]).reshape(len(self.solutions), -1)
        return np.concatenate([squares, _features(self.solutions, self.inputs, coefficients)], axis=1)


def _values_at(
    fields: Float[np.ndarray, "n *s c"], points: tuple[Int[np.ndarray, " p"], ...]
) -> Float64[np.ndarray, "n o p c"]:
    """Return the values at points, and at the next points along each axis, of which the last is followed by the first.

    Without a periodic axis the latter is as good a statistic as any other, if it is the same one for all fields.
    """
    every_row: tuple[Any, ...] = (slice(None),)
    columns = [fields[every_row + points]]
    for axis, size in enumerate(fields.shape[1:-1]):
        following = tuple((index + 1) % size if axis == other else index for other, index in enumerate(points))
        columns.append(fields[every_row + following])
    return np.stack(columns, axis=1).astype(np.float64)


def _standardized_pairs(pairs: Sequence[_Pairs]) -> list[_Pairs]:
    """Return pairs whose channels are standardised by mean and standard deviation of the first ones."""
    scales = [
        (values.mean(axis=(0, 1, 2)), np.where(values.std(axis=(0, 1, 2)) > 0, values.std(axis=(0, 1, 2)), 1.0))
        for values in (pairs[0].inputs, pairs[0].solutions)
    ]
    (input_mean, input_std), (mean, std) = scales
    return [_Pairs((item.inputs - input_mean) / input_std, (item.solutions - mean) / std) for item in pairs]


def _features(
    first: Float64[np.ndarray, "n o p c"],
    second: Float64[np.ndarray, "n o p i"],
    coefficients: Float64[np.ndarray, "n k"],
) -> Float64[np.ndarray, "n f"]:
    """Return `first`, its products with `second` at the points and at the next ones, and these times coefficients."""
    products = first[:, :, :, :, None] * second[:, :1, :, None, :]
    plain = np.concatenate([first[:, 0].reshape(len(first), -1), products.reshape(len(first), -1)], axis=1)
    return np.concatenate([plain, *(plain * values[:, None] for values in coefficients.T)], axis=1)


def _change_and_limit(features: Float64[np.ndarray, "n f"], mapped: Float64[np.ndarray, "n f"]) -> tuple[float, float]:
    """Return how much a map changes the means of features, and the limit above which this is no sampling error.

    The change is the mean over features of the squared change of a mean, divided by its sampling variance. If the
    distribution is symmetric, the sign of each sample's change is random; the limit is from such random signs.
    """
    difference = mapped - features
    count = len(difference)
    weight = 1 / (np.square(difference).mean(axis=0) / count + _NEGLIGIBLE**2)
    signs = np.random.default_rng(0).choice([-1.0, 1.0], (_SIGNS, count))
    changes = (np.square(np.concatenate([np.ones((1, count)), signs]) @ difference / count) * weight).mean(axis=1)
    return float(changes[0]), _LARGEST_RATIO * float(changes[1:].max())


def _errors_of_linear_laws(pairs: _Pairs, mapped: _Pairs) -> tuple[float, float]:
    """Return the relative errors of two linear laws on the second half of the pairs.

    The first law is fitted to the first half of the pairs, the second law to the same and their images `mapped`.
    """
    rows = len(pairs.inputs)
    inputs, mapped_inputs = (item.inputs[:, 0].reshape(rows, -1) for item in (pairs, mapped))
    solutions, mapped_solutions = (item.solutions[:, 0].reshape(rows, -1) for item in (pairs, mapped))
    train, test = slice(0, rows // 2), slice(rows // 2, None)

    def error_of_law(a: Float64[np.ndarray, "m f"], u: Float64[np.ndarray, "m g"]) -> float:
        mean_input, mean_solution = a.mean(axis=0), u.mean(axis=0)
        # The dual form of ridge regression: there are fewer pairs than points.
        gram = (a - mean_input) @ (a - mean_input).T
        gram[np.diag_indices_from(gram)] += _STEADY_RIDGE * a.size / len(a)
        weights = np.linalg.solve(gram, u - mean_solution)
        error = (inputs[test] - mean_input) @ (a - mean_input).T @ weights + mean_solution - solutions[test]
        return float(np.linalg.norm(error) / np.linalg.norm(solutions[test]))

    return error_of_law(inputs[train], solutions[train]), error_of_law(
        np.concatenate([inputs[train], mapped_inputs[train]]),
        np.concatenate([solutions[train], mapped_solutions[train]]),
    )
