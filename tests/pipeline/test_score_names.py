"""The gates' names of an evaluation's numbers."""

from __future__ import annotations

import math

import pytest
from evaluations import evaluation

from ups_jax.metrics import field
from ups_jax.pipeline.scores import GATE_NAMES, METRIC_NAMES, METRICS, mean_over_seeds, metric_values, trivial_values


def test_the_names_are_those_of_the_evaluation() -> None:
    assert (*field.METRICS, "correlation_time") == METRICS
    assert {*GATE_NAMES, "nrmse", "one_step/nrmse"} <= set(METRIC_NAMES)


def test_numbers_of_a_rollout() -> None:
    values = evaluation(0.1)
    numbers, rollout = metric_values(values), values["metrics"]["waves"]["rollout"]
    assert set(numbers) <= set(METRIC_NAMES) and "ece" not in numbers
    assert numbers["nrmse"] == numbers["rollout/nrmse"] == rollout["nrmse"]
    assert numbers["one_step/nrmse"] == values["metrics"]["waves"]["one_step"]["nrmse"]
    assert numbers["conservation_gap"] == rollout["conservation_rmse"]
    assert numbers["bc_violation"] == rollout["boundary_rmse"]
    assert numbers["correlation_time"] == 1.0
    assert numbers["wall_clock"] == values["meta"]["seconds_per_rollout_step"]
    assert trivial_values(values)["nrmse"] == 1.0


def test_what_is_not_finite_is_there_and_is_no_number() -> None:
    assert math.isnan(metric_values(evaluation(None))["nrmse"])


def test_several_tasks_count_alike() -> None:
    one, other = ({"rollout": {"nrmse": value, "boundary_rmse": 1.0}} for value in (0.1, 0.3))
    ensemble = {"a": {"rollout": {"coverage_90": 0.8}}, "b": {"rollout": {"coverage_90": 1.0}}}
    values = {
        "metrics": {"a": one, "b": other},
        "variants": {"ensemble": ensemble},
        "baselines": {"persistence": {"a": one, "b": one}},
        "meta": {"seconds_per_rollout_step": None},
    }
    numbers = metric_values(values)
    assert numbers["nrmse"] == pytest.approx(0.2) and numbers["ece"] == pytest.approx(0.1)
    assert math.isnan(numbers["wall_clock"])
    assert (numbers["nrmse@a"], numbers["rollout/nrmse@b"], numbers["bc_violation@b"]) == (0.1, 0.3, 1.0)
    assert trivial_values(values)["nrmse@b"] == 0.1
    other["rollout"].pop("boundary_rmse")
    assert "bc_violation" not in metric_values(values) and metric_values(values)["bc_violation@a"] == 1.0


def test_a_steady_task_has_its_own_section_and_baseline() -> None:
    section = {"nrmse": 0.2, "boundary_rmse": 0.1, "conservation_rmse": 0.3}
    values = {
        "metrics": {"a": {"steady": section}},
        "variants": {},
        "baselines": {"mean_field": {"a": {"steady": section | {"nrmse": 0.9}}}},
        "meta": {},
    }
    assert metric_values(values)["nrmse"] == 0.2 and trivial_values(values)["nrmse"] == 0.9
    assert "wall_clock" not in metric_values(values)


def test_seeds_are_averaged_over_what_all_have() -> None:
    assert mean_over_seeds([{"a": 1.0, "b": 1.0}, {"a": 3.0}]) == {"a": 2.0}
    assert math.isnan(mean_over_seeds([{"a": 1.0}, {"a": math.nan}])["a"])
