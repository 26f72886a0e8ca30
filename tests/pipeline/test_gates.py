"""Every rule of the gates, by a table; and that nothing makes a candidate pass whose required number is missing."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
from evaluations import evaluation
from hypothesis import given
from hypothesis import strategies as st

from ups_jax.config import GatesConfig
from ups_jax.metrics import METRIC_VERSION
from ups_jax.pipeline import gates
from ups_jax.pipeline.gates import Decision, Interval, improvement
from ups_jax.pipeline.scores import Evaluation, metric_scales, metric_values, protocol_digest

NONE = GatesConfig(ratios={}, beat_trivial=False)
# Decisions on candidates that were trained on none of the evaluated trajectories.
decide = partial(gates.decide, trained_on=0.0)
NAN = math.nan


def status(decision: Decision, kind: str, key: str | None = None) -> str:
    (gate,) = [gate for gate in decision.gates if gate.kind == kind and key in (None, gate.key)]
    assert gate.message.startswith(f"{gate.key}: ")
    assert gate.passed or gate.message in decision.reasons
    return gate.status


# What is changed of the rules, the candidate's nrmse, the baseline's, the answer of the delta gate.
DELTAS: list[tuple[dict[str, Any], Any, Any, str]] = [
    ({}, 0.97, 1.0, "pass"),
    ({}, 0.98, 1.0, "pass"),
    ({}, 0.981, 1.0, "fail"),
    ({}, 1.0, 1.0, "fail"),
    ({}, 2.0, 1.0, "fail"),
    # A share of the baseline, whatever its size.
    ({}, 0.97e-6, 1e-6, "pass"),
    ({}, 0.99e-6, 1e-6, "fail"),
    ({"delta": "absolute"}, 0.97e-6, 1e-6, "fail"),
    ({"delta": "absolute"}, 0.5, 0.52, "pass"),
    ({"delta": "absolute"}, 0.5, 0.519, "fail"),
    ({"higher_is_better": ("nrmse",)}, 1.02, 1.0, "pass"),
    ({"higher_is_better": ("nrmse",)}, 0.97, 1.0, "fail"),
    ({"metric": "rollout/correlation_time"}, 1.02, 1.0, "pass"),
    ({"metric": "rollout/correlation_time"}, 0.9, 1.0, "fail"),
    # Nothing is better than 0, and 0 is not better than itself.
    ({}, 0.0, 0.0, "fail"),
    ({}, 1e-9, 0.0, "fail"),
    ({}, 0.0, 1e-9, "pass"),
    ({}, NAN, 1.0, "missing"),
    ({}, None, 1.0, "missing"),
    ({}, math.inf, 1.0, "missing"),
    ({}, -math.inf, 1.0, "missing"),
    ({}, ..., 1.0, "missing"),
    ({"on_missing": "warn"}, ..., 1.0, "missing"),
    ({"on_missing": "warn"}, NAN, 1.0, "missing"),
    ({}, 0.5, NAN, "ignored"),
    ({}, 0.5, None, "ignored"),
    ({}, 0.5, math.inf, "ignored"),
    ({}, 0.5, ..., "ignored"),
]


@pytest.mark.parametrize(("change", "candidate", "baseline", "expected"), DELTAS)
def test_improvement(change: dict[str, Any], candidate: Any, baseline: Any, expected: str) -> None:
    rules = replace(NONE, **change)
    sides = [{} if value is ... else {rules.metric: value} for value in (candidate, baseline)]
    decision = decide(sides[0], sides[1], rules, 0.02)
    assert status(decision, "delta") == expected
    assert decision.passed == (expected in ("pass", "ignored"))


def test_a_first_candidate_is_told_apart_from_one_that_passed() -> None:
    first = decide({"nrmse": 0.5, "conservation_gap": 1.0}, None, GatesConfig(), 0.02)
    assert (first.status, first.passed) == ("no_baseline", True)
    assert status(first, "delta") == status(first, "ratio", "conservation_gap") == "no_baseline"
    assert status(first, "ratio", "ece") == "not_applicable"
    assert decide({"nrmse": NAN}, None, GatesConfig(), 0.02).status == "failed"
    assert decide({}, None, GatesConfig(), 0.02).status == "failed"


# What is changed of the rules, the candidate's number, the baseline's, the answer of the ratio gate (factor 1).
RATIOS: list[tuple[dict[str, Any], Any, Any, str]] = [
    ({}, 1.0, 1.0, "pass"),
    ({}, 1.05, 1.0, "pass"),
    ({}, 1.06, 1.0, "fail"),
    ({"tolerance": 0.0}, 1.01, 1.0, "fail"),
    ({"tolerances": {"gap": 0.5}}, 1.5, 1.0, "pass"),
    ({"ratios": {"gap": 2.0}}, 2.1, 1.0, "pass"),
    ({"ratios": {"gap": 2.0}}, 2.11, 1.0, "fail"),
    # Round-off is not compared with round-off.
    ({}, 9e-7, 1e-9, "pass"),
    ({}, 2e-6, 1e-9, "fail"),
    ({}, 2e-6, 0.0, "fail"),
    ({"floors": {"gap": 1e-5}}, 2e-6, 0.0, "pass"),
    ({"higher_is_better": ("gap",)}, 0.95, 1.0, "pass"),
    ({"higher_is_better": ("gap",)}, 0.94, 1.0, "fail"),
    ({"higher_is_better": ("gap",)}, 3.0, 1.0, "pass"),
    ({}, ..., ..., "not_applicable"),
    ({}, ..., 1.0, "missing"),
    ({}, ..., NAN, "missing"),
    ({}, NAN, 1.0, "missing"),
    ({}, None, 1.0, "missing"),
    ({}, NAN, ..., "missing"),
    ({}, 1.0, NAN, "ignored"),
    ({}, 1.0, None, "ignored"),
    ({}, 1.0, ..., "ignored"),
    ({"on_missing": "warn"}, ..., 1.0, "warned"),
    ({"on_missing": "warn"}, NAN, 1.0, "missing"),
    ({"on_missing": "warn", "required": ("gap",)}, ..., 1.0, "missing"),
]


@pytest.mark.parametrize(("change", "candidate", "baseline", "expected"), RATIOS)
def test_ratio(change: dict[str, Any], candidate: Any, baseline: Any, expected: str) -> None:
    rules = replace(NONE, **{"ratios": {"gap": 1.0}} | change)
    sides = [
        {"nrmse": value} | ({} if gap is ... else {"gap": gap}) for value, gap in ((0.5, candidate), (1.0, baseline))
    ]
    decision = decide(sides[0], sides[1], rules, 0.02)
    assert status(decision, "ratio") == expected
    assert decision.passed == (expected not in ("fail", "missing"))


@pytest.mark.parametrize("power", [-30, -9, 9, 30])
@pytest.mark.parametrize(("gap", "expected"), [(9e-7, "pass"), (2e-6, "fail"), (1e-3, "fail")])
def test_the_floor_of_a_ratio_is_in_units_of_the_fields(power: int, gap: float, expected: str) -> None:
    rules, unit = replace(NONE, ratios={"gap": 1.0}), 10.0**power
    candidate, baseline = {"nrmse": 0.5, "gap": gap * unit}, {"nrmse": 1.0, "gap": 1e-9 * unit}
    assert status(decide(candidate, baseline, rules, 0.02, scales={"gap": unit}), "ratio") == expected
    # A floor of the metric alone is in the metric's unit.
    absolute = replace(rules, floors={"gap": 1e-5 * unit})
    decision = decide(candidate, baseline, absolute, 0.02, scales={"gap": unit})
    assert status(decision, "ratio") == ("pass" if gap < 1e-5 else "fail")


@pytest.mark.parametrize("unit", [1e-30, 1e-20, 1e20, 1e30])
@pytest.mark.parametrize(("candidate", "expected"), [(0.97, "pass"), (0.98, "pass"), (0.981, "fail"), (1.0, "fail")])
def test_an_absolute_improvement_is_required_in_any_unit(unit: float, candidate: float, expected: str) -> None:
    rules = replace(NONE, delta="absolute", metric="rmse")
    decision = decide({"rmse": candidate * unit}, {"rmse": unit}, rules, 0.02 * unit)
    assert status(decision, "delta") == expected


def test_scales_have_the_names_of_the_metrics_and_older_results_have_none() -> None:
    result = evaluation(0.1)
    assert metric_scales(result) == {}
    older = protocol_digest(result)
    scales = {"rmse": 2.0, "conservation_rmse": 3.0, "boundary_rmse": 2.0}
    result["meta"] |= {"tasks": {"waves": {"scales": scales}}, "metric_version": METRIC_VERSION}
    values = metric_scales(result)
    assert values["conservation_gap"] == values["one_step/conservation_rmse"] == 3.0 and values["bc_violation"] == 2.0
    assert values.keys() < metric_values(result).keys() and "nrmse" not in values
    # Formulas of two versions are not compared.
    assert protocol_digest(result) != older


LIMITS: list[tuple[dict[str, Any], Any, str]] = [
    ({}, 0.1, "pass"),
    ({}, 0.10001, "fail"),
    ({"higher_is_better": ("gap",)}, 0.1, "pass"),
    ({"higher_is_better": ("gap",)}, 0.09, "fail"),
    ({}, NAN, "missing"),
    ({}, ..., "missing"),
    ({"on_missing": "warn"}, ..., "missing"),
]


@pytest.mark.parametrize(("change", "candidate", "expected"), LIMITS)
@pytest.mark.parametrize("baseline", [None, {"nrmse": 1.0}])
def test_absolute_limit_holds_with_and_without_a_baseline(
    change: dict[str, Any], candidate: Any, expected: str, baseline: Any
) -> None:
    rules = replace(NONE, **{"limits": {"gap": 0.1}} | change)
    values = {"nrmse": 0.5} | ({} if candidate is ... else {"gap": candidate})
    decision = decide(values, baseline, rules, 0.02)
    assert status(decision, "absolute") == expected and decision.passed == (expected == "pass")


def test_what_needs_no_training_has_to_be_beaten() -> None:
    rules = replace(NONE, beat_trivial=True)
    assert status(decide({"nrmse": 0.9}, None, rules, 0.02, trivial={"nrmse": 1.0}), "trivial") == "pass"
    same = decide({"nrmse": 1.0}, None, rules, 0.02, trivial={"nrmse": 1.0})
    assert status(same, "trivial") == "fail" and not same.passed
    later = replace(rules, metric="correlation_time")
    assert not decide({"correlation_time": 1.0}, None, later, 0.02, trivial={"correlation_time": 2.0}).passed
    assert decide({"nrmse": 1.0}, None, NONE, 0.02, trivial={"nrmse": 0.1}).passed


def test_with_an_interval_its_lower_bound_counts() -> None:
    better, baseline = {"nrmse": 0.9}, {"nrmse": 1.0}
    assert decide(better, baseline, NONE, 0.02, interval=Interval(lower=0.03, upper=0.2)).passed
    decision = decide(better, baseline, NONE, 0.02, interval=Interval(lower=0.01, upper=0.2))
    assert status(decision, "delta") == "fail" and "1.00 %" in decision.reasons[0]
    assert not decide(better, baseline, NONE, 0.02, interval=Interval(lower=NAN, upper=NAN)).passed


def test_each_stage_has_its_delta_and_a_negative_one_lets_a_worse_one_pass() -> None:
    assert not decide({"nrmse": 0.9}, {"nrmse": 1.0}, NONE, 0.2).passed
    assert decide({"nrmse": 1.01}, {"nrmse": 1.0}, NONE, -0.02).passed


def test_the_defaults_are_the_four_gates_of_the_original() -> None:
    assert GatesConfig().ratios == {"conservation_gap": 1.0, "bc_violation": 1.0, "ece": 1.25, "wall_clock": 1.0}
    values = {"nrmse": 1.0, "conservation_gap": 1.0, "bc_violation": 1.0, "ece": 0.1, "wall_clock": 1.0}
    better = values | {"nrmse": 0.9}
    assert decide(better, values, GatesConfig(), 0.02).passed
    for name, limit in {"conservation_gap": 1.05, "bc_violation": 1.05, "ece": 0.125 * 1.05, "wall_clock": 1.5}.items():
        assert decide(better | {name: 0.999 * limit}, values, GatesConfig(), 0.02).passed
        refused = decide(better | {name: 1.001 * limit}, values, GatesConfig(), 0.02)
        assert not refused.passed and [text.split(":")[0] for text in refused.reasons] == [name]


@pytest.mark.parametrize("baseline", [None, {"nrmse": 1.0}])
@pytest.mark.parametrize(
    ("on_missing", "trained_on", "expected"),
    [
        ("fail", 0.0, "pass"),
        ("fail", 1.0, "fail"),
        ("warn", 3.0, "fail"),
        ("fail", None, "missing"),
        ("warn", None, "warned"),
    ],
)
def test_a_candidate_must_not_be_trained_on_the_evaluated_trajectories(
    baseline: Any, on_missing: Any, trained_on: float | None, expected: str
) -> None:
    rules = replace(NONE, on_missing=on_missing)
    decision = gates.decide({"nrmse": 0.5}, baseline, rules, 0.02, trained_on=trained_on)
    assert status(decision, "unseen") == expected and decision.passed == (expected in ("pass", "warned"))


def test_the_number_of_trained_trajectories_is_the_largest_of_the_seeds() -> None:
    results = [evaluation(), evaluation()]
    assert Evaluation(tuple(results)).trained_on == 0
    results[1]["meta"]["trained_on"] = 2
    assert Evaluation(tuple(results)).trained_on == 2
    # Unknown, and a result of an earlier version.
    results[0]["meta"]["trained_on"] = None
    assert Evaluation(tuple(results)).trained_on is None
    del results[0]["meta"]["trained_on"]
    assert Evaluation(tuple(results)).trained_on is None


names = st.sampled_from(["nrmse", "gap", "ece", "other"])
numbers = st.none() | st.floats()
sides = st.dictionaries(names, numbers)
finite = st.floats(allow_nan=False, allow_infinity=False)
weights = st.floats(min_value=0, allow_nan=False, allow_infinity=False)
rules_of_any_kind = st.builds(
    GatesConfig,
    metric=names,
    delta=st.sampled_from(["relative", "absolute"]),
    ratios=st.dictionaries(names, st.floats(min_value=1e-9, max_value=1e9)),
    tolerance=weights,
    floor=weights,
    tolerances=st.dictionaries(names, weights),
    floors=st.dictionaries(names, weights),
    limits=st.dictionaries(names, finite),
    higher_is_better=st.lists(names).map(tuple),
    required=st.lists(names).map(tuple),
    on_missing=st.sampled_from(["fail", "warn"]),
    beat_trivial=st.booleans(),
)
intervals = st.none() | st.builds(Interval, lower=st.floats(), upper=st.floats())


@given(sides, st.none() | sides, rules_of_any_kind, finite, st.none() | sides, intervals)
def test_nothing_makes_a_candidate_pass_whose_required_number_is_missing(
    candidate: Any, baseline: Any, rules: GatesConfig, min_delta: float, trivial: Any, interval: Any
) -> None:
    decision = decide(candidate, baseline, rules, min_delta, trivial=trivial, interval=interval)
    json.dumps(decision.to_dict(), allow_nan=False)
    needed = {rules.metric, *rules.required, *rules.limits}
    measured = {key for key, value in candidate.items() if value is not None and math.isfinite(value)}
    absent = needed - measured
    # A ratio's number that was measured and is not finite is never passed over either.
    broken = rules.ratios.keys() & candidate.keys() - measured
    if absent or broken:
        assert not decision.passed and decision.reasons
    assert (decision.status == "failed") == bool(decision.reasons)


@given(finite, finite, rules_of_any_kind)
def test_an_improvement_is_positive_exactly_for_the_better_one(one: float, other: float, rules: GatesConfig) -> None:
    gain = improvement(one, other, rules, "x")
    assert (gain > 0) == (one < other) or abs(gain) < 1e-300


# Two tasks: the mean of each number, and each task's own.
BOTH = {"nrmse": 1.0, "nrmse@a": 0.5, "nrmse@b": 1.5, "conservation_gap": 0.1, "conservation_gap@a": 0.0,
        "conservation_gap@b": 0.2, "wall_clock": 1.0}  # fmt: skip


def statuses(decision: Decision) -> dict[tuple[str, str], str]:
    return {(gate.kind, gate.key): gate.status for gate in decision.gates}


def test_every_rule_is_one_for_each_of_several_tasks() -> None:
    rules = GatesConfig(
        ratios={"conservation_gap": 1.0, "wall_clock": 2.0},
        limits={"nrmse": 1.0, "nrmse@a": 0.3},
        required=("bc_violation",),
    )
    candidate = BOTH | {
        "nrmse": 0.8,
        "nrmse@a": 0.1,
        "conservation_gap@b": 0.3,
        "bc_violation@a": 0.0,
        "bc_violation": 0.0,
    }
    actual = statuses(decide(candidate, BOTH, rules, 0.02, trivial={"nrmse": 9.0, "nrmse@a": 0.05, "nrmse@b": 2.0}))
    assert actual == {
        ("delta", "nrmse"): "pass",
        ("trivial", "nrmse@a"): "fail",
        ("trivial", "nrmse@b"): "pass",
        ("ratio", "conservation_gap@a"): "pass",
        ("ratio", "conservation_gap@b"): "fail",
        ("ratio", "wall_clock"): "pass",
        ("ratio", "nrmse@a"): "pass",
        ("ratio", "nrmse@b"): "pass",
        ("absolute", "nrmse@a"): "pass",
        ("absolute", "nrmse@b"): "fail",
        ("required", "bc_violation@a"): "pass",
        ("required", "bc_violation@b"): "missing",
        ("unseen", "trained_on"): "pass",
    }


@pytest.mark.parametrize("worse, passed", [(1.5, True), (1.57, True), (1.6, False)])
def test_the_mean_does_not_improve_at_one_task_s_cost(worse: float, passed: bool) -> None:
    """A task may be worse by the tolerance, 5 %, whatever the mean gains."""
    candidate = BOTH | {"nrmse": 0.7, "nrmse@a": 0.1, "nrmse@b": worse}
    decision = decide(candidate, BOTH, GatesConfig(ratios={}), 0.02)
    assert decision.passed is passed
    if not passed:
        assert [gate.key for gate in decision.gates if not gate.passed] == ["nrmse@b"]


def test_a_task_s_number_that_is_missing_fails() -> None:
    candidate = {key: value for key, value in BOTH.items() if key != "conservation_gap@b"} | {"nrmse": 0.5}
    actual = statuses(decide(candidate, BOTH, GatesConfig(ratios={"conservation_gap": 1.0}), 0.02))
    assert actual["ratio", "conservation_gap@b"] == "missing"
