"""The ensemble variant of an evaluation: members whose spread and error are known in closed form."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from ups_jax.config import EvaluationConfig
from ups_jax.core.task import Statistics, Task
from ups_jax.evaluation.console import print_table
from ups_jax.evaluation.evaluate import evaluate_predictor
from ups_jax.evaluation.plots.html_report import render_report
from ups_jax.evaluation.result import evaluation_result

TASK = Task(
    name="still", channels=("u",), axes=("x",), shape=(16,), origin=(0.0,), spacing=(1 / 16,), periodic=(True,), dt=0.5,
    statistics=Statistics(mean=(0.0,), std=(1.0,), delta_std=(0.1,)),
)  # fmt: skip
ROWS, FRAMES, MEMBERS = 6, 5, 16


class Still:
    """Stands still, as the truth does."""

    def rollout_arrays(self, u0, steps, cond, cond_mask):
        return np.repeat(u0[:, -1:], steps, axis=1)

    def reconstruct(self, fields, cond, cond_mask):
        return fields


def trajectories():
    """Each is a random field that does not change, measured with an error of deviation 0.1 in every later frame."""
    rng = np.random.default_rng(0)
    first = rng.normal(size=(ROWS, 1, 16, 1))
    later = first + 0.1 * rng.normal(size=(ROWS, FRAMES - 1, 16, 1))
    return SimpleNamespace(
        fields=np.concatenate([first, later], 1).astype(np.float32), cond=np.zeros((ROWS, 0), np.float32),
        cond_mask=np.zeros((ROWS, 0), np.float32), time=0.5 * np.arange(FRAMES), ids=list(range(ROWS)),
    )  # fmt: skip


def drawn(spread):
    """Members that differ from the given frame by white noise of a deviation."""
    rng, calls = np.random.default_rng(1), []

    def members(u0, steps, cond, cond_mask, *, members):
        calls.append((u0.shape, members))
        shape = (members, len(u0), steps, *u0.shape[2:])
        return (u0[None, :, -1:] + spread * rng.normal(size=shape)).astype(np.float32)

    return members, calls


def evaluated(spread, batch_size=4):
    way, calls = drawn(spread)
    config = EvaluationConfig(batch_size=batch_size, bootstrap=5, members=MEMBERS)
    evaluation = evaluate_predictor(
        Still(), trajectories(), TASK, config, context=1, seed=0, ensembles={"ensemble": way}
    )
    return evaluation, calls


def test_members_that_could_change_places_with_the_truth_are_calibrated_and_beat_the_absolute_error() -> None:
    evaluation, calls = evaluated(0.1)
    metrics = evaluation.variants["ensemble"]["rollout"]
    assert metrics["spread_skill"] == pytest.approx(1, abs=0.1)
    assert metrics["coverage_50"] == pytest.approx(0.5, abs=0.1) and metrics["coverage_90"] == pytest.approx(
        0.9, abs=0.06
    )
    # Of a Gaussian error the CRPS is sigma / sqrt(pi), where the absolute error of its centre is sigma sqrt(2 / pi).
    assert metrics["crps"] == pytest.approx(0.1 / np.sqrt(np.pi), rel=0.1)
    assert evaluation.metrics["rollout"]["mae"] == pytest.approx(0.1 * np.sqrt(2 / np.pi), rel=0.1)
    assert metrics["decorrelation_time"] == pytest.approx(0.5 * (FRAMES - 1))
    # Every call has one shape: 4 and 2 rows filled up.
    assert set(calls) == {((4, 1, 16, 1), MEMBERS), ((4, 1, 16, 1), 1)} and calls.count(((4, 1, 16, 1), 1)) == 1


def test_members_that_agree_too_much_are_not() -> None:
    metrics = evaluated(0.02)[0].variants["ensemble"]["rollout"]
    assert metrics["spread_skill"] < 0.4 and metrics["coverage_90"] < 0.5


def test_the_errors_beside_them_are_those_of_the_members_mean() -> None:
    evaluation, _ = evaluated(0.1)
    ensemble, alone = evaluation.variants["ensemble"]["rollout"], evaluation.metrics["rollout"]
    # The mean of the members has a variance of 0.1^2 / 16 beside the truth's own.
    assert ensemble["rmse"] == pytest.approx(alone["rmse"] * np.sqrt(1 + 1 / MEMBERS), rel=0.03)
    assert ensemble["nrmse_by_time"][0] < 2 * alone["nrmse_by_time"][0]


def test_a_batch_as_large_as_the_split_gives_the_same_scores_and_seconds() -> None:
    ensemble = evaluated(0.1, batch_size=64)[0].variants["ensemble"]
    assert ensemble["members"] == MEMBERS and ensemble["seconds_per_rollout_step"] > 0
    assert ensemble["rollout"]["spread_skill"] == pytest.approx(1, abs=0.1)


def test_the_report_and_the_printed_table_tell_its_scores(capsys: pytest.CaptureFixture[str]) -> None:
    from rich.console import Console

    evaluation, _ = evaluated(0.1)
    metrics = evaluation.variants["ensemble"]["rollout"]
    page = render_report(evaluation_result([evaluation], {}), {}, {"config": {}})
    assert "Ensembles" in page and f"<td>{metrics['crps']:.3g}</td><td>{metrics['spread_skill']:.3g}</td>" in page
    print_table(Console(width=200), evaluation)
    output = capsys.readouterr().out
    assert all(
        text in output
        for text in (f"ensemble of {MEMBERS}", f"{metrics['crps']:.3g}", f"{metrics['spread_skill']:.3g}")
    )
    without = evaluate_predictor(Still(), trajectories(), TASK, EvaluationConfig(bootstrap=5), context=1, seed=0)
    assert "Ensembles" not in render_report(evaluation_result([without], {}), {}, {"config": {}})
