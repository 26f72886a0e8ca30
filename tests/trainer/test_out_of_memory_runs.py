"""Memory that runs out in a run: it ends where a run with memory enough does, and a later process knows of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from commands import CONFIGS
from rich.console import Console
from shared_programs import sharing, train_step

from ups_jax.config import load
from ups_jax.core.errors import ConfigError
from ups_jax.runs.best_weights import best_weights
from ups_jax.tracking import read_jsonl
from ups_jax.tracking.jsonl import JsonlWriter
from ups_jax.trainer import loop, stage_run, timing
from ups_jax.trainer import train as training
from ups_jax.trainer.loop import CallPace
from ups_jax.trainer.oom import halving_record, initial_micro_batches
from ups_jax.training.stages import stage_spec

shared_programs = pytest.fixture(scope="module", autouse=True)(sharing)

FULL = jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 4294967296 bytes.")

SMALL = ["operator.spectral.depth=1", "operator.spectral.hidden_dim=8", "latent.dim=4", "training.batch_size=8",
         "optimizer.name=adamw", "scheduler.name=constant", "scheduler.warmup=0",
         "stages.operator.steps=8", "training.eval_every=0.1", "logging.every_steps=1",
         "evaluation.val_trajectories=1", "evaluation.metric=one_step"]  # fmt: skip


def trained(
    data_root: Path, run: Path, *overrides: str, init_from: Path | None = None
) -> tuple[Any, list[dict[str, Any]], dict[str, Any]]:
    """Averaged parameters, records, and what run.json says of the stage."""
    cfg = load(CONFIGS / "tiny.yaml", [f"data.root={data_root}", *SMALL, *overrides])
    training.train(cfg, "operator", run, init_from=init_from, console=Console(quiet=True))
    record = json.loads((run / "run.json").read_text())["stages"]["operator"]
    return best_weights(run, "operator").params, read_jsonl(run / "metrics.jsonl"), record


@pytest.fixture(scope="session")
def uninterrupted(data_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    path = tmp_path_factory.mktemp("runs") / "whole"
    return *trained(data_root, path), path


@pytest.fixture(autouse=True)
def one_step_a_call(monkeypatch: pytest.MonkeyPatch) -> None:
    """The failures below are those of calls by number."""
    monkeypatch.setattr(CallPace, "begin_call", lambda self, steps_left: 1)


class FailingOnce:
    """A real train step that runs out of memory at its `at`-th call, with or without its state's buffers."""

    def __init__(self, step: Any, at: int, deleted: bool) -> None:
        self.step, self.left, self.deleted = step, at, deleted
        self.lower = step.lower

    def __call__(self, state: Any, batch: Any) -> Any:
        self.left -= 1
        if self.left == 0:
            for leaf in jax.tree.leaves(state) if self.deleted else ():
                leaf.delete()
            raise FULL
        return self.step(state, batch)


class NeverCompiled:
    """A step that the device cannot even compile."""

    def lower(self, *_: object) -> NeverCompiled:
        return self

    def compile(self) -> None:
        raise FULL


def watch(monkeypatch: pytest.MonkeyPatch, whole: Callable[[Any], Any] = lambda step: step) -> list[int]:
    """The micro-batches of every step that is made, as they are made; that of whole batches is `whole` of it."""
    groups: list[int] = []

    def watched(*arguments: Any, micro_batches: int, **options: Any) -> Any:
        groups.append(micro_batches)
        step = train_step(*arguments, micro_batches=micro_batches, **options)
        return whole(step) if micro_batches == 1 else step

    for module in (stage_run, timing):
        monkeypatch.setattr(module, "make_train_step", watched)
    return groups


def fail_in_reading(monkeypatch: pytest.MonkeyPatch, at: int) -> None:
    """The numbers of step `at` cannot be read, once."""
    read, failures = loop.read_metrics, iter([FULL])

    def reading(pending: Any, *arguments: Any, **named: Any) -> Any:
        if pending is not None and pending[0] == at:
            for failure in failures:
                raise failure
        return read(pending, *arguments, **named)

    monkeypatch.setattr(loop, "read_metrics", reading)


FAILURES = {
    "state alive": lambda step: FailingOnce(step, 7, False),
    "from a checkpoint": lambda step: FailingOnce(step, 7, True),
    "from the start": lambda step: FailingOnce(step, 2, True),
    "in compiling": lambda step: NeverCompiled(),
    "in reading": lambda step: step,
}


@pytest.mark.parametrize("failure", FAILURES)
def test_a_run_whose_memory_runs_out_ends_where_an_uninterrupted_one_does(
    data_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, uninterrupted: Any, failure: str
) -> None:
    groups = watch(monkeypatch, FAILURES[failure])
    if failure == "in reading":
        fail_in_reading(monkeypatch, 6)
    outcomes: list[str] = []
    close = JsonlWriter.close

    def told(self: JsonlWriter, outcome: Any = "finished") -> None:
        outcomes.append(outcome)
        close(self, outcome)

    monkeypatch.setattr(JsonlWriter, "close", told)
    ended = trained(data_root, tmp_path / "run")
    assert groups == [1, 2]
    begun_again = failure in ("from a checkpoint", "from the start", "in reading")
    assert outcomes == ["stopped"] * begun_again + ["finished"]
    same_end(ended, uninterrupted)
    assert [(entry["micro_batch"], entry["accum_steps"]) for entry in ended[2]["out_of_memory"]] == [(4, 2)]
    plain = uninterrupted[2]
    assert "out_of_memory" not in plain and plain["compile_seconds"] > 0 and plain["finished"]


