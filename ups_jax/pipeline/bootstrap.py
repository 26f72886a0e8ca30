"""How sure an improvement is: the same trajectories, predicted by both sides, resampled together. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from ups_jax.config import GatesConfig
from ups_jax.errors import ConfigError
from ups_jax.pipeline.gates import Interval, improvement

RESAMPLES = 2000


def scores(results: Sequence[Mapping[str, Any]], metric: str) -> Mapping[tuple[str, int], float] | None:
    """The metric of each trajectory (task, id), mean over the seeds; None where an evaluation has none of them."""
    names = [metric] if "/" in metric else [f"rollout/{metric}", f"steady/{metric}"]
    found: dict[tuple[str, int], list[float]] = {}
    for result in results:
        for task, own in result.get("per_trajectory", {}).items():
            for section, _, key in (name.partition("/") for name in names):
                values = own.get(section, {}).get(key)
                for number, value in zip(own["ids"], values or (), strict=values is not None):
                    found.setdefault((task, number), []).append(np.nan if value is None else value)
    if not found or any(len(values) != len(results) for values in found.values()):
        return None
    return {key: float(np.mean(values)) for key, values in found.items()}


def paired_interval(
    candidate: Mapping[tuple[str, int], float],
    baseline: Mapping[tuple[str, int], float],
    rules: GatesConfig,
    *,
    seed: int,
    resamples: int = RESAMPLES,
) -> Interval:
    """The 2.5 and 97.5 % quantiles of the improvement of the mean; NaN where a score is not finite.

    ConfigError where the two sides were measured on other trajectories.
    """
    if candidate.keys() != baseline.keys():
        raise ConfigError("candidate and baseline were measured on other trajectories; evaluate both on the same ones")
    keys = sorted(candidate)
    own, theirs = (np.array([side[key] for key in keys]) for side in (candidate, baseline))
    gains = _resampled(own, theirs, rules, np.random.default_rng(seed), resamples)
    if not np.isfinite(gains).all():
        return Interval(lower=float("nan"), upper=float("nan"))
    lower, upper = np.quantile(gains, (0.025, 0.975))
    return Interval(lower=float(lower), upper=float(upper))


def _resampled(
    own: Float[np.ndarray, " n"],
    theirs: Float[np.ndarray, " n"],
    rules: GatesConfig,
    drawn: np.random.Generator,
    resamples: int,
) -> Float[np.ndarray, " r"]:
    rows = (drawn.integers(len(own), size=len(own)) for _ in range(resamples))
    means = ((float(own[row].mean()), float(theirs[row].mean())) for row in rows)
    return np.array([improvement(one, other, rules, rules.metric) for one, other in means])
