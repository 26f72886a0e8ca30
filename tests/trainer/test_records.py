"""Two runs are one, bit for bit; what they record; and what W&B hears of a stage's start and end."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from commands import CONFIGS, quiet
from rich.console import Console
from shared_programs import SMALL_MODEL, sharing
from wandb_files import offline_runs

from ups_jax.config import digest, from_dict, load
from ups_jax.core.errors import DivergedError
from ups_jax.data import open_dataset, training_batches
from ups_jax.models import Batch, conditions_of
from ups_jax.optim import ema_params
from ups_jax.rollout import rollout
from ups_jax.runs.checkpoint import Checkpoints, tasks_from_meta
from ups_jax.tracking import Writer, read_jsonl
from ups_jax.trainer import stage_run
from ups_jax.trainer.train import train
from ups_jax.training.build import abstract_state, build_model

shared_programs = pytest.fixture(scope="module", autouse=True)(sharing)

SMALL = [*SMALL_MODEL, "stages.operator.steps=6", "training.eval_every=0.25", "logging.every_steps=1",
         "training.log_per_task_metrics=true"]  # fmt: skip
EARLIER = 7
TIMES = {"epoch_time_sec"}


def trained(data_root: Path, path: Path, *overrides: str) -> Path:
    cfg = load(CONFIGS / "tiny.yaml", [f"data.root={data_root}", *SMALL, *overrides])
    train(cfg, "operator", path, console=Console(quiet=True))
    return path


@pytest.fixture(scope="session")
def first(data_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(data_root, tmp_path_factory.mktemp("runs") / "first", "deterministic=true")


@pytest.fixture(scope="session")
def tracked(data_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with everything on, after another stage of seven steps."""
    root = tmp_path_factory.mktemp("runs")
    run = root / "tracked"
    (run / "checkpoints" / "steady_prior" / str(EARLIER)).mkdir(parents=True)
    (run / "run.json").write_text(
        json.dumps({"config": {}, "created": "", "digests": {}, "stages": {"steady_prior": {}}})
    )
    with pytest.MonkeyPatch.context() as patch:
        for name in ("WANDB_DATA_DIR", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR"):
            patch.setenv(name, str(root / "home"))
        patch.setenv("WANDB_MODE", "offline")
        everything = ("logging.wandb.enabled=true", "logging.wandb.every_seconds=0")
        return trained(data_root, run, *everything)


def leaves(run: Path) -> list[np.ndarray]:
    with Checkpoints(run / "checkpoints" / "operator", read_only=True) as checkpoints:
        meta = checkpoints.meta(6)
        like = abstract_state(from_dict(meta["config"]), tasks_from_meta(meta), "operator")
        state = checkpoints.restore(6, like)
    plain = (state.params, state.opt_state, state.ema, jax.random.key_data(state.rng))
    return [np.asarray(leaf) for leaf in jax.tree.leaves(plain)]


def records(run: Path) -> list[dict[str, Any]]:
    return [record for record in read_jsonl(run / "metrics.jsonl") if record["stage"] == "operator"]


def test_two_runs_are_bit_equal_in_state_and_records_but_for_times(
    data_root: Path, first: Path, tmp_path: Path
) -> None:
    second = trained(data_root, tmp_path / "second", "deterministic=true")
    for one, other in zip(leaves(first), leaves(second), strict=True):
        np.testing.assert_array_equal(one, other)
    ours, theirs = ([{k: v for k, v in item.items() if k not in TIMES} for item in records(r)] for r in (first, second))
    assert ours == theirs and len(ours) == 6
    other = trained(data_root, tmp_path / "other", "seed=18")
    assert records(other)[0]["loss"] != ours[0]["loss"]


def test_the_records_carry_what_a_curve_needs(first: Path) -> None:
    every = {"loss", "relative", "h1", "lr", "grad_norm", "epoch", "global_step", "skipped"}
    evaluated = {"best_metric", "evaluations_since_best", "epochs_since_best", "epoch_time_sec", "validation/rollout"}
    ours = records(first)
    assert all(every <= record.keys() for record in ours)
    assert [record["step"] for record in ours if evaluated <= record.keys()] == [4, 6]
    assert [record["global_step"] for record in ours] == [1, 2, 3, 4, 5, 6]
    last = ours[-1]
    best = min(
        (record for record in ours if "validation/rollout" in record), key=lambda item: item["validation/rollout"]
    )
    assert last["best_metric"] == best["validation/rollout"]
    assert last["epochs_since_best"] == last["epoch"] - best["epoch"]
    assert last["epoch_time_sec"] > 0


# Two runs, with XLA as users have it: other emitters round a program with more results differently.
PROGRAM = """
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from rich.console import Console
from ups_jax.config import load
from ups_jax.trainer import stage_run
from ups_jax.trainer.train import train

for name, value in (("without", "false"), ("with", "true")):
    cfg = load(sys.argv[1], [*sys.argv[3:], f"training.log_per_task_metrics={value}"])
    train(cfg, "operator", Path(sys.argv[2]) / name, console=Console(quiet=True))
"""


def test_per_task_records_change_no_bit_of_the_run(data_root: Path, tracked: Path, tmp_path: Path) -> None:
    plain = trained(data_root, tmp_path / "plain", "training.log_per_task_metrics=false")
    arguments = [
        str(CONFIGS / "tiny.yaml"),
        str(tmp_path),
        f"data.root={data_root}",
        *SMALL,
        "evaluation.val_trajectories=1",
    ]
    result = subprocess.run(
        [sys.executable, "-c", PROGRAM, *arguments],
        env=quiet() | {"XLA_FLAGS": ""}, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    for one, other in zip(leaves(tmp_path / "without"), leaves(tmp_path / "with"), strict=True):
        np.testing.assert_array_equal(one, other)
    for ours, theirs in zip(records(plain), records(tracked), strict=True):
        assert theirs["burgers1d/loss"] == pytest.approx(ours["loss"], rel=1e-6)
        assert theirs["burgers1d/sample_count"] == 16
        assert theirs["loss"] == pytest.approx(ours["loss"], rel=1e-6) and not any(
            name.startswith("burgers1d") for name in ours
        )
        assert theirs["global_step"] == ours["global_step"] + EARLIER
    # They may be switched on in a run that goes on.
    without, enabled = (
        load(CONFIGS / "tiny.yaml", [*SMALL, f"training.log_per_task_metrics={value}"]) for value in ("false", "true")
    )
    assert digest(without, "operator") == digest(enabled, "operator")


def test_wandb_hears_of_the_stages_start_its_curve_and_its_end(tracked: Path) -> None:
    (run,) = offline_runs(tracked)
    assert {"operator", "burgers1d"} <= set(run.tags) and run.config["operator/total_steps"] == 6
    ours = records(tracked)
    assert all("burgers1d/loss" in record for record in ours)
    for logged, record in zip(run.history, ours, strict=True):
        assert logged == {f"training/operator/{name}": value for name, value in record.items() if name != "stage"}
    with Checkpoints(tracked / "checkpoints" / "operator", read_only=True) as checkpoints:
        best = checkpoints.best_step()
    artifact = run.artifacts["tracked-operator"]
    assert {"best", f"step-{best}"} <= set(artifact.aliases)
    sent = {Path(item.local_path) for item in artifact.manifest.contents}
    folder = tracked.resolve() / "checkpoints" / "operator" / str(best)
    assert sent == {item for item in folder.rglob("*") if item.is_file()}
    (alert,) = run.alerts
    assert alert[0] == "operator has ended" and f"at step {best}" in alert[1] and alert[2] == "INFO"
    assert run.summary["training/operator/best_step"] == best


class Recorder(Writer):
    """Stands in for W&B: what it heard, in order. A `killed` one takes the process with it at that call; one that is
    `off` sends nothing on."""

    def __init__(self, killed: str = "", off: bool = False) -> None:
        self.heard: list[tuple[str, tuple[Any, ...]]] = []
        self.killed = killed
        self.off = off

    def note(self, name: str, *args: Any) -> None:
        if name == self.killed:
            raise SystemExit("killed")
        self.heard.append((name, args))

    def artifact(self, path: Path, name: str, **about: Any) -> None:
        self.note("artifact", name)

    def alert(self, title: str, text: str, level: str = "INFO") -> None:
        self.note("alert", title, text, level)

    def close(self, outcome: str = "finished") -> None:
        self.note("close", outcome)

    def has_delivered(self, *kinds: str) -> bool:
        return not self.off


def test_the_end_of_a_stage_is_told_once_though_its_process_is_killed_or_cannot_send_before(
    data_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ways = [Recorder("close"), Recorder(off=True), Recorder(), Recorder(off=True), Recorder()]
    starts = iter(ways)
    monkeypatch.setattr("ups_jax.tracking.WandbWriter", lambda *args, **kwargs: next(starts))
    on = "logging.wandb.enabled=true"
    with pytest.raises(SystemExit):
        trained(data_root, tmp_path / "run", on)
    for expected in (None, 6, 6):
        trained(data_root, tmp_path / "run", on)
        assert json.loads((tmp_path / "run" / "run.json").read_text())["stages"]["operator"].get("told") == expected
    # A longer run has another end.
    trained(data_root, tmp_path / "run", on, "stages.operator.steps=7")
    _, unsent, sent, after, longer = ([name for name, _ in way.heard] for way in ways)
    # The alert first: an upload may take longer than it is waited for.
    assert unsent == sent == longer == ["alert", "artifact", "close"] and after == ["close"]
    assert "6 steps" in ways[2].heard[0][1][1] and "7 steps" in ways[4].heard[0][1][1]


def test_a_run_that_diverges_sends_an_alert_and_no_checkpoint(
    data_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard = Recorder()
    monkeypatch.setattr("ups_jax.tracking.WandbWriter", lambda *args, **kwargs: heard)

    @contextmanager
    def not_finite(*arguments: Any, **options: Any) -> Iterator[Iterator[Batch]]:
        with training_batches(*arguments, **options) as batches:
            yield (replace(batch, fields=np.full_like(batch.fields, np.nan)) for batch in batches)

    monkeypatch.setattr(stage_run, "training_batches", not_finite)
    with pytest.raises(DivergedError):
        trained(data_root, tmp_path / "run", "logging.wandb.enabled=true", "training.max_skips=2")
    (_, (title, text, level)), closed = heard.heard
    assert closed == ("close", ("failed",))
    assert (title, level) == ("operator has diverged", "ERROR") and "lr" in text


def test_the_recorded_validation_is_that_of_the_averaged_parameters(data_root: Path, first: Path) -> None:
    cfg = load(CONFIGS / "tiny.yaml", [f"data.root={data_root}", *SMALL])
    dataset = open_dataset(cfg)
    with Checkpoints(first / "checkpoints" / "operator", read_only=True) as checkpoints:
        state = checkpoints.restore(4, abstract_state(cfg, dataset.task, "operator"))
    model = build_model(cfg, dataset.task, "operator")
    trajectories = dataset.trajectories("val", limit=cfg.evaluation.val_trajectories)

    rolled = jax.jit(partial(rollout, model), static_argnums=3)

    def error(params: Any) -> float:
        """The nRMSE of one channel's rollout from the first frame, in NumPy."""
        count, frames = trajectories.fields.shape[:2]
        cond = conditions_of(
            Batch(
                dt=np.full(count, dataset.task.dt, np.float32), cond=trajectories.cond, cond_mask=trajectories.cond_mask
            )
        )
        predicted = rolled(params, jnp.asarray(trajectories.fields[:, :1]), cond, frames - 1)
        truth = trajectories.fields[:, 1:]
        size = np.sqrt((truth**2).mean((2, 3)))
        return float((np.sqrt(((np.asarray(predicted) - truth) ** 2).mean((2, 3))) / size).mean())

    averaged = error(ema_params(state.params, state.ema, cfg.stages.operator.ema_decay))
    recorded = next(item["validation/rollout"] for item in records(first) if item["step"] == 4)
    np.testing.assert_allclose(recorded, averaged, rtol=1e-4)
    assert abs(error(state.params) / averaged - 1) > 3e-3
