"""The verification of a run's parts reports every damage."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from commands import in_process

from ups_jax.runs.verify import DAMAGED, NOTE, SOUND, verify


@pytest.fixture
def run(saved_run: Path, tmp_path: Path) -> Path:
    shutil.copytree(saved_run, tmp_path / "run")
    return tmp_path / "run"


def states(run: Path) -> dict[str, str]:
    return {finding.part: finding.state for finding in verify(run)}


def test_a_sound_run_is_said_to_be_so_and_left_as_it_is(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (run / "metrics.jsonl").write_text('{"stage": "operator", "step": 1}\n{"stage": "operator", "st')
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    assert in_process("verify_run.py", run) == 0
    assert capsys.readouterr().out.count(SOUND) == 4
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


def _without_seal(run: Path) -> None:
    (run / "checkpoints" / "operator" / "0" / "checksums.json").unlink()


def _unsealed_and_truncated(run: Path) -> None:
    _without_seal(run)
    for file in (run / "checkpoints" / "operator" / "0" / "state" / "ocdbt.process_0" / "d").iterdir():
        file.write_bytes(b"")


def _say_saved(run: Path, step: int) -> None:
    record = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps(record | {"stages": {"operator": {"saved": step}}}))


def _all_gone(run: Path) -> None:
    _say_saved(run, 4)
    shutil.rmtree(run / "checkpoints")


DAMAGES: dict[str, tuple[Callable[[Path], object], str, str]] = {
    "a flipped bit": (
        lambda run: _flip(run / "checkpoints/operator/0/meta/metadata"),
        "checkpoints/operator/0",
        DAMAGED,
    ),
    "no checksums": (_without_seal, "checkpoints/operator/0", SOUND),
    "no checksums and half the arrays": (_unsealed_and_truncated, "checkpoints/operator/0", DAMAGED),
    "a later step is gone": (lambda run: _say_saved(run, 4), "checkpoints/operator", DAMAGED),
    "all are gone": (_all_gone, "checkpoints/operator", DAMAGED),
    "set aside": (lambda run: (run / "checkpoints/operator/damaged-4").mkdir(), "checkpoints/operator/damaged-4", NOTE),
    "half a save": (
        lambda run: (run / "checkpoints/operator/4.orbax-checkpoint-tmp").mkdir(),
        "checkpoints/operator/4.orbax-checkpoint-tmp",
        NOTE,
    ),
    "a line of the curve": (
        lambda run: (run / "metrics.jsonl").write_text('{"stage\n{"stage": "operator", "step": 1}\n'),
        "metrics.jsonl",
        DAMAGED,
    ),
    "a step that is no number": (
        lambda run: (run / "metrics.jsonl").write_text('{"stage": "operator", "step": "1"}\n' * 2),
        "metrics.jsonl",
        DAMAGED,
    ),
    "a step twice": (
        lambda run: (run / "metrics.jsonl").write_text('{"stage": "operator", "step": 1}\n' * 2),
        "metrics.jsonl",
        DAMAGED,
    ),
    "the training set": (
        lambda run: (run / "training_set.json").write_text('{"hashes": []}'),
        "training_set.json",
        DAMAGED,
    ),
    "an evaluation": (
        lambda run: ((run / "evaluation").mkdir(), (run / "evaluation/test.json").write_text("{")),
        "evaluation/test.json",
        DAMAGED,
    ),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_every_damage_has_its_line(run: Path, name: str) -> None:
    damage, part, state = DAMAGES[name]
    assert all(status != DAMAGED for status in states(run).values())
    damage(run)
    assert states(run)[part] == state
    assert in_process("verify_run.py", run) == (4 if state == DAMAGED else 0)


def test_no_run_is_4_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert in_process("verify_run.py", tmp_path) == 4
    assert capsys.readouterr().err.count("\n") == 1
