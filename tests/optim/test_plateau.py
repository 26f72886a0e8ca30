"""Reduce on plateau against torch's, and what it leaves alone."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ups_jax.config import OptimizerConfig, SchedulerConfig, StageConfig
from ups_jax.optim import build_optimizer
from ups_jax.optim.plateau import PlateauRule, next_plateau_state, plateau_scale, scale_by_plateau, update_plateau

PARAMS = {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}
RULE = PlateauRule(factor=0.5, patience=2, threshold=0.1, floor=0.2)


def scales(rule: PlateauRule, metrics: list[float]) -> list[float]:
    state, values = scale_by_plateau().init(PARAMS), []
    for metric in metrics:
        state = next_plateau_state(state, metric, rule)
        values.append(float(state.scale))
    return values


def test_the_scale_falls_when_the_metric_stays_and_not_below_its_floor() -> None:
    # 0.95 is better than 1 by less than the threshold, 0.5 by more; each reduction begins a new wait.
    metrics = [1.0, 0.95, 0.95, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5]
    np.testing.assert_allclose(scales(RULE, metrics), [1, 1, 0.5, 0.5, 0.5, 0.25, 0.25, 0.2, 0.2, 0.2])


def test_a_metric_that_is_not_finite_is_no_better() -> None:
    np.testing.assert_allclose(scales(RULE, [1.0, np.nan, np.inf, 0.5]), [1, 1, 0.5, 0.5])


@pytest.mark.parametrize(("patience", "threshold", "min_lr"), [(0, 1e-4, 0.0), (2, 0.05, 0.003), (3, 0.0, 0.0)])
def test_it_is_torchs(patience: int, threshold: float, min_lr: float) -> None:
    torch = pytest.importorskip("torch")
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    schedule = torch.optim.lr_scheduler.ReduceLROnPlateau(
        optimizer, factor=0.3, patience=patience, threshold=threshold, min_lr=min_lr, eps=0.0
    )
    rng = np.random.default_rng(patience)
    metrics = (1 / np.arange(1, 25) ** 0.3 + 0.05 * rng.normal(size=24)).astype(np.float32).tolist()
    expected = []
    for metric in metrics:
        schedule.step(metric)
        expected.append(optimizer.param_groups[0]["lr"])
    rule = PlateauRule(factor=0.3, patience=patience + 1, threshold=threshold, floor=min_lr / 0.1)
    np.testing.assert_allclose(0.1 * np.array(scales(rule, metrics)), expected, rtol=1e-5)
    assert len(set(expected)) > 1


def test_the_scale_multiplies_the_whole_update_its_decay_included() -> None:
    stage = StageConfig(
        grad_clip=None,
        optimizer=OptimizerConfig(name="adamw", lr=0.1, weight_decay=0.5),
        scheduler=SchedulerConfig(name="plateau", warmup=0.0),  # type: ignore[arg-type]
    )
    tx = build_optimizer(stage, 10, 1)
    state = tx.init(PARAMS)
    first, state = tx.update(PARAMS, state, PARAMS)
    before = plateau_scale(state)
    for _ in range(3):
        state = update_plateau(state, 1.0, RULE)
    reduced, _ = tx.update(PARAMS, state, PARAMS)
    assert (before, plateau_scale(state)) == (1.0, 0.5)
    # Of constant gradients every step of Adam is the same.
    jax.tree.map(lambda new, old: np.testing.assert_allclose(new, 0.5 * old, rtol=1e-5), reduced, first)


def test_a_run_without_it_has_nothing_of_it_in_its_state() -> None:
    state = build_optimizer(StageConfig(), 10, 1).init(PARAMS)
    assert optax.tree.get(state, "PlateauState") is None
    assert plateau_scale(state) == 1.0
    assert update_plateau(state, 1.0, None) is state


def test_an_evaluation_compiles_no_second_step() -> None:
    tx = build_optimizer(StageConfig(scheduler=SchedulerConfig(name="reducelronplateau")), 10, 1)
    traced = []

    def update(*arguments: Any) -> Any:
        traced.append(True)
        return tx.update(*arguments)

    step, state = jax.jit(update), jax.jit(tx.init)(PARAMS)
    for metric in (1.0, 0.5, 0.5, 0.5):
        _, state = step(PARAMS, state, PARAMS)
        state = update_plateau(state, metric, RULE)
    assert len(traced) == 1
