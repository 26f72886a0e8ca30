"""The sentences of the comparison of a run with its solver."""

from __future__ import annotations

import math

from rollout import crossing


def test_the_solver_is_met_at_the_models_error_and_at_its_speed() -> None:
    errors = {"model": 1e-3, "fine": 1e-4, "equal": 1e-3, "coarse": 1e-2, "blown up": math.nan}
    rates = {"model": 100.0, "fine": 10.0, "equal": 50.0, "coarse": 500.0, "blown up": 1e4}
    said = crossing(errors, rates)
    assert "the fastest is equal (1.00e-03), 0.5 times as fast as the model" in said
    assert "as fast as the model the best is coarse, with 1.00e-02" in said


def test_a_solver_that_cannot_is_said_to_be_none() -> None:
    said = crossing({"model": 1e-6, "fine": 1e-4}, {"model": 100.0, "fine": 10.0})
    assert "no setting of the solver has the model's error" in said
    assert "no setting of the solver is as fast as the model" in said
