"""Promotions that must not happen, and records that must not contradict each other, with steps that take no time."""

from __future__ import annotations

import contextlib
import fcntl
import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from fakes import Place, Steps, without_waiting
from rich.console import Console

import ups_jax
from ups_jax.cli import leaderboard
from ups_jax.core.errors import CheckpointError, ConfigError, GateError, StorageError
from ups_jax.pipeline import cache_keys, compute_steps
from ups_jax.pipeline.champions import Champions
from ups_jax.pipeline.leaderboard import Leaderboard


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    without_waiting(monkeypatch)
    return Place(tmp_path)


def labels(place: Place) -> dict[tuple[str, str], str]:
    return {row.key: row.label for row in place.board.read()}


def test_a_decision_on_other_numbers_is_made_anew(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    place.run(10, run_id="first")
    with monkeypatch.context() as broken:
        broken.setattr("ups_jax.pipeline.champions.Champions.promote", full_disk)
        with pytest.raises(StorageError):
            place.run(20, run_id="run")
    assert place.summary("run")["gates"]["full_eval"]["passed"]
    monkeypatch.setattr(cache_keys, "evaluation_code_digest", lambda: "mended")
    monkeypatch.setattr(compute_steps, "evaluation_key", cache_keys.evaluation_key)
    with pytest.raises(GateError, match=r"nrmse.*0\.7.*600\.00 %.*0\.1"):
        place.run(20, Steps(values={"nrmse": 0.7, "scores": [0.7]}), run_id="run")
    assert place.champion() == "first"


def full_disk(*arguments: Any) -> Any:
    raise StorageError("disk: is full")


def test_a_seed_of_the_champion_is_the_champion_itself(place: Place) -> None:
    steps = Steps(error=lambda cfg: {17: 0.09, 18: 0.11}[cfg.seed])
    place.run(10, steps, run_id="both", n_seeds=2)
    alone = place.run(10, Steps(), run_id="alone")
    assert alone["status"] == "champion" and place.champion() == "both"


def test_small_gates_ask_the_champion_of_the_same_full_evaluation(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The other one is the later: two of one second could stand in either order.
    times = iter(range(100, 200))
    monkeypatch.setattr("ups_jax.pipeline.champions.utc_now", lambda: f"2026-01-01T00:00:00.{next(times)}")
    place.run(10, run_id="long")
    shorter = Steps(values={"horizon": 4}, small={"horizon": 8})
    place.run(40, shorter, run_id="short", overrides=("pipeline.full.horizon=4",))
    better = place.run(20, run_id="better")
    assert better["status"] == "promoted"
    assert better["gates"]["small_eval"]["baseline"]["run_id"] == "long"


def test_a_metric_that_the_champion_lacks_promotes_nobody(place: Place) -> None:
    place.run(10, run_id="first")
    rows = {"overrides": ("gates.metric=ece", "gates.beat_trivial=false"), "clear_default_ratio_gates": True}
    with pytest.raises(GateError, match=r"ece.*first"):
        place.run(2, Steps(ensemble=0.85), run_id="other", skip_small_eval=True, **rows)
    assert place.champion() == "first" and place.summary("other")["status"] == "refused"
    assert {row.status for row in place.board.read() if row.run_id == "other"} == {"failed"}


def test_a_copy_that_is_there_gets_the_evaluations_that_count(place: Place) -> None:
    place.run(10, run_id="run", skip_small_eval=True)
    demote(place)
    place.run(10, run_id="run", promote_demoted=True)
    (champion,) = place.champions.read_all()
    assert all(
        file.is_file() for section in ("small", "full") for file in place.champions.evaluation_files(champion, section)
    )
    # The numbers are in the record: one seed is judged without the files.
    place.champions.evaluation_files(champion, "small")[0].unlink()
    assert place.run(20, run_id="next")["status"] == "promoted"


def demote(place: Place, reason: str = "a leak") -> None:
    leaderboard.demote_champion(Console(quiet=True), place.board, place.champions, "waves", None, reason)


def test_checkpoints_that_changed_since_they_were_evaluated_are_not_promoted(place: Place) -> None:
    def damage(*arguments: Any) -> Any:
        (params,) = (place.root / "artifacts" / "runs").glob("run/train/checkpoints/operator/10/params")
        params.write_text("0.5")
        return promote(*arguments)

    promote = Champions.promote
    with pytest.MonkeyPatch.context() as late, pytest.raises(CheckpointError, match="run/train"):
        late.setattr(Champions, "promote", damage)
        place.run(10, run_id="run")
    assert place.champion() is None


def test_seconds_of_another_device_decide_nothing(place: Place) -> None:
    place.run(10, Steps(meta={"seconds_per_rollout_step": 2e-3}), run_id="first")
    values = {"seconds_per_rollout_step": 2e-2, "device": "other"}
    gates = place.run(20, Steps(meta=values), run_id="second")["gates"]["full_eval"]["gates"]
    (gate,) = (gate for gate in gates if gate["key"] == "wall_clock")
    assert gate["status"] == "ignored" and "other" in gate["message"]
    with pytest.raises(GateError, match="wall_clock"):
        place.run(40, Steps(meta=values | {"seconds_per_rollout_step": 2.0}), run_id="third")


def test_a_forced_full_evaluation_decides_alone(place: Place) -> None:
    place.run(10, run_id="first")

    def small_is_bad(cfg: Any) -> float:
        return 0.05

    steps = Steps(error=small_is_bad, small={"nrmse": 0.2})
    with pytest.raises(GateError):
        place.run(20, steps, run_id="refused")
    assert place.run(20, Steps(error=small_is_bad), run_id="forced", force_full_eval=True)["status"] == "promoted"
    page = (place.root / "artifacts" / "runs" / "forced" / "analysis" / "report.html").read_text()
    assert '<p class="bad">' not in page


def test_a_demoted_checkpoint_stays_down_unless_it_is_asked_for(place: Place) -> None:
    place.run(10, run_id="first")
    place.run(20, run_id="second")
    demote(place)
    assert place.champion() == "first"
    with pytest.raises(GateError, match=r"a leak.*--promote-demoted"):
        place.run(20, run_id="again")
    demote(place, "all wrong")
    assert place.champion() is None
    with pytest.raises(GateError, match="all wrong"):
        place.run(10, run_id="first_again")
    assert place.run(20, run_id="wanted", promote_demoted=True)["status"] == "promoted"
    # Who was taken down before is still known.
    (champion,) = place.champions.read_all()
    assert [item["reason"] for item in champion["history"] if "demoted_at" in item] == ["a leak", "all wrong"]


def test_half_a_training_of_other_code_is_set_aside(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    class Half(Steps):
        def train(self, step: Any) -> None:
            super().train(step)
            if "--dry-run" not in step.arguments:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        place.run(10, Half(), run_id="run")
    folder = place.root / "artifacts" / "runs" / "run"
    assert (folder / "train").is_dir()
    place.run(10, run_id="run")
    assert not list(folder.glob("train_before_*"))
    with pytest.raises(KeyboardInterrupt):
        place.run(11, Half(), run_id="other")
    monkeypatch.setattr(cache_keys, "training_code_digest", lambda: "changed")
    place.run(11, run_id="other")
    assert len(list((folder.parent / "other").glob("train_before_*"))) == 1


def test_overrides_among_the_further_arguments_are_of_the_training_s_configuration(place: Place) -> None:
    extra = ("stages.operator.epochs=40", "--traceback")
    steps = Steps()
    place.run(10, steps, run_id="run", train_extra_args=extra)
    (champion,) = place.champions.read_all()
    assert champion["config"]["stages"]["operator"]["epochs"] == 40 and champion["metrics"]["nrmse"] == 1 / 40
    # The same training by another way of saying it, but for the argument that is none.
    place.run(40, steps := Steps(), run_id="same", train_extra_args=("--traceback",))
    assert "train" not in steps.calls


def test_a_training_from_other_weights_is_another_one(place: Place) -> None:
    place.run(10, run_id="base")
    start = place.root / "artifacts" / "runs" / "base" / "train"
    arguments = ("--init-from", str(start))
    for run_id, expected in (("one", True), ("again", False)):
        with contextlib.suppress(GateError):
            place.run(11, steps := Steps(), run_id=run_id, train_extra_args=arguments)
        assert ("train" in steps.calls) == expected
    (params,) = start.glob("checkpoints/operator/10/params")
    params.write_text("0.3")
    place.run(11, steps := Steps(error=lambda cfg: 0.01), run_id="changed", train_extra_args=arguments)
    assert "train" in steps.calls


READ_FILES = """
from pathlib import Path
read, seen = Path.read_bytes, set()
Path.read_bytes = lambda path: (seen.add(path), read(path))[1]
from ups_jax.pipeline.cache_keys import training_code_digest
training_code_digest()
print(*seen, sep="\\n")
"""


def test_the_commands_and_the_order_of_stages_are_part_of_the_code() -> None:
    result = subprocess.run([sys.executable, "-c", READ_FILES], capture_output=True, text=True, check=True)
    seen, package = set(map(Path, result.stdout.splitlines())), Path(ups_jax.__file__).parent
    names = ("cli/train.py", "cli/evaluate.py", "pipeline/train_all_stages.py", "training/step.py")
    assert {package / name for name in names} <= seen


def test_a_data_file_that_changes_is_noticed_without_a_check(place: Place, tmp_path: Path) -> None:
    files = {name: tmp_path / f"{name}.h5" for name in ("train", "test")}
    for path in files.values():
        path.write_text("data")
    pair = f"{{train: {files['train']}, test: {files['test']}}}"
    asked = {"overrides": (f"data.tasks.0.path={pair}",), "skip_data_check": True}
    place.run(10, run_id="first", **asked)
    place.run(10, steps := Steps(), run_id="same", **asked)
    assert "full_eval" not in steps.calls
    files["test"].write_text("other data")
    place.run(10, steps := Steps(), run_id="other", **asked)
    assert "full_eval" in steps.calls or "train" in steps.calls


def test_an_evaluation_is_done_again_in_a_run_that_goes_on(place: Place) -> None:
    with pytest.raises(Exception, match="full_eval"):
        place.run(10, Steps(exits={"full_eval": 7}), run_id="run")
    place.run(10, steps := Steps(), run_id="run", redo_small_eval=True)
    assert steps.calls == ["validate_data", "small_eval", "full_eval"]


def test_labels_change_while_the_champions_are_held(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    place.run(10, run_id="first")
    add, locked = Leaderboard.add, []

    def watched(board: Leaderboard, rows: Any) -> None:
        if any(row.label == "former_champion" for row in rows):
            with (place.champions.root / ".lock").open("a") as other:
                try:
                    fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    locked.append(False)
                except BlockingIOError:
                    locked.append(True)
        add(board, rows)

    monkeypatch.setattr(Leaderboard, "add", watched)
    place.run(20, run_id="second")
    assert locked == [True]
    assert labels(place)["first", "full_eval"] == "former_champion"
    assert labels(place)["second", "full_eval"] == "champion"


def test_a_refusal_under_the_lock_reaches_the_leaderboard(place: Place) -> None:
    place.run(2, run_id="weak")
    place.run(20, run_id="strong")
    with pytest.raises(GateError):
        place.run(10, run_id="between", baseline_run_id="weak")
    (row,) = (row for row in place.board.read() if row.key == ("between", "full_eval"))
    assert row.status == "failed"


def test_the_failed_step_is_the_one_that_was_begun_last(place: Place) -> None:
    for name in ("full_eval", "validate_data"):
        with pytest.raises(Exception, match=name):
            place.run(10, Steps(exits={name: 3}), run_id="run")
        assert place.summary("run")["failed_step"] == name


def test_what_an_earlier_start_was_judged_is_gone_from_the_summary(place: Place) -> None:
    place.run(10, run_id="run")
    place.run(20, run_id="better")
    with pytest.raises(GateError):
        place.run(10, run_id="run")
    summary = place.summary("run")
    assert set(summary["gates"]) == {"small_eval"} and summary["promoted"] is False
    assert summary["steps"]["promotion"]["status"] == "skipped"


def test_runs_are_compared_by_an_evaluation_that_both_have(place: Place) -> None:
    from ups_jax.pipeline.run_comparison import load_compared_runs, metric_table

    place.run(10, run_id="first")
    with pytest.raises(GateError):
        place.run(5, run_id="worse")
    one, other = load_compared_runs(place.board.read(), "first", "worse")
    assert {side.evaluation.meta["data"]["split"] for side in (one, other)} == {"val"}
    place.run(20, run_id="only_full", skip_small_eval=True)
    with pytest.raises(ConfigError, match=r"worse.*only_full"):
        load_compared_runs(place.board.read(), "worse", "only_full")
    steps = Steps(error=lambda cfg: {17: 0.01, 18: 0.03}[cfg.seed])
    place.run(40, steps, run_id="seeds", n_seeds=2)
    rows = {name: cells for name, *cells in metric_table(*load_compared_runs(place.board.read(), "first", "seeds"))}
    assert rows["nrmse"][1] == "0.02 (mean of 2 seeds)"
    page = (place.root / "artifacts" / "runs" / "seeds" / "analysis" / "report.html").read_text()
    assert "2 seeds" in page and "<td>0.02</td>" in page


def test_the_report_of_a_refused_run_has_the_champion_beside_it(place: Place) -> None:
    place.run(2, run_id="weak")
    place.run(20, run_id="strong")
    alike = place.run(20, run_id="alike")
    assert alike["status"] == "champion"
    page = (place.root / "artifacts" / "runs" / "alike" / "analysis" / "report.html").read_text()
    assert "champion strong" in page


def test_bad_options_are_one_line(place: Place) -> None:
    for value in (-1.0, float("inf"), float("nan")):
        with pytest.raises(ConfigError, match=r"--gate-ratio.*gates\.ratios\.ece"):
            place.run(gate_ratios={"ece": value})
    place.run(
        10,
        run_id="low",
        metric_direction="lower",
        overrides=("gates.metric=rollout/correlation_time", "gates.beat_trivial=false"),
    )
    (gate, *_) = place.summary("low")["gates"]["full_eval"]["gates"]
    assert gate["direction"] == "lower"


def test_a_damaged_champion_of_another_task_stops_nobody(place: Place) -> None:
    other = place.root / "artifacts" / "champions" / "elsewhere" / "p" / "champion.json"
    other.parent.mkdir(parents=True)
    other.write_text("{")
    assert place.run(10, run_id="run")["status"] == "promoted"


def test_a_label_of_one_s_own_for_champions(place: Place) -> None:
    asked = {"champion_label": "sota", "baseline_labels": ("sota", "baseline")}
    place.run(10, run_id="first", **asked)
    place.run(20, run_id="second", **asked)
    assert labels(place)["first", "full_eval"] == "former_sota" and labels(place)["second", "full_eval"] == "sota"
    demote(place)
    assert labels(place)["first", "full_eval"] == "sota" and labels(place)["second", "full_eval"] == "demoted"


def test_filters_know_tags_and_columns_apart(place: Place) -> None:
    place.run(10, run_id="first", tags={"label": "mine", "gpu": "a"})
    place.run(20, run_id="[b]")
    for text, count in (("gpu=a", 2), ("label=champion", 2), ("tag:label=mine", 2), ("run_id=[b]", 2)):
        assert f"{count} rows" in shown(place, text), text
    assert "[b]" in shown(place)
    with pytest.raises(ConfigError, match="nmse"):
        leaderboard.print_rows(Console(quiet=True), place.board, [], "nmse", [])


def shown(place: Place, *filters: str) -> str:
    console = Console(file=(output := io.StringIO()), width=300)
    leaderboard.print_rows(console, place.board, filters, "correlation_time", ["nrmse"])
    return " ".join(output.getvalue().split())


def test_json_of_a_champion_says_where_and_on_what(place: Place) -> None:
    place.run(10, run_id="run")
    (file,) = (place.root / "artifacts" / "champions").glob("*/*/champion.json")
    values = json.loads(file.read_text())
    assert values["label"] == "champion" and values["seeds"] and values["evaluations"]["full"]["device"]
