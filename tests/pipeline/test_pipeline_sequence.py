"""The pipeline's sequence with steps that take no time: who is promoted, what is computed again, what is refused."""

from __future__ import annotations

import io
import json
import re
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from commands import CONFIGS
from fakes import Killed, Place, Steps, killed_at, without_waiting
from rich.console import Console

from ups_jax.cli.pipeline import print_pipeline_plan
from ups_jax.config import load
from ups_jax.core.errors import CheckpointError, ConfigError, GateError, Stopped, UserError
from ups_jax.pipeline import cache_keys
from ups_jax.pipeline.request import config_path, resolve_configs
from ups_jax.pipeline.subprocess_step import Step, StepFailed, StepResult

WHOLE = ["validate_config", "validate_data", "dry_run", "train", "small_eval", "full_eval"]
CHECKS = WHOLE[:2]


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    without_waiting(monkeypatch)


def labels(place: Place) -> dict[tuple[str, str], str]:
    return {row.key: row.label for row in place.board.read()}


def test_a_first_champion_a_worse_run_a_better_one_and_the_same_again(place: Place) -> None:
    steps = Steps()
    first = place.run(10, steps, run_id="first")
    assert steps.calls == WHOLE and first["status"] == "promoted" and first["exit_code"] == 0
    assert {gate["status"] for gate in first["gates"].values()} == {"no_baseline"}
    with pytest.raises(GateError, match=r"nrmse.*0\.2.*100\.00 %.*0\.1") as refused:
        place.run(5, steps := Steps(), run_id="worse")
    assert refused.value.exit_code == 6 and "\n" not in str(refused.value)
    assert steps.calls == WHOLE[:-1] and place.champion() == "first"
    worse = place.summary("worse")
    assert (worse["status"], worse["exit_code"], worse["failed_step"], worse["promoted"]) == ("refused", 6, None, False)
    assert worse["gates"]["small_eval"]["baseline"]["run_id"] == "first"
    assert place.run(20, run_id="better")["status"] == "promoted"
    assert place.champion() == "better"
    assert labels(place) == {
        ("first", "small_eval"): "former_champion",
        ("first", "full_eval"): "former_champion",
        ("worse", "small_eval"): "small_eval",
        ("better", "small_eval"): "champion",
        ("better", "full_eval"): "champion",
    }
    # Each of the three commands once more computes nothing, and comes to what can be said of it now.
    again = place.run(20, steps := Steps(), run_id="again")
    assert steps.calls == CHECKS and again["status"] == "champion" and place.champion() == "better"
    for epochs in (10, 5):
        with pytest.raises(GateError):
            place.run(epochs, steps := Steps(), run_id=f"again{epochs}")
        assert steps.calls == CHECKS + ["full_eval"] * 0 and place.champion() == "better"


def test_only_what_a_change_touches_is_computed_again(place: Place) -> None:
    place.run()
    changes: list[tuple[dict[str, Any], list[str]]] = [
        ({"overrides": ("optimizer.lr=5e-3",)}, WHOLE),
        ({"overrides": ("seed=3",)}, WHOLE),
        ({"overrides": ("logging.every_steps=5", "runs=elsewhere", "checkpoint.keep=1")}, CHECKS),
        ({"overrides": ("gates.min_full_delta=0.5",)}, CHECKS),
        ({"overrides": ("pipeline.full.horizon=4",)}, [*CHECKS, "full_eval"]),
        ({"overrides": ("evaluation.bootstrap=7",)}, [*CHECKS, "small_eval", "full_eval"]),
        ({"train_extra_args": ("--traceback",)}, WHOLE),
        ({"eval_device": "cpu"}, [*CHECKS, "small_eval", "full_eval"]),
        ({"redo_small_eval": True}, [*CHECKS, "small_eval"]),
        ({"redo_full_eval": True}, [*CHECKS, "full_eval"]),
        ({"force_train": True}, WHOLE),
        ({}, CHECKS),
        ({"skip_validation": True}, CHECKS[1:]),
        ({"skip_small_eval": True}, CHECKS),
    ]
    for number, (change, expected) in enumerate(changes):
        steps = Steps()
        try:
            place.run(steps=steps, run_id=f"run{number}", **change)
        except GateError:
            # An equal model is not better.
            assert set(expected) & {"train"}
            expected = [name for name in expected if name != "full_eval"]
        assert steps.calls == expected, change