@pytest.mark.parametrize("deleted", [False, True], ids=["state alive", "from the start"])
def test_a_call_of_several_steps_that_runs_out_of_memory_is_made_again(
    data_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, uninterrupted: Any, deleted: bool
) -> None:
    counts: list[int] = []

    def begin(self: CallPace, at_most: int) -> int:
        counts.append(min(3, at_most))
        return counts[-1]

    monkeypatch.setattr(CallPace, "begin_call", begin)
    groups = watch(monkeypatch, lambda step: FailingOnce(step, 2, deleted))
    ended = trained(data_root, tmp_path / "run", "training.eval_every=100")
    assert groups == [1, 2]
    # The second call is made again, by itself or with the first one before it.
    assert counts == ([3, 3, 3, 3, 2] if deleted else [3, 3, 2])
    same_end(ended, uninterrupted)


def same_end(ended: Any, uninterrupted: Any) -> None:
    """Two runs have the same weights to 1e-6, and records of the same steps and losses."""
    (params, records, record), (expected, expected_records, plain, _) = ended, uninterrupted
    jax.tree.map(lambda left, right: np.testing.assert_allclose(left, right, atol=1e-6), params, expected)
    assert [line["step"] for line in records] == [line["step"] for line in expected_records] == list(range(1, 9))
    np.testing.assert_allclose(
        [line["loss"] for line in records], [line["loss"] for line in expected_records], rtol=1e-5
    )
    assert record["steps"] == plain["steps"] == 8


def test_a_later_process_starts_with_what_fitted_on_that_device(
    data_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, uninterrupted: Any
) -> None:
    run = tmp_path / "run"
    trained_for = ["stages.operator.steps=3"]
    groups = watch(monkeypatch, lambda step: FailingOnce(step, 2, False))
    first = trained(data_root, run, *trained_for)[2]["out_of_memory"]
    assert groups == [1, 2]
    ended = trained(data_root, run)
    assert groups == [1, 2, 2] and ended[2]["out_of_memory"] == first
    same_end(ended, uninterrupted)
    # Another device's halvings say nothing, and stay on file.
    record = json.loads((run / "run.json").read_text())
    elsewhere = [first[0] | {"device": "another"}]
    record["stages"]["operator"]["out_of_memory"] = elsewhere
    (run / "run.json").write_text(json.dumps(record))
    after = trained(data_root, run, "stages.operator.steps=10")[2]["out_of_memory"]
    assert groups == [1, 2, 2, 1, 2]
    assert [entry["device"] for entry in after] == ["another", first[0]["device"]]


def test_the_last_entry_of_this_device_counts_where_it_is_more_than_the_configured() -> None:
    def start(*overrides: str) -> int:
        return initial_micro_batches(load(CONFIGS / "tiny.yaml", [*SMALL, *overrides]), "operator", entries)

    cfg = load(CONFIGS / "tiny.yaml", SMALL)
    entries = [halving_record(cfg, 4, 2), halving_record(cfg, 2, 4)]
    entries.append(entries[0] | {"device": "another", "accum_steps": 8})
    # As versions wrote them that did not say where.
    entries.append({"micro_batch": 1, "accum_steps": 8, "time": ""})
    assert start() == 4
    assert start("stages.operator.accum_steps=6") == 6
    assert start("training.remat=full") == 1


def test_measuring_hands_its_halvings_on(data_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    groups = watch(monkeypatch, lambda step: FailingOnce(step, 1, True))
    *_, record = trained(data_root, tmp_path / "run", "training.max_seconds=0.001")
    assert groups == [1, 2, 2]
    assert [entry["accum_steps"] for entry in record["out_of_memory"]] == [2]
    assert record["budget"]["seconds_per_step"] > 0 and record["steps"] == record["planned_steps"]


def test_a_validation_that_does_not_fit_is_one_line_when_it_is_measured(
    data_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: Any) -> Any:
        raise FULL

    monkeypatch.setattr(timing, "measure_seconds_per_step", lambda *_, **__: 1.0)
    monkeypatch.setattr(timing, "measure_seconds", lambda call: call() and 1.0)
    validation = training.stage_spec("operator").validate
    monkeypatch.setattr(
        training, "stage_spec", lambda name: training_spec(name, lambda *arguments: validation(*arguments) and full)
    )
    with pytest.raises(ConfigError, match=r"^evaluation\.val_trajectories"):
        trained(data_root, tmp_path / "run", "training.max_seconds=1")


def training_spec(name: str, validate: Any) -> Any:
    """A stage with another validation."""
    return replace(stage_spec(name), validate=validate)


def test_a_run_may_go_on_in_other_micro_batches_of_the_same_windows(
    data_root: Path, tmp_path: Path, uninterrupted: Any
) -> None:
    run = tmp_path / "run"
    trained(data_root, run, "stages.operator.steps=4")
    other = ("training.batch_size=2", "stages.operator.accum_steps=4")
    same_end(trained(data_root, run, *other), uninterrupted)
    with pytest.raises(ConfigError, match=r"stages\.operator\.batch_size.*accum_steps.*8.*16"):
        trained(data_root, run, "stages.operator.accum_steps=2")


def test_weights_of_another_run_can_begin_twice(
    data_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, uninterrupted: Any
) -> None:
    *_, parent = uninterrupted
    expected, *_ = trained(data_root, tmp_path / "whole", init_from=parent)
    watch(monkeypatch, lambda step: FailingOnce(step, 2, True))
    params, *_ = trained(data_root, tmp_path / "interrupted", init_from=parent)
    jax.tree.map(lambda left, right: np.testing.assert_allclose(left, right, atol=1e-5), params, expected)
