"""Every optimizer and every schedule trains the tiny configuration to less than the error of persistence."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import optax
import pytest
from commands import CONFIGS

from ups_jax import simulate
from ups_jax.config import Config, StageConfig, load
from ups_jax.data import batch_at, open_dataset
from ups_jax.losses import operator_losses
from ups_jax.models.batch import first_row
from ups_jax.optim import build_optimizer
from ups_jax.optim.plateau import plateau_scale, update_plateau
from ups_jax.optim.schedules import build_plateau_rule
from ups_jax.training.build import build_model
from ups_jax.training.stages import stage_spec

STEPS, EPOCH, EVERY = 40, 16, 8
Trained = Callable[[StageConfig], tuple[float, float]]


@pytest.fixture(scope="module")
def tiny_task(data_root: Any) -> tuple[float, Trained]:
    """The one-step error of persistence, and a function that trains: the model is compiled once for all optimizers."""
    cfg: Config = load(CONFIGS / "tiny.yaml", [f"data.root={data_root}"])
    simulate.generate_missing(cfg)
    dataset = open_dataset(cfg)
    model = build_model(cfg, dataset.task, "operator")
    spec = stage_spec("operator")
    batches = [batch_at(dataset, cfg, "operator", n) for n in range(STEPS)]
    start = spec.init(model, jax.random.key(0), first_row(batches[0]))
    gradient = jax.jit(jax.grad(operator_losses(model, cfg.training), has_aux=True))
    validate = spec.validate(model, dataset, cfg, {})

    def train(stage: StageConfig) -> tuple[float, float]:
        tx = build_optimizer(stage, STEPS, EPOCH)
        rule = build_plateau_rule(stage, STEPS, EPOCH, EVERY)

        @jax.jit
        def move(gradients: Any, state: Any, params: Any) -> Any:
            updates, state = tx.update(gradients, state, params)
            return optax.apply_updates(params, updates), state

        params, state = start, tx.init(start)
        for n, batch in enumerate(batches, start=1):
            gradients, _ = gradient(params, batch, jax.random.key(n))
            params, state = move(gradients, state, params)
            if n % EVERY == 0:
                error = validate(params)["one_step"]
                state = update_plateau(state, error, rule)
        return error, plateau_scale(state)

    # An untrained model is persistence.
    return validate(start)["one_step"], train


@pytest.mark.slow
@pytest.mark.parametrize(
    "override",
    [*(f"optimizer.name={name}" for name in ("adam", "adamw", "sgd", "muon_hybrid")), "optimizer.muon_scale=rms",
     *(f"scheduler.name={name}" for name in ("constant", "steplr", "cosineannealinglr"))],
)  # fmt: skip
def test_it_gets_below_persistence(tiny_task: tuple[float, Trained], override: str) -> None:
    persistence, train = tiny_task
    error, _ = train(load(CONFIGS / "tiny.yaml", [override]).stages.operator)
    assert error < 0.75 * persistence


@pytest.mark.slow
def test_a_plateau_reduces_and_gets_below_persistence(tiny_task: tuple[float, Trained]) -> None:
    persistence, train = tiny_task
    # No evaluation makes the error a tenth of the one before: every one after the first reduces.
    scheduler = "scheduler={name: reducelronplateau, patience_steps: 0, threshold: 0.9, factor: 0.5}"
    error, scale = train(load(CONFIGS / "tiny.yaml", [scheduler]).stages.operator)
    assert error < 0.75 * persistence
    assert scale == 0.5**4
