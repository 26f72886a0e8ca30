"""A run that is killed and started again ends exactly where an uninterrupted one does."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import pytest
from commands import CONFIGS, kill_after
from shared_programs import SMALL_MODEL, sharing

from ups_jax.config import from_dict, load
from ups_jax.data import open_dataset
from ups_jax.runs.checkpoint import Checkpoints, tasks_from_meta
from ups_jax.tracking import read_jsonl
from ups_jax.training.build import abstract_state

Script = Callable[..., subprocess.CompletedProcess[str]]

shared_programs = pytest.fixture(scope="module", autouse=True)(sharing)

# Short, with a save every few steps and no plots: what is tested is the state. The rate decays, so that a wrong count
# of steps shows.
SHORT = [*SMALL_MODEL, "scheduler.name=cosineannealinglr", "evaluation.val_trajectories=1", "evaluation.enabled=false",
         "stages.operator.steps=120", "training.eval_every=0.75", "logging.every_steps=1"]  # fmt: skip


@pytest.fixture(scope="session")
def arguments(data_root: Path) -> list[str]:
    return ["--config", str(CONFIGS / "tiny.yaml"), *SHORT, f"data.root={data_root}"]


@pytest.fixture(scope="session")
def uninterrupted(main: Script, arguments: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "whole"
    result = main("train.py", *arguments, "--run-dir", str(run))
    assert result.returncode == 0, result.stderr
    return run


def final_state(run: Path) -> list[np.ndarray]:
    """Every leaf of the newest checkpoint."""
    with Checkpoints(run / "checkpoints" / "operator", read_only=True) as checkpoints:
        step = checkpoints.steps()[-1]
        meta = checkpoints.meta(step)
        like = abstract_state(from_dict(meta["config"]), tasks_from_meta(meta), meta["stage"])
        state = checkpoints.restore(step, like)
    plain = jax.tree.map(
        lambda leaf: jax.random.key_data(leaf) if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf,
        state,
    )
    return [np.asarray(leaf) for leaf in jax.tree.leaves(plain)]


def assert_same(first: Path, second: Path) -> None:
    ours, theirs = final_state(first), final_state(second)
    assert len(ours) == len(theirs) > 0
    for one, other in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(one, other)
    curves = [read_jsonl(run / "metrics.jsonl") for run in (first, second)]
    steps = [[record["step"] for record in records] for records in curves]
    assert steps[0] == steps[1] == sorted(set(steps[0]))
    assert [record["loss"] for record in curves[0]] == [record["loss"] for record in curves[1]]


# The seven kills of `tests/reliability/test_crash_sequences.py` show the same in every run of the tests.
@pytest.mark.slow
def test_kill_9_and_again_ends_in_the_same_bits(
    script: Script, arguments: list[str], uninterrupted: Path, tmp_path: Path
) -> None:
    run = tmp_path / "killed"
    assert kill_after(run, arguments, 40, signal.SIGKILL) == -signal.SIGKILL
    result = script("train.py", *arguments, "--run-dir", str(run))
    assert result.returncode == 0, result.stderr
    resumed = re.search(r"resumed     at step (\d+) of 120", result.stdout)
    assert resumed is not None and 12 <= int(resumed[1]) <= 96
    assert_same(run, uninterrupted)


def test_a_run_by_seconds_that_is_killed_ends_in_the_bits_of_one_by_as_many_steps(
    script: Script, main: Script, arguments: list[str], tmp_path: Path
) -> None:
    run, by_steps = tmp_path / "seconds", tmp_path / "steps"
    seconds = [*arguments, "training.max_seconds=1.5"]
    assert kill_after(run, seconds, 30, signal.SIGKILL) == -signal.SIGKILL
    planned = json.loads((run / "run.json").read_text())["stages"]["operator"]["planned_steps"]
    result = script("train.py", *seconds, "--run-dir", str(run))
    assert result.returncode == 0, result.stderr
    assert re.search(rf"resumed     at step \d+ of {planned}\n", result.stdout)
    record = json.loads((run / "run.json").read_text())["stages"]["operator"]
    assert record["planned_steps"] == record["steps"] == planned
    result = main("train.py", *arguments, f"stages.operator.steps={planned}", "--run-dir", str(by_steps))
    assert result.returncode == 0, result.stderr
    assert_same(run, by_steps)


def test_sigterm_saves_the_step_it_is_at_and_goes_on_from_there(
    main: Script, arguments: list[str], uninterrupted: Path, tmp_path: Path
) -> None:
    run = tmp_path / "stopped"
    assert kill_after(run, arguments, 40, signal.SIGTERM) == 75
    reached = read_jsonl(run / "metrics.jsonl")[-1]["step"]
    assert json.loads((run / "run.json").read_text())["status"] == "stopped"
    result = main("train.py", *arguments, "--run-dir", str(run))
    assert result.returncode == 0, result.stderr
    assert re.search(f"resumed .*step {reached} of 120", result.stdout)
    assert_same(run, uninterrupted)


def test_a_longer_run_goes_on_from_where_the_shorter_one_stopped(
    main: Script, arguments: list[str], tmp_path: Path, uninterrupted: Path
) -> None:
    run = tmp_path / "longer"
    subprocess.run(["cp", "-r", str(uninterrupted), str(run)], check=True)
    result = main("train.py", *arguments, "stages.operator.steps=130", "--run-dir", str(run))
    assert result.returncode == 0, result.stderr
    assert re.search("resumed .*step 120 of 130", result.stdout)
    assert [record["step"] for record in read_jsonl(run / "metrics.jsonl")] == list(range(1, 131))


def test_a_finished_run_trains_nothing_and_changes_no_bit(
    main: Script, arguments: list[str], uninterrupted: Path
) -> None:
    before = final_state(uninterrupted)
    result = main("train.py", *arguments, "--run-dir", str(uninterrupted))
    assert result.returncode == 0, result.stderr
    for one, other in zip(before, final_state(uninterrupted), strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_damaged_newest_checkpoint_is_told_and_the_one_before_is_used(
    main: Script, arguments: list[str], uninterrupted: Path, tmp_path: Path
) -> None:
    run = tmp_path / "damaged"
    subprocess.run(["cp", "-r", str(uninterrupted), str(run)], check=True)
    for file in (run / "checkpoints" / "operator" / "120" / "state" / "ocdbt.process_0" / "d").iterdir():
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    result = main("train.py", *arguments, "--run-dir", str(run))
    assert result.returncode == 0, result.stderr
    assert "damaged" in result.stdout
    assert (run / "checkpoints" / "operator" / "damaged-120").is_dir()
    assert_same(run, uninterrupted)


def test_when_no_checkpoint_can_be_read_nothing_starts_again_from_scratch(
    main: Script, arguments: list[str], uninterrupted: Path, tmp_path: Path
) -> None:
    run = tmp_path / "lost"
    subprocess.run(["cp", "-r", str(uninterrupted), str(run)], check=True)
    for file in (run / "checkpoints" / "operator").glob("*/state/ocdbt.process_0/d/*"):
        file.write_bytes(b"")
    records = (run / "metrics.jsonl").read_bytes()
    for _ in range(2):
        result = main("train.py", *arguments, "--run-dir", str(run))
        assert (result.returncode, result.stderr.count("\n")) == (4, 1), result.stderr
    assert (run / "checkpoints" / "operator" / "120").is_dir()
    assert (run / "metrics.jsonl").read_bytes() == records
    evaluation = main("evaluate.py", "--run-dir", str(run))
    assert (evaluation.returncode, evaluation.stderr.count("\n")) == (4, 1), evaluation.stderr


def test_a_run_directory_of_another_configuration_is_refused_and_left_alone(
    main: Script, arguments: list[str], uninterrupted: Path
) -> None:
    before = (uninterrupted / "run.json").read_bytes()
    result = main("train.py", *arguments, "optimizer.lr=5e-3", "--run-dir", str(uninterrupted))
    assert result.returncode == 2
    assert re.search(r"stages\.operator\.optimizer\.lr.*0\.01.*0\.005", result.stderr)
    assert result.stderr.count("\n") == 1
    assert (uninterrupted / "run.json").read_bytes() == before


def test_a_directory_that_holds_something_else_is_refused(main: Script, arguments: list[str], tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("precious")
    result = main("train.py", *arguments, "--run-dir", str(tmp_path))
    assert (result.returncode, result.stderr.count("\n")) == (2, 1)
    assert [entry.name for entry in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_run_that_another_process_holds_is_refused(main: Script, arguments: list[str], uninterrupted: Path) -> None:
    holder = subprocess.Popen(
        [sys.executable, "-c", "import fcntl, sys, time\nfile = open(sys.argv[1], 'a')\n"
         "fcntl.flock(file, fcntl.LOCK_EX)\nfile.truncate(0)\nfile.write('process 1 on elsewhere')\nfile.flush()\n"
         "print('held', flush=True)\ntime.sleep(120)", str(uninterrupted / ".lock")],
        stdout=subprocess.PIPE,
    )  # fmt: skip
    try:
        assert holder.stdout is not None and holder.stdout.readline() == b"held\n"
        result = main("train.py", *arguments, "--run-dir", str(uninterrupted))
        assert result.returncode == 2
        assert "process 1 on elsewhere" in result.stderr
    finally:
        os.kill(holder.pid, signal.SIGKILL)
        holder.communicate()


def test_resume_never_and_must_say_what_they_found(
    main: Script, arguments: list[str], uninterrupted: Path, tmp_path: Path
) -> None:
    never = main("train.py", *arguments, "--run-dir", str(uninterrupted), "--resume", "never")
    must = main("train.py", *arguments, "--run-dir", str(tmp_path / "new"), "--resume", "must")
    assert (never.returncode, must.returncode) == (2, 4)
    assert not (tmp_path / "new").exists()


def test_init_from_takes_the_weights_alone(
    main: Script, arguments: list[str], uninterrupted: Path, tmp_path: Path
) -> None:
    run = tmp_path / "child"
    result = main(
        "train.py", *arguments, "training.eval_every=100", "--run-dir", str(run), "--init-from", str(uninterrupted)
    )
    assert result.returncode == 0, result.stderr
    records = read_jsonl(run / "metrics.jsonl")
    first_of_parent = read_jsonl(uninterrupted / "metrics.jsonl")[0]
    assert [record["step"] for record in records] == list(range(1, 121))
    assert records[0]["loss"] < 0.5 * first_of_parent["loss"]


def test_other_data_under_the_same_name_is_refused(
    main: Script, arguments: list[str], uninterrupted: Path, tmp_path: Path
) -> None:
    run = tmp_path / "other"
    subprocess.run(["cp", "-r", str(uninterrupted), str(run)], check=True)
    generated = main(
        "generate_data.py", "--task", "burgers1d", "--preset", "tiny", "--seed", "5", "--out", str(tmp_path / "d")
    )
    assert generated.returncode == 0, generated.stderr
    file = next((tmp_path / "d").glob("*.hdf5"))
    result = main("train.py", *arguments, f"data.tasks.0.path={file}", "--run-dir", str(run))
    assert result.returncode == 2
    assert str(run) in result.stderr and "data" in result.stderr


def test_the_validation_split_is_what_the_configuration_says(data_root: Path) -> None:
    dataset = open_dataset(load(CONFIGS / "tiny.yaml", [f"data.root={data_root}"]))
    assert dataset.split_sizes == {"train": 32, "val": 4, "test": 4}
