"""The train step of a configuration on random fields of any number of points: nothing is generated or read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from ups_jax import batch_at, build, init_state, make_train_step
from ups_jax.config import load
from ups_jax.config.packaged import CONFIGS
from ups_jax.data import from_arrays


@dataclass(frozen=True, kw_only=True)
class RandomStep:
    """A jitted `train_step(state, batch)`, which uses its state up, and both of its arguments; `rows` of the batch."""

    train_step: Any
    state: Any
    batch: Any
    rows: int


def random_step(config: str, points: int, overrides: list[str]) -> RandomStep:
    """The operator's step of `configs/<config>.yaml`, on `points` along each axis."""
    fixed = ["stages.operator={steps: 1000}", "data.tasks.0.coefficients={}"]
    cfg = load(CONFIGS / f"{config}.yaml", [*fixed, *overrides])
    axes = 2 if config.endswith("2d") else 1
    fields = np.random.default_rng(0).normal(size=(10, 3, *(points,) * axes, 1)).astype(np.float32)
    fields = fields - fields.mean(tuple(range(2, 2 + axes)), keepdims=True)
    dataset = from_arrays(cfg, fields, 0.05, {}, (0.0,) * axes, (1.0 / points,) * axes)
    model, tx = build(cfg, dataset)
    batch = jax.device_put(batch_at(dataset, cfg, "operator", 0))
    state = init_state(model, tx, batch, jax.random.key(0), cfg=cfg)
    return RandomStep(
        train_step=make_train_step(model, tx, cfg), state=state, batch=batch, rows=cfg.stages.operator.batch_size
    )
