"""A budget of seconds: what a step is measured to take, the steps that fit, and when they are planned anew."""

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from commands import CONFIGS
from rich.console import Console
from shared_programs import SMALL_MODEL

from ups_jax import build
from ups_jax.config import Config, load
from ups_jax.core.errors import ConfigError
from ups_jax.data import Dataset
from ups_jax.trainer import stage_run
from ups_jax.trainer import train as training
from ups_jax.training.run_length import (
    evaluation_interval,
    measure_seconds,
    measure_seconds_per_step,
    plan_and_record_entries,
    steps_within,
)


@dataclass
class Clock:
    """Time that passes only where it is told to."""

    now: float = 0.0

    def __call__(self) -> float:
        return self.now


def stepping(clock: Clock, seconds: Callable[[int], float]) -> Callable[[int, float], tuple[int, None]]:
    """A step that takes `seconds` of its number, after its batch took as long as it says."""

    def step(state: int, batch: float) -> tuple[int, None]:
        clock.now += seconds(state) + batch
        return state + 1, None

    return step


def test_compilation_and_pauses_of_the_machine_do_not_count_but_batches_do() -> None:
    clock = Clock()
    step = stepping(clock, lambda n: 60.0 if n == 0 else 7.0 if n % 30 == 0 else 0.25)
    measured = measure_seconds_per_step(step, 0, itertools.repeat(0.125), clock=clock, max_seconds=1e9)
    assert measured == 0.375


def test_slow_steps_are_measured_for_a_short_time_only() -> None:
    clock = Clock()
    measured = measure_seconds_per_step(stepping(clock, lambda _: 4.0), 0, itertools.repeat(0.0), clock=clock)
    assert (measured, clock.now) == (4.0, 4.0 * (3 + 3 * 5))


def test_a_call_of_several_steps_is_shared_among_them() -> None:
    clock = Clock()
    measured = measure_seconds_per_step(
        stepping(clock, lambda _: 2.0), 0, itertools.repeat(0.0), clock=clock, steps_per_call=8, max_seconds=1e9
    )
    # Three calls that compile, and three for each of the 21 groups.
    assert (measured, clock.now) == (0.25, 2.0 * (3 + 3 * 21))


def test_a_call_is_measured_without_its_first_time() -> None:
    clock = Clock()
    durations = iter([30.0, 2.0, 9.0, 1.0])

    def call() -> None:
        clock.now += next(durations)

    assert measure_seconds(call, clock=clock) == 2.0


@pytest.mark.parametrize(("seconds", "a_step", "steps"), [(60.0, 0.25, 240), (1.0, 0.375, 2), (1.0, 5.0, 1)])
def test_the_steps_that_fit_are_whole_and_one_at_the_least(seconds: float, a_step: float, steps: int) -> None:
    assert steps_within(seconds, a_step) == steps


def test_seconds_are_planned_once_and_anew_only_when_they_change(waves: Dataset) -> None:
    def plan(seconds: str, recorded: dict, measured: float | None = None) -> tuple[int, dict]:
        def measure() -> float:
            assert measured is not None, "measured again"
            return measured

        cfg = load(CONFIGS / "tiny.yaml", [f"training.max_seconds={seconds}"])
        plan, record = plan_and_record_entries(cfg, waves, "operator", recorded, measure)
        return plan.total_steps, record

    steps, record = plan("10", {}, 0.125)
    assert steps == record["planned_steps"] == 80
    assert plan("10", record) == (80, record)
    # A plan that was made stays, whatever another measurement or another rounding would say.
    assert plan("10", record | {"planned_steps": 79})[0] == 79
    longer, record = plan("15", record)
    assert longer == 120 and plan("15", record) == (120, record)
    by_epochs, record = plan("null", record)
    assert (by_epochs, record) == (plan("null", {})[0], {})
    assert plan("10", record, 0.25)[0] == 40


def test_the_stage_s_own_seconds_win_and_length_is_no_part_of_the_digest(waves: Dataset) -> None:
    cfg = load(CONFIGS / "tiny.yaml", ["training.max_seconds=10", "stages.operator.max_seconds=5"])
    assert plan_and_record_entries(cfg, waves, "operator", {}, lambda: 0.5)[0].total_steps == 10
    assert evaluation_interval(cfg, waves, "operator") == 4 * (16 * 8 // 16)


def test_a_library_user_is_told_that_seconds_are_the_script_s(waves: Dataset) -> None:
    with pytest.raises(ConfigError, match=r"stages\.operator\.max_seconds"):
        build(load(CONFIGS / "tiny.yaml", ["training.max_seconds=10"]), waves)


@pytest.mark.parametrize("stage", ["operator", "diffusion_residual", "steady_prior"])
def test_the_plan_is_on_file_before_the_first_step(
    stage: str, saved_run: Path, data_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(stage_run, "run_loop", stopped)
    run = tmp_path / "run"
    if stage == "diffusion_residual":
        shutil.copytree(saved_run, run)
    config = "tiny_steady.yaml" if stage == "steady_prior" else "tiny.yaml"
    # A corrector is of the saved run's shapes.
    small = SMALL_MODEL if stage == "operator" else []
    cfg: Config = load(CONFIGS / config, [f"data.root={data_root}", "training.max_seconds=1", *small])
    with pytest.raises(KeyboardInterrupt):
        training.train(cfg, stage, run, console=Console(quiet=True))
    record = json.loads((run / "run.json").read_text())["stages"][stage]
    assert record["planned_steps"] == record["total_steps"] > 1
    assert record["budget"]["max_seconds"] == 1
    assert not (run / "metrics.jsonl").exists() or not (run / "metrics.jsonl").read_text()
