"""Metrics of ensembles `(m, b, t, *s, c)` against the truth `(b, t, *s, c)`, in physical units.

An ensemble is calibrated if its members and the truth are draws from the same distribution. Relative metrics are
computed per channel and averaged, because channels may have different units.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ups_jax.metrics import ENSEMBLE_METRICS
from ups_jax.metrics.field import (
    DECORRELATION_THRESHOLD,
    RELATIVE_FLOOR,
    correlation,
    correlation_time,
    root_mean_square,
)

Members = Float[Array | np.ndarray, "m b t *s c"]
Truth = Float[Array | np.ndarray, "b t *s c"]
PerFrame = Float[Array, "b t"]


def ensemble_table(members: Members, truth: Truth, dt: float) -> dict[str, Array]:
    """Return the metrics of an ensemble for each trajectory; `ensemble_summary` averages them.

    Args:
        members: Members of the ensemble in physical units.
        truth: True fields.
        dt: Physical time between two frames.

    Returns:
        Arrays `crps`, `coverage_50`, `coverage_90` (b, t); `spread`, `skill` (b, t, c), root mean squares over space;
        and `decorrelation_time` (b,).
        Tables of several chunks can be concatenated on the first axis.
    """
    return _compiled_table(jnp.asarray(members), jnp.asarray(truth), dt)


def ensemble_summary(table: Mapping[str, Float[Array | np.ndarray, "b ..."]]) -> dict[str, float]:
    """Return one number per metric in `ENSEMBLE_METRICS`, computed in float64; non-finite values propagate.

    Args:
        table: Metrics of each trajectory, from `ensemble_table`.
    """
    arrays = {name: np.asarray(value, np.float64) for name, value in table.items()}
    # The squares of float32 values of any unit are in the range of float64.
    spread, skill = (np.sqrt(np.square(arrays[name]).mean((0, 1))) for name in ("spread", "skill"))
    ratio = spread / np.where(spread == 0, 1.0, np.maximum(skill, RELATIVE_FLOOR * spread))
    means = {name: float(arrays[name].mean()) for name in ENSEMBLE_METRICS if name != "spread_skill"}
    return {name: float(ratio.mean()) if name == "spread_skill" else means[name] for name in ENSEMBLE_METRICS}


def fair_crps(members: Members, truth: Truth) -> PerFrame:
    """Return the unbiased CRPS: mean_i |x_i - y| - 1/(2 M (M-1)) sum_ij |x_i - x_j|, averaged over space and channels.

    Its expectation is the CRPS of the distribution from which the M members x_i are drawn, for any M. With one member
    it is the mean absolute error. It can be negative for a single frame.

    Args:
        members: Members x_i of the ensemble in physical units.
        truth: True fields y.

    References:
        Ferro 2014, equation 3.
    """
    count = len(members)
    return _weighted_crps(members, truth, 1.0 / (count * max(count - 1, 1)))


def empirical_crps(members: Members, truth: Truth) -> PerFrame:
    """Return the CRPS of the empirical distribution of the M members: mean_i |x_i - y| - 1/(2 M^2) sum_ij |x_i - x_j|.

    It is averaged over space and channels, never negative, and larger than `fair_crps` by the mean difference of two
    members divided by 2 M.

    Args:
        members: Members x_i of the ensemble in physical units.
        truth: True fields y.

    References:
        Gneiting & Raftery 2007, equation 21.
    """
    return _weighted_crps(members, truth, 1.0 / len(members) ** 2)


def spread_skill(members: Members, truth: Truth) -> Float[Array, ""]:
    """Return sqrt((M+1)/M) spread / skill, averaged over channels.

    It is 1 for a calibrated ensemble of any size M and below 1 for an overconfident one. Spread is the root of the mean
    unbiased variance of the members, skill the root mean square error of the ensemble mean. Both are computed for each
    channel over trajectories, times and space. The ratio is at most 1 / `RELATIVE_FLOOR`, and 0 without spread.

    Args:
        members: Members of the ensemble in physical units.
        truth: True fields.

    Raises:
        ValueError: If there are fewer than two members.

    References:
        Fortin et al. 2014, equation 15.
    """
    spread, skill = (root_mean_square(values, (0, 1)) for values in spread_and_skill(members, truth))
    return jnp.mean(spread / jnp.where(spread == 0, 1.0, jnp.maximum(skill, RELATIVE_FLOOR * spread)))


def spread_and_skill(members: Members, truth: Truth) -> tuple[Float[Array, "b t c"], Float[Array, "b t c"]]:
    """Return spread and skill as root mean squares over space; their squares are equal on average if calibrated.

    Spread is sqrt((M+1)/M) times the standard deviation of the M members, skill the error of their mean, both in the
    unit of the fields.

    Args:
        members: Members of the ensemble in physical units.
        truth: True fields.

    Raises:
        ValueError: If there are fewer than two members.
    """
    count = _member_count(members)
    # Deviations from the truth: the mean of values far from zero would lose their differences in float32.
    deviation = jnp.asarray(members) - jnp.asarray(truth)[None]
    error = jnp.mean(deviation, 0)
    space = tuple(range(2, truth.ndim - 1))
    spread = root_mean_square(deviation - error[None], (0, *(axis + 1 for axis in space)))
    return math.sqrt((count + 1) / (count - 1)) * spread, root_mean_square(error, space)


def coverage(members: Members, truth: Truth, level: float) -> PerFrame:
    """Return the share of points and channels at which the truth lies in the ensemble's central interval of `level`.

    The interval of rank k reaches from the k-th smallest to the k-th largest of the M members; rank 0 is unbounded. If
    the ensemble is calibrated, the truth lies in this interval with probability 1 - 2k / (M + 1). If `level` is between
    the probabilities of two ranks, the result is interpolated linearly between their shares. A calibrated ensemble of
    any size therefore has the coverage `level` on average; with interpolated quantiles, five members would be off by
    0.03. Because rank 0 is unbounded, four members that are all far from the truth still have a coverage_90 of 0.75.

    Args:
        members: Members of the ensemble in physical units.
        truth: True fields.
        level: Nominal coverage, between 0 and 1.

    Raises:
        ValueError: If there are fewer than two members.
    """
    count = _member_count(members)
    sorted_members = jnp.sort(jnp.asarray(members), 0)
    position = (1 - level) / 2 * (count + 1)
    rank = int(position)
    weight = position - rank
    share = (1 - weight) * _is_in_interval(sorted_members, truth, rank) + weight * _is_in_interval(
        sorted_members, truth, rank + 1
    )
    share = jnp.where(jnp.isfinite(sorted_members).all(0) & jnp.isfinite(truth), share, jnp.nan)
    return jnp.mean(share, tuple(range(2, truth.ndim)))


def _is_in_interval(sorted_members: Members, truth: Truth, rank: int) -> Float[Array, "b t *s c"]:
    """Return 1 where the truth lies in the interval of rank `rank`, defined in `coverage`, and 0 elsewhere."""
    if rank == 0:
        return jnp.ones(truth.shape)
    low, high = sorted_members[rank - 1], sorted_members[-rank]
    return jnp.asarray((truth >= low) & (truth <= high), jnp.float32)


def decorrelation_time(
    members: Members, truth: Truth, dt: float, threshold: float = DECORRELATION_THRESHOLD
) -> Float[Array, " b"]:
    """Return the mean over members of `correlation_time`, in the unit of `dt`.

    Members are scored one by one: the ensemble mean is smoother and would stay correlated for longer than any member.

    Args:
        members: Members of the ensemble in physical units.
        truth: True fields.
        dt: Physical time between two frames.
        threshold: Correlation below which a member counts as decorrelated.
    """
    times = jax.vmap(lambda member: correlation_time(correlation(member, truth), dt, threshold))(jnp.asarray(members))
    return jnp.mean(times, 0)


def _weighted_crps(members: Members, truth: Truth, weight: float) -> PerFrame:
    """Return mean_i |x_i - y| - weight * D, averaged over space and channels, where D = sum_ij |x_i - x_j| / 2.

    For sorted members, D = sum_k (2k - M - 1) x_(k).
    """
    if members.shape[1:] != truth.shape:
        raise ValueError(f"the members have shape {members.shape[1:]}, the truth has {truth.shape}; pass equal shapes")
    deviation = jnp.asarray(members) - jnp.asarray(truth)[None]
    # Sort deviations from the truth, not the members: the sum over values far from zero would cancel in float32.
    sorted_deviation = jnp.sort(deviation, 0)
    count = len(members)
    ranks = 2.0 * jnp.arange(1, count + 1) - count - 1
    differences = jnp.tensordot(ranks.astype(deviation.dtype), sorted_deviation, 1)
    return jnp.mean(jnp.mean(jnp.abs(deviation), 0) - weight * differences, tuple(range(2, truth.ndim)))


def _member_count(members: Members) -> int:
    """Return the number of members; raise ValueError if there are fewer than two."""
    if len(members) < 2:
        raise ValueError(f"spread and coverage need at least two members, got {len(members)}")
    return len(members)


@partial(jax.jit, static_argnames="dt")
def _compiled_table(members: Members, truth: Truth, dt: float) -> dict[str, Array]:
    """Return the arrays of `ensemble_table`, computed by one compiled function."""
    spread, skill = spread_and_skill(members, truth)
    return {
        "crps": fair_crps(members, truth),
        "coverage_50": coverage(members, truth, 0.5),
        "coverage_90": coverage(members, truth, 0.9),
        "spread": spread,
        "skill": skill,
        "decorrelation_time": decorrelation_time(members, truth, dt),
    }
