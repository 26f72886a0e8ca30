"""Faults that come from outside of a run, one scene each.

The scene of a checkpoint that is gone calls its commands in this process: it is not about how a process starts or ends.
The slow ones: `pytest -n0 -m slow tests/reliability/test_scenarios.py`, six minutes.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import runs
from commands import CONFIGS
from rows import note
from scenarios import FAST, SHORT, SLOW, Place

from ups_jax import simulate
from ups_jax.config import load

pytestmark = pytest.mark.multiprocess

Main = Callable[..., subprocess.CompletedProcess[str]]
# The scene in this process, where compilation takes most of the time, has a step that compiles fast.
IN_THIS_PROCESS = "newest_checkpoint_gone"
PLAIN = ("optimizer.name=adamw", "training.accum_steps=1")


class PlainPlace(Place):
    def line(self, run: Path, *overrides: str) -> list[str]:
        return super().line(run, *PLAIN, *overrides)


@pytest.fixture(scope="module")
def whole(data_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("scenes") / "whole"
    result = runs.run(runs.training("operator", run, data_root, *SHORT))
    assert result.code == 0, result.err
    return run


@pytest.fixture(scope="module")
def plain_whole(main: Main, data_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("scenes") / "whole"
    result = called(main, runs.training("operator", run, data_root, *SHORT, *PLAIN))
    assert result.code == 0, result.err
    return run


def called(main: Main, line: Sequence[str]) -> runs.Ended:
    """Run a command line in this process and return its result; its first word, the interpreter, is ignored."""
    _, path, *arguments = line
    result = main(Path(path).name, *arguments)
    return runs.Ended(code=result.returncode, out=result.stdout, err=result.stderr)


@pytest.mark.parametrize("name", [*FAST, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)])
def test_a_fault_from_outside_has_its_answer(
    name: str,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
    main: Main,
    data_root: Path,
    tmp_path: Path,
) -> None:
    if name == IN_THIS_PROCESS:
        monkeypatch.setattr(runs, "run", lambda line: called(main, line))
        place: Place = PlainPlace(folder=tmp_path, data_root=data_root, whole=request.getfixturevalue("plain_whole"))
    elif name == "half_a_data_file":
        # It copies a data file, and no run.
        simulate.generate_missing(load(CONFIGS / "tiny.yaml", [f"data.root={data_root}"]))
        place = Place(folder=tmp_path, data_root=data_root, whole=tmp_path / "none")
    else:
        place = Place(folder=tmp_path, data_root=data_root, whole=request.getfixturevalue("whole"))
    row = (FAST | SLOW)[name](place)
    assert row.answer
    note(row, tmp_path)
