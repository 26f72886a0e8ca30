"""Schedules against their closed forms and against torch, and lengths in epochs against the same in steps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
import pytest
from commands import CONFIGS

from ups_jax.config import OptimizerConfig, SchedulerConfig, StageConfig, from_dict, load
from ups_jax.core.errors import ConfigError
from ups_jax.data import Dataset
from ups_jax.optim import build_optimizer, build_schedule
from ups_jax.optim.schedules import build_plateau_rule, check_schedule, host_schedule, patience_evaluations
from ups_jax.training.run_length import make_plan
from ups_jax.training.stages import enabled_stages


def rates(schedule: optax.Schedule, steps: Any) -> list[float]:
    return [float(schedule(step)) for step in steps]


def test_cosine_rises_over_the_warm_up_and_ends_at_its_floor() -> None:
    schedule = build_schedule(SchedulerConfig(name="cosineannealinglr", warmup=0.1, eta_min=1e-5), 1e-2, 100, 10)
    np.testing.assert_allclose(rates(schedule, range(10)), 1e-3 * np.arange(1, 11), rtol=1e-5)
    half = 10 + 45
    np.testing.assert_allclose(schedule(half), 1e-5 + (1e-2 - 1e-5) / 2, rtol=1e-5)
    np.testing.assert_allclose(schedule(100), 1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", ["constant", "steplr", "cosineannealinglr", "reducelronplateau"])
def test_rates_are_told_as_they_act_without_asking_for_each(name: str) -> None:
    schedule, asked = build_schedule(SchedulerConfig(name=name, warmup=0.1), 1e-2, 40, 10), []  # type: ignore[arg-type]

    def counted(steps: Any) -> Any:
        asked.append(steps)
        return schedule(steps)

    with jax.disable_jit():
        lookup = host_schedule(counted, block_size=8)
        actual = [lookup(step) for step in range(45)]
    np.testing.assert_allclose(actual, rates(schedule, range(45)), rtol=1e-5)
    assert len(asked) == 6, "once for every eight steps"


def test_constant_stays_after_the_warm_up_and_no_warm_up_starts_at_full_rate() -> None:
    schedule = build_schedule(SchedulerConfig(name="constant", warmup=0.5), 1.0, 10, 1)
    np.testing.assert_allclose(rates(schedule, (0, 4, 5, 9, 50)), [0.2, 1, 1, 1, 1], rtol=1e-6)
    assert build_schedule(SchedulerConfig(name="constant", warmup=0.0), 1.0, 10, 1)(0) == 1.0


@pytest.mark.parametrize("name", ["constant", "steplr", "cosineannealinglr", "reducelronplateau"])
def test_every_schedule_warms_up_from_its_first_step_on(name: Any) -> None:
    schedule = build_schedule(SchedulerConfig(name=name, warmup=0.2, step_size_steps=50), 1.0, 20, 1)
    np.testing.assert_allclose(rates(schedule, range(4)), [0.25, 0.5, 0.75, 1.0], rtol=1e-6)
    assert float(schedule(5)) <= 1.0


def test_the_cosine_reaches_its_floor_at_t_max_and_stays_there() -> None:
    scheduler = SchedulerConfig(name="cosineannealinglr", warmup=0.0, t_max=3, eta_min=1e-4)
    schedule = build_schedule(scheduler, 1e-2, 100, 10)
    steps = np.arange(31)
    expected = 1e-4 + (1e-2 - 1e-4) * (1 + np.cos(np.pi * steps / 30)) / 2
    np.testing.assert_allclose(rates(schedule, steps), expected, rtol=1e-4)
    np.testing.assert_allclose(rates(schedule, (31, 45, 60, 99)), 1e-4, rtol=1e-4)


def test_t_max_counts_from_the_start_of_the_run_whatever_the_warm_up() -> None:
    schedule = build_schedule(SchedulerConfig(name="cosineannealinglr", warmup=0.1, t_max=3), 1.0, 100, 10)
    # Half way between the end of the warm-up, step 10, and t_max, step 30.
    np.testing.assert_allclose(rates(schedule, (10, 20, 30)), [1.0, 0.5, 0.0], atol=1e-6)


def test_steps_fall_by_gamma_every_step_size_of_the_run() -> None:
    schedule = build_schedule(SchedulerConfig(name="steplr", warmup=0.0, step_size=2, gamma=0.5), 0.8, 100, 10)
    np.testing.assert_allclose(rates(schedule, (0, 19, 20, 39, 40, 99)), [0.8, 0.8, 0.4, 0.4, 0.2, 0.05], rtol=1e-6)
    warmed = build_schedule(SchedulerConfig(name="steplr", warmup=0.1, step_size=2, gamma=0.5), 0.8, 100, 10)
    np.testing.assert_allclose(rates(warmed, (10, 19, 20)), [0.8, 0.8, 0.4], rtol=1e-6)


def test_without_a_length_steps_come_at_the_thirds_of_the_run() -> None:
    schedule = build_schedule(SchedulerConfig(name="steplr", warmup=0.0), 1.0, 90, 7)
    np.testing.assert_allclose(rates(schedule, (29, 30, 59, 60, 89)), [1, 0.1, 0.1, 0.01, 0.01], rtol=1e-5)


@pytest.mark.parametrize(
    ("epochs", "steps"),
    [({"name": "cosineannealinglr", "t_max": 2.5}, {"t_max": None, "t_max_steps": 20}),
     ({"name": "steplr", "step_size": 1.5}, {"step_size": None, "step_size_steps": 12})],
)  # fmt: skip
def test_epochs_are_so_many_steps(epochs: dict[str, Any], steps: dict[str, Any]) -> None:
    first, second = SchedulerConfig(**epochs), SchedulerConfig(**epochs | steps)
    pair = [rates(build_schedule(config, 0.1, 40, 8), range(0, 44, 3)) for config in (first, second)]
    assert pair[0] == pair[1]
    assert len(set(pair[0])) > 3


def test_a_plateaus_patience_is_in_epochs_or_steps_and_a_tenth_of_the_run_by_default() -> None:
    def bad(**lengths: Any) -> int:
        stage = StageConfig(scheduler=SchedulerConfig(name="reducelronplateau", **lengths))
        rule = build_plateau_rule(stage, 400, 10, 20)
        assert rule is not None
        return rule.patience

    # Evaluated every second epoch: five epochs are more than two evaluations, four are two and not more.
    assert [bad(patience=epochs) for epochs in (0, 1, 4, 5, 6)] == [1, 1, 3, 3, 4]
    assert bad(patience_steps=50) == bad(patience=5) == 3
    assert bad() == bad(patience_steps=40)
    assert build_plateau_rule(StageConfig(), 400, 10, 20) is None


def test_a_stage_waits_for_more_than_its_patience() -> None:
    def evaluations(**patience: Any) -> int | None:
        return patience_evaluations(StageConfig(**patience), 16, 4)

    # Four evaluations an epoch.
    assert [evaluations(patience=epochs) for epochs in (0, 0.5, 1, 1.1)] == [1, 3, 5, 5]
    assert [evaluations(patience_steps=steps) for steps in (0, 3, 4, 16)] == [1, 1, 2, 5]
    assert evaluations() is None


@pytest.mark.parametrize(
    ("scheduler", "theirs"),
    [
        ({"name": "cosineannealinglr", "t_max": 25, "eta_min": 1e-5},
         ("CosineAnnealingLR", {"T_max": 25, "eta_min": 1e-5})),
        ({"name": "steplr", "step_size": 4, "gamma": 0.3}, ("StepLR", {"step_size": 4, "gamma": 0.3})),
    ],
)  # fmt: skip
def test_at_the_start_of_every_epoch_the_rate_is_torchs(
    scheduler: dict[str, Any], theirs: tuple[str, dict[str, Any]]
) -> None:
    torch = pytest.importorskip("torch")
    ours = build_schedule(SchedulerConfig(**scheduler, warmup=0.0), 1e-2, 25 * 6, 6)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1e-2)
    schedule = getattr(torch.optim.lr_scheduler, theirs[0])(optimizer, **theirs[1])
    expected = []
    for _ in range(26):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    np.testing.assert_allclose(rates(ours, range(0, 26 * 6, 6)), expected, rtol=1e-4, atol=1e-9)


def test_a_cosine_that_ends_within_its_warm_up_is_refused_by_name(waves: Dataset) -> None:
    def plan(*overrides: str) -> None:
        make_plan(load(CONFIGS / "tiny.yaml", ["stages.operator.steps=100", *overrides]), waves, "operator")

    plan("scheduler.t_max_steps=6")
    with pytest.raises(ConfigError, match=r"stages\.operator\.scheduler.*5"):
        plan("scheduler.t_max_steps=5")
    plan("scheduler.t_max_steps=5", "scheduler.name=constant")


# The original's own example of stages, as its description prints it.
EXAMPLE = """\
stages:
  operator:
    epochs: 25
    optimizer:
      name: adam
      lr: 1e-3
    scheduler:
      name: cosineannealinglr
      t_max: 25
    patience: 5
  diffusion_residual:
    epochs: 10
  consistency_distill:
    epochs: 5
  steady_prior:
    epochs: 0  # Disabled by default
