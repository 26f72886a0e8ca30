"""Several steps by one call are the steps one by one, to the bit, however they are shared out."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from commands import CONFIGS
from rich.console import Console
from shared_programs import SMALL_MODEL, optimizer, sharing, state, train_step

from ups_jax import batch_at, simulate
from ups_jax.config import Config, load
from ups_jax.core.errors import DivergedError
from ups_jax.data import open_mixture, steps_per_epoch
from ups_jax.distributed.mesh import make_mesh
from ups_jax.tracking import read_jsonl
from ups_jax.trainer import loop
from ups_jax.trainer.loop import CallPace
from ups_jax.trainer.train import train
from ups_jax.training import multi_step
from ups_jax.training.build import build_model
from ups_jax.training.multi_step import stack_batches, steps_per_call, unstack_metrics

shared_programs = pytest.fixture(scope="module", autouse=True)(sharing)


@pytest.fixture
def cfg(data_root: Path) -> Config:
    cfg = load(CONFIGS / "tiny.yaml", [f"data.root={data_root}", *SMALL_MODEL])
    simulate.generate_missing(cfg)
    return cfg


def every_step_told(cfg: Config, *overrides: str) -> Config:
    """The tiny configuration on the same data, with a record of every step and no evaluation at the end."""
    settings = [f"data.root={cfg.data.root}", "logging.every_steps=1", "evaluation.val_trajectories=1"]
    return load(CONFIGS / "tiny.yaml", [*SMALL_MODEL, *settings, *overrides])


def test_the_steps_are_the_same_however_they_are_shared_out_among_calls(cfg: Config) -> None:
    data = open_mixture(cfg)
    dataset = data.datasets[0]
    model, tx = build_model(cfg, dataset.task, "operator"), optimizer(cfg.stages.operator, 1, 1)
    # The step of the trainings below.
    step = train_step(model, tx, cfg, steps_per_epoch=steps_per_epoch(data, cfg, "operator"), steps_per_call=8)
    batches = [batch_at(data, cfg, "operator", number) for number in range(6)]

    def trained(*counts: int) -> tuple[Any, list[float]]:
        moved, losses, left = state(model, tx, batches[0], jax.random.key(0), cfg=cfg), list[float](), [*batches]
        for count in counts:
            moved, metrics = step(moved, stack_batches([left.pop(0) for _ in range(count)], 8))
            losses += [values["loss"] for values in unstack_metrics(metrics, count)]
        return moved, losses

    last, losses = trained(1, 1, 1, 1, 1, 1)
    assert int(last.step) == 6 and len(set(losses)) == 6
    for counts in ((4, 2), (1, 3, 2), (3, 3)):
        other, others = trained(*counts)
        assert others == losses
        assert all(
            np.array_equal(one, two)
            for one, two in zip(jax.tree.leaves(last.params), jax.tree.leaves(other.params), strict=True)
        )
    # One call, one step: the same numbers to round-off, by another program.
    single = train_step(model, tx, cfg)
    _, metrics = single(state(model, tx, batches[0], jax.random.key(0), cfg=cfg), batches[0])
    np.testing.assert_allclose(float(metrics["loss"]), losses[0], rtol=1e-5)


def test_every_step_of_a_call_is_on_file_and_a_run_of_single_steps_has_the_same_curve(
    cfg: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = every_step_told(cfg, "stages.operator.steps=22", "training.eval_every=0.625")
    counts: list[int] = []
    begin = CallPace.begin_call

    def counted(self: CallPace, at_most: int) -> int:
        counts.append(begin(self, at_most))
        return counts[-1]

    monkeypatch.setattr(CallPace, "begin_call", counted)
    train(small, "operator", tmp_path / "several", console=Console(quiet=True))
    # An evaluation every ten steps and the end, which no call goes over.
    assert sum(counts) == 22 and max(counts) > 1
    assert {10, 20} <= set(np.cumsum(counts).tolist())
    monkeypatch.setattr(CallPace, "begin_call", lambda self, steps_left: 1)
    train(small, "operator", tmp_path / "single", console=Console(quiet=True))
    curves = [
        [(record["step"], record["loss"], record["lr"]) for record in read_jsonl(tmp_path / name / "metrics.jsonl")]
        for name in ("several", "single")
    ]
    assert curves[0] == curves[1] and [step for step, *_ in curves[0]] == [*range(1, 23)]


def test_a_run_that_diverges_within_a_call_ends_as_one_of_single_steps(
    cfg: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    diverging = every_step_told(cfg, "optimizer.lr=1e30", "training.max_skips=3", "stages.operator.grad_clip=null")
    said, curves = [], []
    for most in (1, 4):
        monkeypatch.setattr(CallPace, "begin_call", lambda self, steps_left, most=most: min(most, steps_left))
        with pytest.raises(DivergedError) as error:
            train(diverging, "operator", tmp_path / str(most), console=Console(quiet=True))
        said.append(str(error.value))
        records = read_jsonl(tmp_path / str(most) / "metrics.jsonl")
        curves.append([(record["step"], record["skipped_in_row"]) for record in records if "loss" in record])
    assert said[0] == said[1] and re.search(r"3 .*step \d", said[0])
    assert curves[0] == curves[1] and curves[0][-1][1] == 2


def test_calls_are_as_long_as_their_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(loop.time, "monotonic", lambda: now[0])
    calls = CallPace(8, seconds=1.0)

    before: list[int] = []

    def call(seconds_each: float, left: int = 100) -> int:
        """A call begins, and the one before it is waited for."""
        before.append(calls.begin_call(left))
        now[0] += seconds_each * before[-2] if len(before) > 1 else 0.0
        return before[-1]

    # The first call is waited for in the second, which the third knows of.
    assert [call(0.01) for _ in range(4)] == [1, 1, 8, 8]
    assert [call(0.3) for _ in range(4)] == [8, 3, 3, 3]
    assert [call(5.0) for _ in range(3)] == [3, 1, 1]
    assert call(0.01) == 1 and call(0.01, left=5) == 5
    # What came between says nothing of a call, and neither does the dispatch of the first one after it.
    calls.discard_timing()
    before.clear()
    now[0] += 60
    assert [call(5.0) for _ in range(4)] == [8, 8, 1, 1]


def test_who_makes_several_steps_at_once(cfg: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    data, mesh = open_mixture(cfg), make_mesh(cfg.parallel)
    first = batch_at(data, cfg, "operator", 0)
    assert steps_per_call(cfg, data, first, mesh) == 8
    by_hand = load(CONFIGS / "tiny.yaml", [f"data.root={cfg.data.root}", "training.compile=false"])
    assert steps_per_call(by_hand, data, first, mesh) == 1
    size = first.nbytes
    monkeypatch.setattr(multi_step, "_MAX_BYTES", 3 * size)
    assert steps_per_call(cfg, data, first, mesh) == 3
    monkeypatch.setattr(multi_step, "_MAX_BYTES", size - 1)
    assert steps_per_call(cfg, data, first, mesh) == 1
