"""Memory that runs out: the micro-batch is halved and the run ends where one with memory enough does."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
import pytest
from commands import CONFIGS
from rich.console import Console

from ups_jax.config import load
from ups_jax.errors import ConfigError
from ups_jax.tracking import read_jsonl
from ups_jax.training import memory
from ups_jax.training import train as training
from ups_jax.training.memory import FittingStep, fitting_validation, is_lost, is_out_of_memory
from ups_jax.training.state import TrainState, state_of
from ups_jax.training.weights import best_weights

FULL = jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 4294967296 bytes.")
OTHER = jax.errors.JaxRuntimeError("INVALID_ARGUMENT: shapes differ")


class Device:
    """Steps that fail as long as a group has more than `fits` rows, and what they were asked for."""

    def __init__(self, fits: int, rows: int) -> None:
        self.fits, self.rows = fits, rows
        self.asked: list[int] = []

    def make(self, micro_batches: int) -> Callable[[Any, Any], Any]:
        self.asked.append(micro_batches)

        def step(state: Any, batch: Any) -> Any:
            if -(-self.rows // micro_batches) > self.fits:
                raise FULL
            return replace(state, step=state.step + 1), {}

        return step


def blank() -> TrainState:
    return state_of({"w": jax.numpy.ones(2)}, optax.sgd(1.0), jax.random.key(0))


@pytest.mark.parametrize(
    ("rows", "start", "fits", "asked"),
    [(16, 1, 2, [1, 2, 4, 8]), (6, 1, 1, [1, 2, 3, 6]), (12, 3, 2, [3, 6]), (5, 1, 9, [1])],
)
def test_rows_are_halved_until_they_fit_and_stay_so(rows: int, start: int, fits: int, asked: list[int]) -> None:
    device, told = Device(fits, rows), []
    step = FittingStep(device.make, rows, start, key="k", ahead=False, halved=lambda *sizes: told.append(sizes))
    assert int(step(step(blank(), {})[0], {})[0].step) == 2
    assert device.asked == asked
    assert told == [(-(-rows // groups), groups) for groups in asked[1:]]


def test_one_row_that_does_not_fit_is_one_line_and_another_error_is_itself() -> None:
    step = FittingStep(Device(0, 4).make, 4, 1, key="stages.operator.batch_size", ahead=False)
    with pytest.raises(
        ConfigError, match=r"^stages\.operator\.batch_size: .* one row; set training\.remat=full"
    ) as error:
        step(blank(), {})
    assert "\n" not in str(error.value)
    with pytest.raises(jax.errors.JaxRuntimeError, match="INVALID_ARGUMENT"):
        step.halve(OTHER)
    assert is_out_of_memory(FULL) and not is_out_of_memory(OTHER)


def test_a_validation_that_does_not_fit_names_its_own_key() -> None:
    def validate(params: Any) -> dict[str, float]:
        raise FULL

    with pytest.raises(ConfigError, match=r"^evaluation\.val_trajectories"):
        fitting_validation(validate)({})


def test_a_state_is_lost_with_any_of_its_buffers() -> None:
    state = {"a": jax.numpy.ones(3), "b": jax.numpy.ones(2), "c": 1.0}
    assert not is_lost(state)
    state["b"].delete()
    assert is_lost(state)


SMALL = ["operator.spectral.depth=1", "operator.spectral.hidden_dim=8", "latent.dim=4", "training.batch_size=8",
         "optimizer.name=adamw", "stages.operator.steps=8", "training.eval_every=0.1", "logging.every_steps=1",
         "evaluation.val_trajectories=1", "evaluation.metric=one_step"]  # fmt: skip


def trained(
    data_root: Path, run: Path, init_from: Path | None = None
) -> tuple[Any, list[dict[str, Any]], dict[str, Any]]:
    """Averaged parameters, records, and what run.json says of the stage."""
    cfg = load(CONFIGS / "tiny.yaml", [f"data.root={data_root}", *SMALL])
    training.train(cfg, "operator", run, init_from=init_from, console=Console(quiet=True))
    record = json.loads((run / "run.json").read_text())["stages"]["operator"]
    return best_weights(run, "operator").params, read_jsonl(run / "metrics.jsonl"), record


@pytest.fixture(scope="module")
def uninterrupted(data_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    path = tmp_path_factory.mktemp("runs") / "whole"
    return *trained(data_root, path), path


class FailingOnce:
    """A real train step that runs out of memory at its `at`-th call, with or without its state's buffers."""

    def __init__(self, step: Any, at: int, deleted: bool) -> None:
        self._step, self._left, self._deleted = step, at, deleted
        self.lower = step.lower

    def __call__(self, state: Any, batch: Any) -> Any:
        self._left -= 1
        if self._left == 0:
            for leaf in jax.tree.leaves(state) if self._deleted else ():
                leaf.delete()
            raise FULL
        return self._step(state, batch)


def fail_once(monkeypatch: pytest.MonkeyPatch, at: int, deleted: bool) -> list[int]:
    """Whole batches fail at their `at`-th step; the micro-batches of every step that is made, as they are made."""
    make = memory.make_train_step
    groups: list[int] = []

    def failing(*arguments: Any, micro_batches: int, **options: Any) -> Any:
        groups.append(micro_batches)
        step = make(*arguments, micro_batches=micro_batches, **options)
        return FailingOnce(step, at, deleted) if micro_batches == 1 else step

    monkeypatch.setattr(memory, "make_train_step", failing)
    return groups


@pytest.mark.parametrize(
    ("at", "deleted"), [(7, False), (7, True), (2, True)], ids=["state alive", "from a checkpoint", "from the start"]
)
def test_a_run_whose_memory_runs_out_ends_where_an_uninterrupted_one_does(
    data_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, uninterrupted: Any, at: int, deleted: bool
) -> None:
    groups = fail_once(monkeypatch, at, deleted)
    params, records, record = trained(data_root, tmp_path / "run")
    expected, expected_records, plain, _ = uninterrupted
    assert groups == [1, 2]
    jax.tree.map(lambda left, right: np.testing.assert_allclose(left, right, atol=1e-6), params, expected)
    assert [line["step"] for line in records] == [line["step"] for line in expected_records] == list(range(1, 9))
    np.testing.assert_allclose(
        [line["loss"] for line in records], [line["loss"] for line in expected_records], rtol=1e-5
    )
    assert [(entry["micro_batch"], entry["accum_steps"]) for entry in record["out_of_memory"]] == [(4, 2)]
    assert record["steps"] == plain["steps"] == 8 and "out_of_memory" not in plain
    assert plain["compile_seconds"] > 0 and plain["finished"]


def test_weights_of_another_run_can_begin_twice(
    data_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, uninterrupted: Any
) -> None:
    *_, parent = uninterrupted
    expected, *_ = trained(data_root, tmp_path / "whole", parent)
    fail_once(monkeypatch, 2, True)
    params, *_ = trained(data_root, tmp_path / "interrupted", parent)
    jax.tree.map(lambda left, right: np.testing.assert_allclose(left, right, atol=1e-5), params, expected)
