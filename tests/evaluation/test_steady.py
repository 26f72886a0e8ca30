"""Steady evaluations of solvers whose errors are known in closed form, and the pictures of one."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from ups_jax.config import EvaluationConfig
from ups_jax.core.task import Input, Statistics, Task
from ups_jax.data.dataset import Trajectories
from ups_jax.evaluation.console import print_table
from ups_jax.evaluation.plots.figures import write_plots
from ups_jax.evaluation.plots.html_report import render_report
from ups_jax.evaluation.result import SteadyEvaluation, evaluation_result, to_json_values, write_json
from ups_jax.evaluation.steady import evaluate_steady

SHAPE = (6, 8)
TASK = Task(
    name="plates", kind="steady", channels=("u",), inputs=(Input(name="nu"),), axes=("x", "y"), shape=SHAPE,
    origin=(0.5 / 6, 0.5 / 8), spacing=(1 / 6, 1 / 8), periodic=(False, False), dt=1.0,
    statistics=Statistics(mean=(0.0,), std=(1.0,), delta_std=(1.0,)),
)  # fmt: skip


def solutions(count: int = 5) -> Trajectories:
    """u = a field times i + 1 for the given field that is i + 1 everywhere."""
    field = np.random.default_rng(0).normal(size=SHAPE).astype(np.float32)
    numbers = np.arange(1, count + 1, dtype=np.float32)[:, None, None]
    return Trajectories(
        fields=(numbers * field)[:, None, ..., None],
        inputs=np.broadcast_to(numbers, (count, *SHAPE))[..., None].copy(),
        cond=np.zeros((count, 0), np.float32),
        cond_mask=np.zeros((count, 0), np.float32),
        time=np.zeros(1),
        ids=np.arange(100, 100 + count),
    )


def evaluation(wrong: dict[int, float] | None = None, count: int = 5, batch_size: int = 2) -> SteadyEvaluation:
    """Evaluate a solver with a relative error in some solutions; the mean field is solution 3."""
    trajectories = solutions(count)

    def solve(inputs: np.ndarray, steps: int, cond: np.ndarray, cond_mask: np.ndarray) -> np.ndarray:
        factors = np.array([1 + (wrong or {}).get(int(number), 0.0) for number in inputs[:, 0, 0, 0]], np.float32)
        return (inputs * trajectories.fields[:1, 0] * factors[:, None, None, None])[:, None]

    config = EvaluationConfig(batch_size=batch_size, bootstrap=50)
    return evaluate_steady(
        solve, trajectories, TASK, config, mean_field=trajectories.fields[min(2, count - 1), 0], seed=0
    )


def test_errors_and_the_baseline_have_their_closed_forms() -> None:
    measured = evaluation({2: 0.1, 5: -0.4})
    assert measured.metrics["steady"]["nrmse"] == pytest.approx((0.1 + 0.4) / 5, rel=1e-4)
    expected = np.mean([abs(3 - number) / number for number in range(1, 6)])
    assert measured.baselines["mean_field"]["steady"]["nrmse"] == pytest.approx(expected, rel=1e-4)
    low, high = measured.intervals["steady"]["nrmse"]
    assert low <= measured.metrics["steady"]["nrmse"] <= high
    assert [example.id for example in measured.examples][-1] == "104"
    assert measured.examples[-1].nrmse == pytest.approx(0.4, rel=1e-4)


@pytest.mark.parametrize("count", [1, 5])
def test_the_batch_size_changes_no_number(count: int) -> None:
    whole, chunked = evaluation({2: 0.1}, count, 64), evaluation({2: 0.1}, count, 2)
    for name, value in whole.metrics["steady"].items():
        assert chunked.metrics["steady"][name] == pytest.approx(value, rel=1e-5, abs=1e-7)


def test_samples_are_scored_by_their_distribution_and_a_variant_by_its_own_error() -> None:
    """The truth is a sample too: a field times i + 1 and white noise of deviation 0.2, as are the members."""
    rng, trajectories = np.random.default_rng(3), solutions(8)
    noisy = replace(
        trajectories, fields=trajectories.fields + 0.2 * rng.normal(size=trajectories.fields.shape).astype(np.float32)
    )

    def centre(inputs: np.ndarray, steps: int, cond: np.ndarray, cond_mask: np.ndarray) -> np.ndarray:
        return (inputs * trajectories.fields[:1, 0])[:, None]

    def drawn(inputs: np.ndarray, steps: int, cond: np.ndarray, cond_mask: np.ndarray, *, members: int) -> np.ndarray:
        alone = centre(inputs, steps, cond, cond_mask)
        return (alone + 0.2 * rng.normal(size=(members, *alone.shape))).astype(np.float32)

    measured = evaluate_steady(
        centre, noisy, TASK, EvaluationConfig(batch_size=3, bootstrap=5, members=12),
        mean_field=trajectories.fields[2, 0], seed=0, ensembles={"ensemble": drawn},
        variants={"corrector": lambda *arguments: drawn(*arguments, members=1)[0]},
    )  # fmt: skip
    ensemble, one = measured.variants["ensemble"], measured.variants["corrector"]
    assert ensemble["members"] == 12 and "decorrelation_time" not in ensemble["steady"]
    assert ensemble["steady"]["spread_skill"] == pytest.approx(1, abs=0.1)
    assert ensemble["steady"]["crps"] == pytest.approx(0.2 / np.sqrt(np.pi), rel=0.1)
    assert one["steady"]["rmse"] == pytest.approx(np.sqrt(2) * measured.metrics["steady"]["rmse"], rel=0.1)
    assert one["seconds_per_rollout_step"] > 0
    page = render_report(to_json_values(evaluation_result([measured], {})), {}, {"config": {}})
    assert "Ensembles" in page and "decorrelation" not in page
    print_table(Console(file=(output := io.StringIO()), width=120), measured)
    assert "corrector solution" in output.getvalue() and "ensemble of 12 members: CRPS 0.1" in output.getvalue()


def test_a_solution_that_is_not_finite_anywhere_is_drawn_with_holes(tmp_path: Path) -> None:
    assert len(write_plots(tmp_path, [evaluation({3: np.nan})], [])) == 1


def test_the_json_has_one_section_with_the_contracts_keys(tmp_path: Path) -> None:
    write_json(tmp_path / "test.json", evaluation_result([evaluation({3: np.nan})], {"steps": 1}))
    values = json.loads((tmp_path / "test.json").read_text())
    keys = {
        "nrmse", "rmse", "max_error", "vrmse", "conservation_rmse", "boundary_rmse", "fourier_rmse_low",
        "fourier_rmse_mid", "fourier_rmse_high", "nonfinite", "mae", "nrmse_by_channel",
    }  # fmt: skip
    assert set(values["metrics"]["plates"]) == {"steady"} == set(values["baselines"]["mean_field"]["plates"])
    assert set(values["metrics"]["plates"]["steady"]) == keys
    assert values["metrics"]["plates"]["steady"]["nonfinite"] == 1
    assert values["metrics"]["plates"]["steady"]["nrmse"] is None
    assert {"trajectories", "horizon", "seconds_per_rollout_step", "protocol"} <= values["meta"].keys()


def test_pictures_and_report_show_given_field_truth_prediction_and_error(tmp_path: Path) -> None:
    measured = evaluation({2: 0.1, 5: -0.4})
    (path,) = write_plots(tmp_path, [measured], [])
    assert path.name == "plates_fields_u.png" and path.stat().st_size > 10_000
    page = render_report(to_json_values(evaluation_result([measured], {})), {"a": b"x"}, {"config": {}})
    assert "Steady state" in page and "mean_field" in page
