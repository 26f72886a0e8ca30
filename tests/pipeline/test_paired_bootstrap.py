"""The interval of an improvement: of the same trajectories on both sides."""

from __future__ import annotations

import math

import numpy as np
import pytest
from evaluations import evaluation

from ups_jax.config import GatesConfig
from ups_jax.core.errors import ConfigError
from ups_jax.pipeline.baseline import bootstrap_interval, trajectory_scores

RULES = GatesConfig()


def keyed(values: np.ndarray) -> dict[tuple[str, int], float]:
    return {("a", index): float(value) for index, value in enumerate(values)}


def test_pairs_of_one_ratio_leave_no_doubt_however_they_differ_among_themselves() -> None:
    theirs = np.exp(np.random.default_rng(0).normal(size=20))
    interval = bootstrap_interval(keyed(0.9 * theirs), keyed(theirs), RULES, seed=0)
    assert interval.lower == pytest.approx(0.1) and interval.upper == pytest.approx(0.1)


def test_the_interval_is_that_of_the_normal_distribution() -> None:
    rng = np.random.default_rng(1)
    theirs = np.ones(400)
    ours = 0.9 + 0.2 * rng.normal(size=400)
    interval = bootstrap_interval(keyed(ours), keyed(theirs), RULES, seed=0)
    middle, half = 1 - ours.mean(), 1.96 * ours.std() / 20
    assert interval.lower == pytest.approx(middle - half, abs=0.003)
    assert interval.upper == pytest.approx(middle + half, abs=0.003)
    assert interval == bootstrap_interval(keyed(ours), keyed(theirs), RULES, seed=0)


def test_seeds_are_averaged_a_trajectory_and_a_missing_score_is_no_number() -> None:
    both = [evaluation(scores=[0.1, 0.2]), evaluation(scores=[0.3, 0.2])]
    scores = trajectory_scores(both, "nrmse")
    assert scores == {("waves", 0): pytest.approx(0.2), ("waves", 1): pytest.approx(0.2)}
    assert trajectory_scores(both, "rollout/nrmse") == scores
    assert trajectory_scores(both, "vrmse") is None
    assert trajectory_scores([both[0], evaluation(scores=[0.1])], "nrmse") is None
    broken = trajectory_scores([evaluation(scores=[0.1, None])], "nrmse")
    assert broken is not None and math.isnan(bootstrap_interval(broken, broken, RULES, seed=0).lower)


def test_other_trajectories_are_not_compared() -> None:
    with pytest.raises(ConfigError, match="trajectories"):
        bootstrap_interval({("a", 0): 1.0}, {("a", 1): 1.0}, RULES, seed=0)
