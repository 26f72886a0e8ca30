"""The real wandb writes offline: every operation, one group for all attempts of a run, no output."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from contextlib import closing

import matplotlib.image
import numpy as np
import pytest
from wandb_files import offline_runs

from ups_jax.config import LoggingConfig, WandbConfig
from ups_jax.tracking import open_training_writer, read_jsonl
from ups_jax.tracking.wandb_run import read_context
from ups_jax.tracking.wandb_writer import WandbWriter


@pytest.fixture(autouse=True)
def wandb_at_home(monkeypatch, tmp_path):
    """wandb's own copies of tables go where the test ends."""
    for name in ("WANDB_DATA_DIR", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR"):
        monkeypatch.setenv(name, str(tmp_path / "home"))


def test_every_operation_arrives_and_nothing_is_said(tmp_path, capfd):
    matplotlib.image.imsave(tmp_path / "plot.png", np.zeros((4, 4)))
    (tmp_path / "report.html").write_text("<p>")
    best = tmp_path / "checkpoints" / "12"
    (best / "state").mkdir(parents=True)
    (best / "state" / "array").write_bytes(b"123")
    writer = WandbWriter(
        WandbConfig(mode="offline", tags=("first",)),
        directory=tmp_path, group="run", name="run-0", run_config={"lr": 0.1, "seed": 17}, finish_timeout=30.0,
    )  # fmt: skip
    for step in (1, 2):
        writer.scalars(step, {"loss": 1.0 / step, "norm": float("nan")}, "operator")
    writer.scalars(1, {"loss": 9.0}, "corrector")
    writer.config({"lr": 0.2, "operator/parameters": 5})
    writer.tags(("second", "first"))
    writer.summary({"eval": {"test": {"nrmse": 0.5}}})
    writer.table("eval/test/headlines", ["", "nrmse"], [["this model", 0.5], ["persistence", None]])
    writer.image("eval/test/rollout", tmp_path / "plot.png")
    writer.file(tmp_path / "report.html")
    writer.artifact(best, "run-operator", kind="model", labels=["best", "step-12"], metadata={"step": 12})
    writer.alert("operator has ended", "12 steps", "WARN")
    writer.close()
    assert writer.problem is None
    assert capfd.readouterr() == ("", "")

    (run,) = offline_runs(tmp_path)
    assert (run.group, run.project, run.name, run.tags) == ("run", "ups_jax", "run-0", ["first", "second"])
    assert run.config.items() >= {"lr": 0.2, "seed": 17, "operator/parameters": 5}.items()
    curve = [(item["training/operator/step"], item["training/operator/loss"]) for item in run.history[:2]]
    assert curve == [(1, 1.0), (2, 0.5)]
    assert run.history[2].items() >= {"training/corrector/step": 1, "training/corrector/loss": 9.0}.items()
    assert run.axes == {f"training/{stage}/*": f"training/{stage}/step" for stage in ("operator", "corrector")}
    assert run.summary["eval/test/nrmse"] == 0.5
    (table,) = (tmp_path / "wandb").glob("offline-run-*/files/media/table/eval/test/headlines_*.json")
    assert json.loads(table.read_text())["data"] == [["this model", 0.5], ["persistence", None]]
    assert list((tmp_path / "wandb").glob("offline-run-*/files/media/images/eval/test/rollout_*.png"))
    assert "report.html" in run.files
    artifact = run.artifacts["run-operator"]
    assert artifact.type == "model" and {"best", "step-12"} <= set(artifact.aliases)
    assert json.loads(artifact.metadata) == {"step": 12}
    # Not copied: what is sent later is the checkpoint itself.
    assert [item.local_path for item in artifact.manifest.contents] == [str(best / "state" / "array")]
    assert run.alerts == [("operator has ended", "12 steps", "WARN")]


@pytest.mark.parametrize(
    ("outcome", "end"), [("finished", (0, False)), ("failed", (1, False)), ("stopped", (75, True))]
)
def test_how_a_run_ended_is_in_its_file(tmp_path, outcome, end):
    writer = WandbWriter(
        WandbConfig(mode="offline"), directory=tmp_path, group="run", name="run-0", run_config={}, finish_timeout=30.0
    )
    writer.close(outcome)
    (run,) = offline_runs(tmp_path)
    assert writer.problem is None and (run.exit_code, run.preempting) == end


UNREACHABLE = """
import sys
from pathlib import Path
from ups_jax.config import WandbConfig
from ups_jax.tracking import WandbWriter
writer = WandbWriter(
    WandbConfig(mode="online"), directory=Path(sys.argv[1]), group="run", name="run-0", run_config={},
    finish_timeout=60.0, init_timeout=1.0,
)
writer.scalars(1, {"loss": 0.5}, "operator")
writer.alert("ended", "well")
writer.close()
assert writer.problem is None, writer.problem
"""


def test_a_server_that_does_not_answer_costs_no_record(tmp_path):
    with socket.socket() as closed:
        # Bound, and nobody listens.
        closed.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{closed.getsockname()[1]}"
        environment = os.environ | {"WANDB_BASE_URL": address, "WANDB_API_KEY": "0" * 40}
        result = subprocess.run(
            [sys.executable, "-c", UNREACHABLE, str(tmp_path)],
            env=environment, capture_output=True, text=True, timeout=120,
        )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert "CommError: " in result.stderr and "Traceback" not in result.stderr
    (run,) = offline_runs(tmp_path)
    assert run.history == [{"training/operator/loss": 0.5, "training/operator/step": 1}]
    assert run.alerts == [("ended", "well", "INFO")]


def test_wandb_is_told_less_often_than_the_jsonl(tmp_path):
    logging = LoggingConfig(wandb=WandbConfig(mode="offline", every_seconds=1e9))
    run = tmp_path / "run"
    writer = open_training_writer(
        run, run / "metrics.jsonl", logging, stage="operator", step=0, run_config={"seed": 17}
    )
    with closing(writer):
        for step in range(1, 10):
            writer.scalars(step, {"loss": 1.0} | ({"validation/nrmse": 0.5} if step == 4 else {}), "operator")
    assert [record["step"] for record in read_jsonl(run / "metrics.jsonl")] == list(range(1, 10))
    (offline_run,) = offline_runs(run)
    assert [item["training/operator/step"] for item in offline_run.history] == [1, 4, 9]


def test_attempts_are_one_curve_in_the_jsonl_and_runs_of_one_group_on_wandb(tmp_path, monkeypatch):
    context = tmp_path / "pipeline" / "context.json"
    monkeypatch.setenv("WANDB_CONTEXT_FILE", str(context))
    logging = LoggingConfig(wandb=WandbConfig(mode="offline", every_seconds=0))
    run = tmp_path / "my run"

    def attempt(start, steps):
        writer = open_training_writer(
            run, run / "metrics.jsonl", logging, stage="operator", step=start, run_config={"seed": 17}
        )
        with closing(writer):
            for step in steps:
                writer.scalars(step, {"loss": float(step)}, "operator")

    attempt(0, (1, 2, 3))
    first = read_context(context)
    # Killed after step 3, restored at 2.
    attempt(2, (3, 4))
    assert [record["step"] for record in read_jsonl(run / "metrics.jsonl")] == [1, 2, 3, 4]
    runs = offline_runs(run)
    assert [[item["training/operator/step"] for item in item.history] for item in runs] == [[1, 2, 3], [3, 4]]
    assert [item.group for item in runs] == ["pipeline", "pipeline"]
    assert [item.name for item in runs] == ["pipeline-0", "pipeline-2"]
    assert first is not None and (first.run_id, first.group, first.mode) == (runs[0].id, "pipeline", "offline")
    # Whoever comes next belongs to the attempt that got further.
    newest = read_context(context)
    assert newest is not None and newest.run_id == runs[1].id != runs[0].id
