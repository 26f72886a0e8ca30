"""The output of the leaderboard's script: rows by a metric, two runs side by side, champions, a demoted champion."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from fakes import Place, Steps
from rich.console import Console

from ups_jax.cli import leaderboard
from ups_jax.core.errors import ConfigError, GateError
from ups_jax.pipeline.run_comparison import config_difference, load_compared_runs, metric_table


@pytest.fixture
def place(tmp_path: Path) -> Place:
    place = Place(tmp_path)
    place.run(10, run_id="first", tags={"gpu": "none"})
    with pytest.raises(GateError):
        place.run(5, Steps(), run_id="worse")
    return place


def printed(function: object, *arguments: object) -> str:
    console = Console(file=(output := io.StringIO()), width=300)
    function(console, *arguments)  # type: ignore[operator]
    return output.getvalue()


def test_rows_are_sorted_and_filtered(place: Place) -> None:
    text = printed(leaderboard.print_rows, place.board, [], "nrmse", ["nrmse", "ece"])
    names = [line.split()[0] for line in text.splitlines() if line.strip().startswith(("first", "worse"))]
    assert names == ["first", "first", "worse"] and "0.1" in text
    assert "worse" not in printed(leaderboard.print_rows, place.board, ["label=champion"], "nrmse", ["nrmse"])
    assert "3 rows" in printed(leaderboard.print_rows, place.board, ["task=waves"], "nrmse", ["nrmse"])
    assert "2 rows" in printed(leaderboard.print_rows, place.board, ["run_id=first"], "vrmse", ["nrmse"])
    with pytest.raises(ConfigError, match="run_id"):
        leaderboard.print_rows(Console(quiet=True), place.board, ["nonsense=1"], "nrmse", [])


def test_two_runs_differ_in_what_was_changed(place: Place, tmp_path: Path) -> None:
    one, other = load_compared_runs(place.board.read(), "first", "worse")
    assert config_difference(one.config, other.config) == [("stages.operator.epochs", 10.0, 5.0)]
    rows = {name: cells for name, *cells in metric_table(one, other)}
    assert rows["nrmse"][2] == "+100.0 %" and rows["nrmse"][0] == "0.1 (0.05 to 0.15)"
    page = tmp_path / "comparison.html"
    text = printed(leaderboard.print_comparison, place.board, "first", "worse", page)
    assert "stages.operator.epochs" in text and "+100.0 %" in text
    assert page.read_text().count("data:image/png") == 1 and "stages.operator.epochs" in page.read_text()
    with pytest.raises(ConfigError, match="first, worse"):
        load_compared_runs(place.board.read(), "first", "nobody")


def test_champions_are_listed_and_taken_down_on_the_leaderboard_too(place: Place) -> None:
    place.run(20, run_id="second")
    text = printed(leaderboard.print_champions, place.champions)
    assert text.startswith("waves  protocol ") and "run second" in text
    text = printed(leaderboard.demote_champion, place.board, place.champions, "waves", None, "a bug")
    assert "run first" in text
    labels = {row.key: row.label for row in place.board.read()}
    assert labels["second", "full_eval"] == "demoted" and labels["first", "full_eval"] == "champion"
    assert "none" in printed(leaderboard.demote_champion, place.board, place.champions, "waves", None, "")


def test_a_run_that_is_labelled_a_baseline_has_to_be_beaten_where_there_is_no_champion(place: Place) -> None:
    leaderboard.label_run(Console(quiet=True), place.board, "worse", "baseline")
    place.champions.demote("waves", None, "")
    with pytest.raises(GateError, match=r"0\.2"):
        place.run(4, run_id="third")
    # Its full evaluation was left out, so that nothing is there to be compared with in full.
    assert place.run(6, run_id="fourth")["status"] == "promoted"
    for run_id, label in (("worse", "champion"), ("nobody", "baseline")):
        with pytest.raises(ConfigError, match=run_id):
            leaderboard.label_run(Console(quiet=True), place.board, run_id, label)
