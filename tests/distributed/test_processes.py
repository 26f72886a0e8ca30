"""Several processes over the loopback train the run that one process does."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from commands import CONFIGS, command, quiet

pytestmark = pytest.mark.multiprocess

SMALL = (
    "latent.dim=8",
    "operator.spectral.hidden_dim=16",
    "operator.spectral.depth=1",
    "training.input_noise=0.01",
    "training.eval_every=0.25",
    "optimizer.name=sgd",
    "optimizer.lr=0.1",
    "logging.every_steps=1",
    "logging.wandb.enabled=false",
    "evaluation.bootstrap=10",
    "evaluation.plots=false",
    "parallel.timeout_seconds=30",
)


def started(count: int, run: Path, *overrides: str) -> list[subprocess.Popen[str]]:
    """The processes of one run."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    together = ["parallel.multihost=true", f"parallel.coordinator=127.0.0.1:{port}", f"parallel.processes={count}"]
    base = ["--config", str(CONFIGS / "tiny.yaml"), "--run-dir", str(run), *SMALL, *overrides]
    shared = together if count > 1 else []
    return [
        subprocess.Popen(
            command("train.py", *base, *shared, *([f"parallel.process={index}"] if count > 1 else [])),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=quiet(),
        )
        for index in range(count)
    ]


def ended(processes: list[subprocess.Popen[str]], timeout: float = 400) -> list[tuple[int, str]]:
    """Exit code and output of each; none is left behind."""
    try:
        outputs = [process.communicate(timeout=timeout)[0] for process in processes]
        return [(process.returncode, output) for process, output in zip(processes, outputs, strict=True)]
    finally:
        for process in processes:
            process.kill()


def records(run: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def same_run(one: Path, other: Path) -> None:
    """Assert equal steps, losses and test errors, to 1e-5."""
    left, right = records(one), records(other)
    assert [line["step"] for line in left] == [line["step"] for line in right]
    for name in ("loss", "grad_norm"):
        np.testing.assert_allclose([line[name] for line in right], [line[name] for line in left], rtol=1e-5)
    evaluations = [json.loads((run / "evaluation" / "test.json").read_text()) for run in (one, other)]
    for way in ("one_step", "rollout"):
        scores = [evaluation["metrics"]["burgers1d"][way]["nrmse"] for evaluation in evaluations]
        np.testing.assert_allclose(scores[1], scores[0], rtol=1e-5)


def wait_for_records(run: Path, count: int, processes: list[subprocess.Popen[str]]) -> None:
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline and all(process.poll() is None for process in processes):
        if (run / "metrics.jsonl").exists() and len((run / "metrics.jsonl").read_text().splitlines()) >= count:
            return
        time.sleep(0.01)
    raise AssertionError("\n".join(output for _, output in ended(processes, 1)))


def test_two_processes_train_what_one_does(
    main: Callable[..., subprocess.CompletedProcess[str]], data_root: Path, tmp_path: Path
) -> None:
    rest = (f"data.root={data_root}", "stages.operator.steps=6", "evaluation.val_trajectories=1")
    processes = started(2, tmp_path / "two", *rest)
    # The one process is this one, and trains meanwhile.
    alone = main("train.py", "--config", CONFIGS / "tiny.yaml", "--run-dir", tmp_path / "one", *SMALL, *rest)
    for code, output in [*ended(processes), (alone.returncode, alone.stderr)]:
        assert code == 0, output
    same_run(tmp_path / "one", tmp_path / "two")


@pytest.mark.slow
def test_four_processes_stopped_by_one_signal_go_on_as_two_and_as_one(data_root: Path, tmp_path: Path) -> None:
    rest = (f"data.root={data_root}", "stages.operator.steps=240", "evaluation.val_trajectories=1")
    for code, output in ended(started(1, tmp_path / "one", *rest)):
        assert code == 0, output
    run = tmp_path / "several"
    for count, after in ((4, 20), (2, 100)):
        processes = started(count, run, *rest, "parallel.fsdp=2")
        wait_for_records(run, after, processes)
        # One of them is told, and not the one that writes.
        processes[-1].send_signal(signal.SIGTERM)
        assert [code for code, _ in ended(processes)] == [75] * count
    assert 100 <= len(records(run)) < 240
    for code, output in ended(started(1, run, *rest)):
        assert code == 0, output
    same_run(tmp_path / "one", run)


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_process_ends_the_others_and_the_run_goes_on(data_root: Path, tmp_path: Path, victim: int) -> None:
    run, rest = tmp_path / "run", (f"data.root={data_root}", "stages.operator.steps=400")
    processes = started(2, run, *rest, "parallel.timeout_seconds=10", "checkpoint.every_seconds=1")
    wait_for_records(run, 100, processes)
    processes[victim].kill()
    (code, output) = ended(processes, 90)[1 - victim]
    assert code != 0
    assert output
    before = len(records(run))
    ((code, output),) = ended(started(1, run, *rest, "stages.operator.steps=120"))
    assert code == 0, output
    assert "resumed" in output
    assert before >= 100