def test_a_training_whose_checkpoint_is_damaged_is_made_again(place: Place) -> None:
    place.run(run_id="first")
    (checkpoint,) = (place.root / "artifacts" / "runs").glob("first/train/checkpoints/operator/10/params")
    checkpoint.write_text("damaged")
    place.run(steps=(steps := Steps()), run_id="second")
    assert steps.calls == WHOLE
    # The champion's own copy is whole, and found out where it is not.
    assert place.champions.run_directory("waves").is_dir()
    (copy,) = (place.root / "artifacts" / "champions").rglob("params")
    copy.write_text("damaged")
    with pytest.raises(CheckpointError, match=r"champions.*waves"):
        place.champions.run_directory("waves")


def test_an_evaluation_that_was_changed_by_hand_is_made_again(place: Place) -> None:
    place.run(run_id="first")
    file = place.root / "artifacts" / "runs" / "first" / "evaluation" / "full.json"
    file.write_text(file.read_text().replace("0.1", "0.01"))
    place.run(steps=(steps := Steps()), run_id="second")
    assert steps.calls == [*CHECKS, "full_eval"]


def end_state(place: Place) -> dict[str, Any]:
    """All that is left of runs, champions and leaderboard, but for times and how often a step was tried."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            kept = {key: item for key, item in value.items() if key not in TIMES}
            return {key: plain(item) for key, item in kept.items()}
        if isinstance(value, list | tuple):
            return [plain(item) for item in value]
        return value.replace(str(place.root), "") if isinstance(value, str) else value

    def status(step: dict[str, Any]) -> str:
        return str(step["status"]).replace("reused", "done")

    (summary,) = (json.loads(path.read_text()) for path in place.root.glob("artifacts/runs/*/summary.json"))
    steps = {name: status(step) for name, step in summary.pop("steps").items()}
    return {
        "steps": steps,
        "summary": plain(summary),
        "champions": plain(place.champions.read_all()),
        "board": [plain(asdict(row)) for row in place.board.read()],
        "files": sorted(str(path.relative_to(place.root)) for path in place.root.rglob("*") if path.is_file()),
    }


TIMES = {
    "request",
    "started",
    "ended",
    "updated",
    "timestamp",
    "promoted_at",
    "wall_clock",
    "starts",
    "trained_at",
    "created_at",
}


@pytest.mark.parametrize("every", [9, pytest.param(1, marks=pytest.mark.slow)])
def test_a_pipeline_that_is_killed_at_any_file_comes_to_the_same_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, every: int
) -> None:
    whole = Place(tmp_path / "whole")
    with killed_at(10**9, monkeypatch) as files:
        whole.run(run_id="run")
    expected = end_state(whole)
    assert expected["summary"]["status"] == "promoted" and files[0] > 30
    for number in range(2, files[0] + 1, every):
        killed = Place(tmp_path / f"killed{number}")
        with killed_at(number, monkeypatch), pytest.raises(Killed):
            killed.run(run_id="run")
        assert killed.run(run_id="run")["status"] == "promoted", number
        assert end_state(killed) == expected, number


def test_without_a_run_id_the_same_command_goes_on_with_the_run_that_was_killed(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    with killed_at(12, monkeypatch), pytest.raises(Killed):
        place.run()
    with pytest.raises(GateError):
        place.run(0.5)
    killed, _ = sorted(path.name for path in (place.root / "artifacts" / "runs").iterdir())
    assert place.run()["run_id"] == killed
    # It is finished by now: the next one is a run of its own.
    assert place.run()["run_id"] != killed


def test_a_failed_step_ends_the_pipeline_with_its_code_and_the_next_start_goes_on_there(place: Place) -> None:
    for name, code in {"validate_config": 2, "validate_data": 3, "train": 5, "small_eval": 4, "full_eval": 7}.items():
        run_id = f"fails-{name}"
        with pytest.raises(StepFailed, match=f"{name}.*it was told to fail") as failed:
            place.run(steps=Steps(exits={name: code}), run_id=run_id, force_train=True)
        assert failed.value.exit_code == code
        summary = place.summary(run_id)
        assert (summary["status"], summary["failed_step"], summary["exit_code"]) == ("failed", name, code)
        assert "it was told to fail" in summary["error"] and place.champion() is None
        assert summary["steps"][name]["exit_code"] == code
    steps = Steps()
    assert place.run(steps=steps, run_id="fails-full_eval", force_train=True)["status"] == "promoted"
    assert steps.calls == ["validate_data", "full_eval"]


def test_a_step_that_a_signal_ends_or_that_writes_nothing_is_told(place: Place) -> None:
    with pytest.raises(StepFailed) as failed:
        place.run(steps=Steps(exits={"train": 137}), run_id="killed")
    assert failed.value.exit_code == 1
    with pytest.raises(Stopped) as stopped:
        place.run(steps=Steps(exits={"train": 75}), run_id="stopped")
    assert stopped.value.exit_code == 75 and place.summary("stopped")["status"] == "stopped"

    def nothing(step: Step, log: Path, lock: int, show: Any) -> StepResult:
        return StepResult(exit_code=0, seconds=0.1)

    with pytest.raises(UserError, match=r"validate_data.*validation\.json"):
        place.run(steps=nothing, run_id="silent")


def test_a_small_evaluation_refuses_soon_and_force_asks_the_full_one(place: Place) -> None:
    place.run(10)
    with pytest.raises(GateError):
        place.run(5, steps := Steps(), force_full_eval=True, run_id="forced")
    assert steps.calls == WHOLE and place.summary("forced")["gates"]["full_eval"]["status"] == "failed"
    with pytest.raises(GateError, match="conservation_gap"):
        place.run(20, Steps(values={"conservation_rmse": 3.0}))
    assert place.champion() != "forced"


def test_a_run_with_its_full_evaluation_left_out_is_never_promoted(place: Place) -> None:
    assert place.run(skip_full_eval=True)["status"] == "evaluated"
    assert place.champion() is None


def test_a_candidate_without_the_metric_is_refused_even_as_the_first(place: Place) -> None:
    with pytest.raises(GateError, match="nrmse"):
        place.run(steps=Steps(values={"nrmse": None}))
    assert place.champion() is None


def test_who_became_champion_meanwhile_has_to_be_beaten_too(place: Place) -> None:
    place.run(10, run_id="first")

    def someone_else(step: Any) -> None:
        if step.name == "full_eval":
            place.run(40, run_id="faster")

    with pytest.raises(GateError, match=r"100\.00 %"):
        # The other one is promoted after this one's small gates were asked, and before its full ones.
        place.run(20, Steps(before=someone_else), run_id="slower")
    assert place.champion() == "faster"


def test_a_weak_baseline_of_one_s_choice_does_not_replace_the_champion(place: Place) -> None:
    place.run(2, run_id="weak")
    place.run(20, run_id="strong")
    with pytest.raises(GateError, match=r"100\.00 %.*0\.05"):
        place.run(10, run_id="between", baseline_run_id="weak")
    gate = place.summary("between")["gates"]["full_eval"]
    assert gate["baseline"]["run_id"] == "strong" and place.champion() == "strong"
    with pytest.raises(ConfigError, match="--baseline-run-id nobody"):
        place.run(30, run_id="lost", baseline_run_id="nobody")


def test_another_protocol_has_a_champion_of_its_own(place: Place) -> None:
    place.run(10, run_id="test")
    place.run(5, Steps(values={"horizon": 4}), run_id="shorter", overrides=("pipeline.full.horizon=4",))
    assert {item["run_id"] for item in place.champions.read_all()} == {"test", "shorter"}
    with pytest.raises(ConfigError, match="--protocol"):
        place.champions.get_champion("waves")


def test_a_run_id_of_another_configuration_is_refused(place: Place) -> None:
    place.run(10, run_id="run")
    with pytest.raises(ConfigError, match="stages"):
        place.run(11, run_id="run")
    assert place.run(10, steps=(steps := Steps()), run_id="run")["status"] == "promoted"
    assert steps.calls == ["validate_data"]
    assert place.summary("run")["gates"]["full_eval"]["status"] == "no_baseline"


def test_several_seeds_are_judged_by_their_mean_and_its_lower_bound(place: Place) -> None:
    def error(cfg: Any) -> float:
        return {17: 0.09, 18: 0.11}[cfg.seed] * 10 / cfg.stages.operator.epochs

    steps = Steps(error=error)
    first = place.run(10, steps, run_id="first", n_seeds=2)
    assert steps.calls.count("dry_run") == 1
    assert [name for name in steps.calls if name.startswith("train")] == ["train", "train_seed_18"]
    assert first["status"] == "promoted"
    (champion,) = place.champions.read_all()
    assert champion["metrics"]["nrmse"] == pytest.approx(0.1)
    # The better seed stands for both.
    assert (place.champions.run_directory("waves") / "run.json").read_text().count("0.09") == 1
    assert place.run(11, Steps(error=error), run_id="better", n_seeds=2)["status"] == "promoted"
    gate = place.summary("better")["gates"]["full_eval"]["gates"][0]
    assert "bootstrap" in gate["message"]
    # The first seed was trained before.
    place.run(11, steps := Steps(error=error), run_id="again", n_seeds=2)
    assert not any(name.startswith("train") for name in steps.calls)


def test_skip_training_takes_a_known_one_or_says_that_there_is_none(place: Place) -> None:
    with pytest.raises(CheckpointError, match="--skip-training"):
        place.run(skip_training=True, run_id="none")
    place.run(run_id="first")
    assert place.run(steps=(steps := Steps()), skip_training=True, run_id="second")["status"] == "champion"
    assert "train" not in steps.calls


def test_a_demoted_champion_gives_way_to_the_one_before(place: Place) -> None:
    place.run(10, run_id="first")
    place.run(20, run_id="second")
    former, successor = place.champions.demote("waves", None, "wrong data")
    assert former["run_id"] == "second" and successor is not None and place.champion() == "first"
    assert place.champions.read_all()[0]["history"][-1]["reason"] == "wrong data"
    former, successor = place.champions.demote("waves", None, "")
    assert (former["run_id"], successor) == ("first", None) and place.champion() is None
    with pytest.raises(ConfigError, match="waves"):
        place.champions.demote("waves", None, "")
    assert place.run(5, run_id="third")["status"] == "promoted"


def test_a_dry_run_says_what_would_be_done_and_writes_nothing(place: Place) -> None:
    output = io.StringIO()
    print_pipeline_plan(place.request(run_id="run", skip_small_eval=True), Console(file=output, width=200))
    assert re.search("small_eval +skipped", output.getvalue()) and "promotion" in output.getvalue()
    assert not list(place.root.iterdir())
    with pytest.raises(ConfigError, match="'nmse'"):
        print_pipeline_plan(place.request(overrides=("gates.metric=nmse",)), Console(quiet=True))


def test_resolved_configurations_are_read_back_as_they_are(place: Place, tmp_path: Path) -> None:
    for path in sorted(CONFIGS.glob("*.yaml")):
        resolved = resolve_configs(replace(place.request(), train_config=path))
        resolved.write(tmp_path)
        assert load(config_path(tmp_path, "train")) == resolved.train


def test_other_code_trains_again_and_keeps_what_the_old_one_made(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    place.run(run_id="first")
    with monkeypatch.context() as changed:
        changed.setattr(cache_keys, "training_code_digest", lambda: "other")
        place.run(steps=(steps := Steps()), run_id="first")
    assert steps.calls == ["validate_data", *WHOLE[2:]]
    (aside,) = (place.root / "artifacts" / "runs" / "first").glob("train_before_*")
    assert (aside / "run.json").exists()
    place.run(steps=(steps := Steps()), run_id="second")
    assert steps.calls == CHECKS
