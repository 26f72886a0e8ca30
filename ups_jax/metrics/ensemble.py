"""Metrics of ensembles `(m, b, t, *s, c)` against the truth `(b, t, *s, c)`: pure functions without a model.

A calibrated ensemble is one whose members and the truth could change places. Scores are in physical units, a number
per trajectory and time as in `metrics`; channels with different units never add up in a relative one.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ups_jax.metrics import ENSEMBLE_METRICS
from ups_jax.metrics.field import ABSOLUTE_FLOOR, DECORRELATION_THRESHOLD, correlation, correlation_time

Members = Float[Array | np.ndarray, "m b t *s c"]
Truth = Float[Array | np.ndarray, "b t *s c"]
PerFrame = Float[Array, "b t"]


def ensemble_table(members: Members, truth: Truth, dt: float) -> dict[str, Array]:
    """What `ensemble_summary` sums up, with the trajectories on the first axis: tables of chunks can be joined.

    `crps`, `coverage_50`, `coverage_90` (b, t); `spread`, `skill` (b, t, c); `decorrelation_time` (b,).
    """
    return _ensemble_table(jnp.asarray(members), jnp.asarray(truth), dt)


def ensemble_summary(table: Mapping[str, Float[Array | np.ndarray, "b ..."]]) -> dict[str, float]:
    """`ENSEMBLE_METRICS` over all trajectories and times, in float64; what is not finite stays so."""
    arrays = {name: np.asarray(value, np.float64) for name, value in table.items()}
    spread, skill = (arrays[name].mean((0, 1)) for name in ("spread", "skill"))
    ratio = np.sqrt(spread / np.maximum(skill, np.finfo(np.float64).tiny)).mean()
    means = {name: float(arrays[name].mean()) for name in ENSEMBLE_METRICS if name != "spread_skill"}
    return {name: float(ratio) if name == "spread_skill" else means[name] for name in ENSEMBLE_METRICS}


def fair_crps(members: Members, truth: Truth) -> PerFrame:
    """mean_i |x_i - y| - 1/(2 M (M-1)) sum_ij |x_i - x_j|, mean over space and channels: the unbiased CRPS.

    What the members' distribution scores, whatever the number of members; of one member it is the mean absolute error.
    It can be negative for a frame. Source: Ferro 2014, equation 3.
    """
    count = len(members)
    return _crps(members, truth, 1.0 / (count * max(count - 1, 1)))


def empirical_crps(members: Members, truth: Truth) -> PerFrame:
    """mean_i |x_i - y| - 1/(2 M^2) sum_ij |x_i - x_j|: the CRPS of the M members as the whole distribution.

    Never negative, and larger than `fair_crps` by the members' mean difference / (2 M). Source: Gneiting & Raftery
    2007, equation 21.
    """
    return _crps(members, truth, 1.0 / len(members) ** 2)


def spread_skill(members: Members, truth: Truth) -> Float[Array, ""]:
    """sqrt((M+1)/M) spread / skill: 1 for a calibrated ensemble of any size, below 1 for one that is too sure.

    Spread is the root of the mean unbiased variance of the members, skill the root mean square error of their mean,
    both over trajectories, times and space, per channel; then the mean over channels. Source: Fortin et al. 2014,
    equation 15. ValueError below two members.
    """
    spread, skill = (jnp.mean(part, (0, 1)) for part in spread_and_skill(members, truth))
    return jnp.mean(jnp.sqrt(spread / jnp.maximum(skill, ABSOLUTE_FLOOR**2)))


def spread_and_skill(members: Members, truth: Truth) -> tuple[Float[Array, "b t c"], Float[Array, "b t c"]]:
    """(M+1)/M variance of the members, and squared error of their mean, over space: equal on average if calibrated."""
    count = _at_least_two(members)
    axes = tuple(range(2, truth.ndim - 1))
    variance = jnp.var(jnp.asarray(members), 0, ddof=1).mean(axes)
    error = jnp.square(jnp.mean(jnp.asarray(members), 0) - jnp.asarray(truth)).mean(axes)
    return (count + 1) / count * variance, error


def coverage(members: Members, truth: Truth, level: float) -> PerFrame:
    """Share of the truth's points in the central interval that should hold `level` of them; over space and channels.

    The truth of a calibrated ensemble lies between the k-th of its M members from below and the k-th from above with
    probability 1 - 2k / (M + 1). A level between those of k and k + 1 is the mixture of both intervals that has it;
    the interval of k = 0 is everything. So a calibrated ensemble of any size scores `level` on average, where an
    interpolated quantile would be off by .03 with five members and by .3 beyond the last of four. What few members
    cannot tell is not punished: of four members far from the truth, coverage_90 is .75. ValueError below two.
    """
    count = _at_least_two(members)
    ordered = jnp.sort(jnp.asarray(members), 0)
    position = (1 - level) / 2 * (count + 1)
    rank = int(position)
    weight = position - rank
    share = (1 - weight) * _between(ordered, truth, rank) + weight * _between(ordered, truth, rank + 1)
    share = jnp.where(jnp.isfinite(ordered).all(0) & jnp.isfinite(truth), share, jnp.nan)
    return jnp.mean(share, tuple(range(2, truth.ndim)))


def _between(ordered: Members, truth: Truth, rank: int) -> Float[Array, "b t *s c"]:
    """1 where the truth lies between the members of a rank from below and from above, which 0 has at infinity."""
    if rank == 0:
        return jnp.ones(truth.shape)
    low, high = ordered[rank - 1], ordered[-rank]
    return jnp.asarray((truth >= low) & (truth <= high), jnp.float32)


def decorrelation_time(
    members: Members, truth: Truth, dt: float, threshold: float = DECORRELATION_THRESHOLD
) -> Float[Array, " b"]:
    """`metrics.correlation_time` of each member, a rollout like any other; the mean over the members.

    The ensemble's mean loses what the members disagree on, and would stay correlated for longer than any of them.
    """
    times = jax.vmap(lambda member: correlation_time(correlation(member, truth), dt, threshold))(jnp.asarray(members))
    return jnp.mean(times, 0)


def _crps(members: Members, truth: Truth, weight: float) -> PerFrame:
    """`weight` is that of sum_ij |x_i - x_j| / 2, which sorted members give as sum_k (2k - M - 1) x_(k)."""
    if members.shape[1:] != truth.shape:
        raise ValueError(f"members {members.shape} and truth {truth.shape} differ in shape")
    deviation = jnp.asarray(members) - jnp.asarray(truth)[None]
    # Deviations from the truth: sums of sorted values far from zero would cancel in float32.
    ordered = jnp.sort(deviation, 0)
    count = len(members)
    ranks = 2.0 * jnp.arange(1, count + 1) - count - 1
    differences = jnp.tensordot(ranks.astype(deviation.dtype), ordered, 1)
    return jnp.mean(jnp.mean(jnp.abs(deviation), 0) - weight * differences, tuple(range(2, truth.ndim)))


def _at_least_two(members: Members) -> int:
    if len(members) < 2:
        raise ValueError(f"an ensemble of {len(members)}; spread and coverage need two members or more")
    return len(members)


@partial(jax.jit, static_argnames="dt")
def _ensemble_table(members: Members, truth: Truth, dt: float) -> dict[str, Array]:
    spread, skill = spread_and_skill(members, truth)
    return {
        "crps": fair_crps(members, truth),
        "coverage_50": coverage(members, truth, 0.5),
        "coverage_90": coverage(members, truth, 0.9),
        "spread": spread,
        "skill": skill,
        "decorrelation_time": decorrelation_time(members, truth, dt),
    }