"""
REST = """\
data: {tasks: [{name: burgers1d, periodic: [x]}]}
optimizer: {weight_decay: 0.03, betas: [0.8, 0.9]}
"""


def test_the_originals_example_loads_as_it_stands_and_gives_its_curve(tmp_path: Path) -> None:
    (tmp_path / "example.yaml").write_text(EXAMPLE + REST)
    cfg = load(tmp_path / "example.yaml")
    assert [cfg.stages.diffusion_residual.epochs, cfg.stages.consistency_distill.epochs] == [10, 5]
    assert enabled_stages(cfg) == ("operator", "diffusion_residual", "consistency_distill")
    stage = cfg.stages.operator
    assert (stage.epochs, stage.patience, stage.optimizer.name, stage.optimizer.lr) == (25, 5, "adam", 1e-3)
    # Sections of a stage are merged over the general ones, not put in their place.
    assert (stage.optimizer.weight_decay, stage.optimizer.betas) == (0.03, (0.8, 0.9))
    assert cfg.stages.steady_prior.optimizer == replace(OptimizerConfig(), weight_decay=0.03, betas=(0.8, 0.9))
    curve = build_schedule(stage.scheduler, stage.optimizer.lr, 25 * 8, 8)
    epochs = np.arange(26)
    expected = 1e-3 * (1 + np.cos(np.pi * epochs / 25)) / 2
    np.testing.assert_allclose(rates(curve, 8 * epochs), expected, rtol=1e-4, atol=1e-9)


def test_a_named_curve_has_a_warm_up_only_if_it_says_so() -> None:
    def warmups(**sections: Any) -> tuple[float, float]:
        cfg = from_dict({"data": {"tasks": [{"name": "a"}]}, **sections})
        return cfg.stages.operator.scheduler.warmup, cfg.stages.steady_prior.scheduler.warmup

    named, other = {"name": "steplr"}, {"operator": {"scheduler": {"name": "constant"}}}
    assert warmups() == warmups(scheduler={"eta_min": 1e-6}) == (0.05, 0.05)
    assert warmups(scheduler=named) == (0.0, 0.0)
    assert warmups(stages=other) == (0.0, 0.05)
    assert warmups(scheduler={"warmup": 0.1}, stages=other) == (0.1, 0.1)


def test_the_chain_follows_the_schedule() -> None:
    stage = StageConfig(
        grad_clip=None,
        optimizer=OptimizerConfig(name="sgd", lr=0.5, momentum=0.0),
        scheduler=SchedulerConfig(name="steplr", warmup=0.0, step_size=1),
    )
    tx = build_optimizer(stage, 6, 2)
    params = {"kernel": np.ones((1, 1), np.float32)}
    state, moved = tx.init(params), []
    step: Callable[..., Any] = tx.update
    for _ in range(6):
        update, state = step(params, state, params)
        moved.append(float(update["kernel"][0, 0]))
    np.testing.assert_allclose(moved, [-0.5, -0.5, -0.05, -0.05, -0.005, -0.005], rtol=1e-5)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (SchedulerConfig(eta_min=1e-2), r"^here\.eta_min.*0\.01.*0\.001"),
        (SchedulerConfig(name="reducelronplateau", min_lr=1.0), r"^here\.min_lr.*1"),
    ],
)
def test_a_curve_that_cannot_fall_is_refused(config: SchedulerConfig, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_schedule(config, 1e-3, 100, 10, "here")
    check_schedule(SchedulerConfig(eta_min=1e-4), 1e-3, 100, 10, "here")
