"""The leaderboard's file: nothing is lost, and the tables say what it holds."""

from __future__ import annotations

import csv
import json
import multiprocessing
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from ups_jax.core.errors import DataError, StorageError
from ups_jax.pipeline.leaderboard import Leaderboard, Row

ROW = Row(run_id="a", stage="full_eval", timestamp="2026-01-01T00:00:00+00:00", label="full_eval")


@pytest.fixture
def board(tmp_path: Path) -> Leaderboard:
    return Leaderboard.from_csv_path(tmp_path / "reports" / "leaderboard.csv")


def write_many(board: Leaderboard, name: str, start: object) -> None:
    start.wait()  # type: ignore[attr-defined]
    for number in range(20):
        board.add([replace(ROW, run_id=f"{name}{number}", metrics={"nrmse": 0.1 * number})])


@pytest.mark.multiprocess
def test_several_writers_at_once_keep_all_rows(board: Leaderboard) -> None:
    context = multiprocessing.get_context("spawn")
    start = context.Barrier(2)
    writers = [context.Process(target=write_many, args=(board, name, start)) for name in "xy"]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(60)
        assert writer.exitcode == 0
    expected = {f"{name}{number}" for name in "xy" for number in range(20)}
    assert {row.run_id for row in board.read()} == expected
    assert len(board.jsonl.read_text().splitlines()) == 40
    with board.csv.open() as file:
        assert {row["run_id"] for row in csv.DictReader(file)} == expected


def test_a_run_evaluated_again_has_one_row_and_both_records(board: Leaderboard) -> None:
    board.add([replace(ROW, metrics={"nrmse": 0.2}), replace(ROW, stage="small_eval")])
    board.add([replace(ROW, metrics={"nrmse": 0.1}, label="champion")])
    assert [(row.stage, row.label, row.metrics) for row in board.read()] == [
        ("full_eval", "champion", {"nrmse": 0.1}),
        ("small_eval", "full_eval", {}),
    ]
    assert len(board.jsonl.read_text().splitlines()) == 3
    # The same again adds nothing.
    board.add([replace(ROW, metrics={"nrmse": 0.1}, label="champion")])
    assert len(board.jsonl.read_text().splitlines()) == 3


def test_the_tables_hold_what_the_rows_hold(board: Leaderboard) -> None:
    odd = 'a<b>&"|,\nc'
    board.add([replace(ROW, notes=odd, tags={"gpu": odd}, metrics={"nrmse": 0.1234567891, "vrmse": None})])
    with board.csv.open(newline="") as file:
        (row,) = csv.DictReader(file)
    assert row["notes"] == row["tag:gpu"] == odd
    assert float(row["metric:nrmse"]) == 0.1234567891 and row["metric:vrmse"] == ""

    class Cells(HTMLParser):
        texts: list[str]

        def handle_data(self, data: str) -> None:
            self.texts.append(data)

    parser = Cells()
    parser.texts = []
    page = board.html.read_text()
    parser.feed(page)
    assert parser.texts.count(odd) == 2 and "<b>" not in page
    head, _, only = board.markdown.read_text().splitlines()
    assert head.count("|") == only.replace("\\|", "").count("|") and "0.1235" in only


def test_half_a_line_of_a_killed_writer_is_dropped(board: Leaderboard) -> None:
    board.add([ROW])
    with board.jsonl.open("a") as file:
        file.write('{"run_id": "torn", "sta')
    assert [row.run_id for row in board.read()] == ["a"]
    board.add([replace(ROW, run_id="b")])
    assert [json.loads(line)["run_id"] for line in board.jsonl.read_text().splitlines()] == ["a", "b"]


def test_a_damaged_line_and_a_folder_that_cannot_be_written_are_told(board: Leaderboard, tmp_path: Path) -> None:
    board.add([ROW])
    board.jsonl.write_text("{}\n" + board.jsonl.read_text())
    with pytest.raises(DataError, match=r"leaderboard\.jsonl.*line 1"):
        board.read()
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="file"):
        Leaderboard.from_csv_path(tmp_path / "file" / "leaderboard.csv").add([ROW])
