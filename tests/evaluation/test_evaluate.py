"""Evaluation of predictors whose errors are known in closed form: decaying waves on a small grid."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import pytest

from ups_jax.config import EvaluationConfig
from ups_jax.core.errors import DataError, StorageError
from ups_jax.core.task import Coefficient, Statistics, Task
from ups_jax.evaluation.evaluate import evaluate_predictor
from ups_jax.evaluation.result import evaluation_result, write_json
from ups_jax.metrics.aggregate import ROLLOUT_METRICS, bootstrap_interval

TASK = Task(
    name="decay", channels=("u",), axes=("x",), shape=(16,), origin=(0.0,), spacing=(1 / 16,), periodic=(True,), dt=0.5,
    coefficients=(Coefficient(name="rate"),), statistics=Statistics(mean=(0.0,), std=(1.0,), delta_std=(0.1,)),
)  # fmt: skip
FACTOR = 0.8
FRAMES = 6
SECTIONS = ("one_step", "rollout")


def decaying_waves(count=5, context=1):
    """u(t) = a * 0.8^t * sin(2 pi x): trajectory i has amplitude i + 1."""
    wave = np.sin(2 * np.pi * np.arange(16) / 16)
    amplitude = np.arange(1, count + 1)[:, None, None] * FACTOR ** np.arange(FRAMES)[None, :, None]
    return SimpleNamespace(
        fields=(amplitude * wave)[..., None].astype(np.float32),
        cond=np.arange(count, dtype=np.float32)[:, None],
        cond_mask=np.ones((count, 1), np.float32),
        time=0.5 * np.arange(FRAMES),
        ids=list(range(100, 100 + count)),
    )


@dataclass
class Scaler:
    """Multiplies the last frame by `factor` a step; trajectories whose cond is in `broken` become NaN."""

    factor: float = FACTOR
    codec: float = 1.0
    broken: tuple[int, ...] = ()

    def __post_init__(self):
        self.shapes = []

    def rollout_arrays(self, u0, steps, cond, cond_mask):
        self.shapes.append((u0.shape, steps))
        factors = (self.factor ** np.arange(1, steps + 1)).astype(np.float32)
        pred = u0[:, -1:] * factors[None, :, None, None]
        pred[np.isin(cond[:, 0], self.broken)] = np.nan
        return pred

    def reconstruct(self, fields, cond, cond_mask):
        return np.float32(self.codec) * fields


def run(predictor, trajectories=None, context=1, variants=None, **config):
    config = EvaluationConfig(**{"batch_size": 2, "bootstrap": 50} | config)
    trajectories = trajectories or decaying_waves()
    return evaluate_predictor(predictor, trajectories, TASK, config, context=context, seed=0, variants=variants or {})


def test_a_perfect_predictor_has_no_error_and_the_baselines_their_closed_forms():
    evaluation = run(Scaler(codec=0.99))
    for section in SECTIONS:
        assert evaluation.metrics[section]["nrmse"] == pytest.approx(0, abs=1e-6)
        assert evaluation.metrics[section]["nonfinite"] == 0
        assert evaluation.baselines["codec"][section]["nrmse"] == pytest.approx(0.01, rel=1e-3)
    persistence = evaluation.baselines["persistence"]
    assert persistence["one_step"]["nrmse"] == pytest.approx(1 / FACTOR - 1, rel=1e-5)
    expected = [1 / FACTOR**k - 1 for k in range(1, FRAMES)]
    assert persistence["rollout"]["nrmse_by_time"] == pytest.approx(expected, rel=1e-5)
    assert persistence["rollout"]["nrmse"] == pytest.approx(np.mean(expected), rel=1e-5)


def test_rollout_errors_grow_while_one_step_errors_do_not():
    evaluation = run(Scaler(factor=0.88))
    assert evaluation.metrics["one_step"]["nrmse"] == pytest.approx(0.1, rel=1e-4)
    assert evaluation.metrics["rollout"]["nrmse_by_time"] == pytest.approx([1.1**k - 1 for k in range(1, 6)], rel=1e-4)


def test_metrics_do_not_depend_on_the_batch_size_and_every_call_has_one_shape():
    whole, predictor = run(Scaler(factor=0.9), batch_size=64), Scaler(factor=0.9)
    chunked = run(predictor, batch_size=2)
    for section in SECTIONS:
        for name, value in whole.metrics[section].items():
            assert chunked.metrics[section][name] == pytest.approx(value, rel=1e-5, abs=1e-7)
    assert set(predictor.shapes) == {((2, 1, 16, 1), 1), ((2, 1, 16, 1), FRAMES - 1)}
    np.testing.assert_allclose(chunked.spectra.prediction, whole.spectra.prediction, rtol=1e-5, atol=1e-9)


def test_a_longer_context_is_handed_over_whole_and_shortens_the_horizon():
    predictor = Scaler(factor=0.9)
    evaluation = run(predictor, context=3)
    assert set(predictor.shapes) == {((2, 3, 16, 1), 1), ((2, 3, 16, 1), FRAMES - 3)}
    assert evaluation.meta["horizon"] == FRAMES - 3
    assert len(evaluation.metrics["rollout"]["nrmse_by_time"]) == FRAMES - 3
    np.testing.assert_allclose(evaluation.time, 0.5 * np.arange(3, FRAMES))


def test_a_non_finite_trajectory_shows_in_every_number_and_is_counted():
    evaluation = run(Scaler(broken=(3,)))
    rollout = evaluation.metrics["rollout"]
    assert np.isnan(rollout["nrmse"]) and np.isnan(evaluation.intervals["rollout"]["nrmse"]).all()
    assert rollout["nonfinite"] == evaluation.metrics["one_step"]["nonfinite"] == FRAMES - 1
    assert evaluation.baselines["persistence"]["rollout"]["nonfinite"] == 0
    assert evaluation.examples[-1].id == "103"


def test_examples_are_the_best_median_and_worst_trajectory():
    class Uneven(Scaler):
        def rollout_arrays(self, u0, steps, cond, cond_mask):
            order = np.array([3, 0, 4, 1, 2])[cond[:, 0].astype(int)]
            return (
                super().rollout_arrays(u0, steps, cond, cond_mask) * (1 + order.astype(np.float32))[:, None, None, None]
            )

    evaluation = run(Uneven())
    assert [example.id for example in evaluation.examples] == ["101", "104", "102"]
    assert [example.nrmse for example in evaluation.examples] == pytest.approx([0, 2, 4], abs=1e-5)
    worst = evaluation.examples[-1]
    assert worst.coefficients == {"rate": 2.0}
    assert worst.time.shape == (FRAMES,) and worst.truth.shape == worst.prediction.shape == (FRAMES, 16, 1)
    np.testing.assert_array_equal(worst.prediction[0], worst.truth[0])
    np.testing.assert_allclose(worst.prediction[1:], 5 * worst.truth[1:], rtol=1e-5)


def test_another_way_to_roll_out_is_measured_beside_the_models_own():
    other = Scaler(factor=0.88)
    evaluation = run(Scaler(), variants={"other": other.rollout_arrays})
    assert evaluation.metrics["rollout"]["nrmse"] == pytest.approx(0, abs=1e-6)
    variant = evaluation.variants["other"]
    assert variant["rollout"]["nrmse_by_time"] == pytest.approx([1.1**k - 1 for k in range(1, 6)], rel=1e-4)
    assert variant["rollout"].keys() == evaluation.metrics["rollout"].keys() and "one_step" not in variant
    assert variant["seconds_per_rollout_step"] > 0
    # Three chunks of two and one of them again, warm, for the clock.
    assert other.shapes == [((2, 1, 16, 1), FRAMES - 1)] * 4
    values = evaluation_result([evaluation], {})["variants"]["other"]["decay"]
    assert values["rollout"]["nrmse"] == variant["rollout"]["nrmse"]


def test_correlation_time_is_the_horizon_of_what_keeps_its_shape_and_less_of_what_turns():
    class Turning(Scaler):
        """A wave that runs ahead by 30 degrees a step: its correlation with the standing truth is cos(30 k)."""

        def rollout_arrays(self, u0, steps, cond, cond_mask):
            turned = [np.roll(u0[:, -1], -4 * k, 1) for k in range(1, steps + 1)]
            return np.stack(turned, 1)

    trajectories = decaying_waves()
    wave = np.sin(2 * np.pi * np.arange(48) / 48).astype(np.float32)
    trajectories.fields = np.tile(wave[:, None], (len(trajectories.ids), FRAMES, 1, 1))
    evaluation = run(Turning(), trajectories)
    # cos 30 = 0.866 and cos 60 = 0.5 with 0.5 between the frames; linear between them 0.8 is met here.
    expected = 0.5 * (1 + (np.cos(np.pi / 6) - 0.8) / (np.cos(np.pi / 6) - 0.5))
    assert evaluation.metrics["rollout"]["correlation_time"] == pytest.approx(expected, rel=1e-4)
    assert evaluation.intervals["rollout"]["correlation_time"] == pytest.approx([expected] * 2, rel=1e-4)
    for name in ("persistence", "codec"):
        assert evaluation.baselines[name]["rollout"]["correlation_time"] == pytest.approx(0.5 * (FRAMES - 1))
        assert "correlation_time" not in evaluation.baselines[name]["one_step"]


@pytest.mark.parametrize("count", [1, 2])
def test_few_trajectories_are_enough(count):
    evaluation = run(Scaler(), decaying_waves(count))
    assert [example.label for example in evaluation.examples] == ["best", "median", "worst"]
    assert evaluation.meta["trajectories"] == count


def test_trajectories_without_a_frame_to_predict_are_a_data_error():
    with pytest.raises(DataError, match=r"decay.*data\.context"):
        run(Scaler(), context=FRAMES)


def test_the_interval_holds_the_mean_shrinks_with_more_trajectories_and_is_seeded():
    values = np.random.default_rng(1).normal(1.0, 0.2, 400)
    low, high = bootstrap_interval(values, 1000, seed=3)
    assert low < values.mean() < high
    # Width of a normal mean's 95 % interval: 2 * 1.96 * sigma / sqrt(n).
    assert high - low == pytest.approx(2 * 1.96 * values.std() / 20, rel=0.1)
    assert bootstrap_interval(values, 1000, seed=3) == [low, high] != bootstrap_interval(values, 1000, seed=4)


def test_the_json_has_the_contracts_shape_and_null_for_non_finite(tmp_path):
    evaluation = run(Scaler(broken=(3,)))
    other = dataclasses.replace(evaluation, task=dataclasses.replace(TASK, name="other"))
    path = tmp_path / "evaluation" / "test.json"
    write_json(path, evaluation_result([evaluation, other], {"steps": 7, "seed": 0}))
    values = json.loads(path.read_text(), parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert (
        set(values) == {"metrics", "baselines", "variants", "intervals", "per_trajectory", "units", "meta"}
        and values["variants"] == {}
    )
    assert set(values["metrics"]) == {"decay", "other"} == set(values["baselines"]["codec"])
    keys = {
        "nrmse", "rmse", "max_error", "vrmse", "conservation_rmse", "boundary_rmse", "fourier_rmse_low",
        "fourier_rmse_mid", "fourier_rmse_high", "nonfinite", "nrmse_by_channel",
    }  # fmt: skip
    for tables in (values["metrics"], values["baselines"]["persistence"], values["baselines"]["codec"]):
        assert set(tables["decay"]["one_step"]) == keys
        assert set(tables["decay"]["rollout"]) == keys | {"nrmse_by_time", "correlation_time", *ROLLOUT_METRICS}
    assert set(tables["decay"]["rollout"]) <= set(values["units"])
    assert values["metrics"]["decay"]["rollout"]["nrmse_by_channel"] == {"u": None}
    assert values["metrics"]["decay"]["rollout"]["nrmse"] is None
    assert values["intervals"]["decay"]["rollout"]["nrmse"] == [None, None]
    assert values["meta"]["steps"] == 7 and values["meta"]["trajectories"] == 10
    assert values["meta"]["horizon"] == FRAMES - 1 and values["meta"]["seconds_per_rollout_step"] > 0
    assert [item.name for item in path.parent.iterdir()] == ["test.json"]


def evaluation_in_unit(unit):
    """The evaluation of `Scaler`, with fields and times in a unit that is smaller by this factor."""
    trajectories = decaying_waves()
    trajectories.fields = (trajectories.fields.astype(np.float64) * unit).astype(np.float32)
    trajectories.time = trajectories.time * unit
    statistics = Statistics(mean=(0.0,), std=(1.0,), delta_std=(1.0,), scale=(unit,))
    task = dataclasses.replace(TASK, dt=TASK.dt * unit, statistics=statistics)
    config = EvaluationConfig(batch_size=2, bootstrap=50)
    return evaluate_predictor(Scaler(factor=0.9, codec=0.99), trajectories, task, config, context=1, seed=0)


@pytest.mark.parametrize("power", [-30, 20, 30])
def test_an_evaluation_in_another_unit_has_the_same_relative_numbers(power):
    """The floors follow the deviation of the fields, not the number that they are divided by."""
    unit = 10.0**power
    factors = {"1": 1.0, "field": unit, "time": unit}

    def numbers(evaluation, scaled):
        result = evaluation_result([evaluation], {})
        tables = {"": result["metrics"], **result["baselines"]}
        return {
            (name, section, metric): np.asarray(value) / (factors[result["units"][metric]] if scaled else 1.0)
            for name, tasks in tables.items()
            for section, values in tasks["decay"].items()
            for metric, value in values.items()
            if metric != "nrmse_by_channel"
        }

    plain, scaled = evaluation_in_unit(1.0), evaluation_in_unit(unit)
    values = numbers(scaled, True)
    for name, expected in numbers(plain, False).items():
        # Some errors are zero up to the round-off of a field of size 5.
        np.testing.assert_allclose(values[name], expected, rtol=1e-5, atol=2e-6, err_msg=str(name))
    np.testing.assert_allclose(scaled.spectra.prediction, plain.spectra.prediction, rtol=1e-5, atol=1e-9)
    assert evaluation_result([scaled], {})["meta"]["tasks"]["decay"]["scales"]["rmse"] == pytest.approx(unit)


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "test.json"
    write_json(path, {"a": 1})
    with pytest.raises(TypeError):
        write_json(path, {"a": object()})
    assert json.loads(path.read_text()) == {"a": 1}
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match=r"test\.json"):
        write_json(tmp_path / "file" / "test.json", {})
