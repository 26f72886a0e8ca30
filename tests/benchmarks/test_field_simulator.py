"""A field simulator is trained and evaluated as the library's own: persistence at first, conservative always."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from commands import CONFIGS
from comparison.dilated import DilatedNet, dilated_neighbourhood
from comparison.field_simulator import FieldSimulator
from comparison.fno import FNO

from ups_jax.config import Config, load
from ups_jax.data import Dataset, batch_at
from ups_jax.models import Conditions
from ups_jax.models.batch import Batch
from ups_jax.models.conditioning import conditions_of
from ups_jax.models.grid import stack_neighbours
from ups_jax.optim import build_optimizer
from ups_jax.rollout.autoregressive import rollout
from ups_jax.training.build import init_state
from ups_jax.training.step import make_train_step

NETS = {
    "fno": FNO(channels=1, width=8, modes=4, periodic=(True,), depth=1, taps=5),
    "dilated": DilatedNet(channels=1, width=8, periodic=(True,), blocks=1, dilations=(1, 2)),
}


@pytest.mark.parametrize("name", NETS)
def test_untrained_it_is_persistence_and_trained_it_conserves(name: str, waves: Dataset) -> None:
    cfg = load(CONFIGS / "tiny.yaml", ["optimizer.name=adamw"])
    task = replace(waves.task, conserved=(0,))
    model = FieldSimulator(task, cfg.latent, cfg.operator, net=NETS[name])
    tx = build_optimizer(cfg.stages.operator, 4, 4)
    batches = [batch_at(waves, cfg, "operator", n) for n in range(4)]
    state = init_state(model, tx, batches[0], jax.random.key(0))
    start = jnp.asarray(batches[0].fields[:, :1])
    np.testing.assert_allclose(_rolled(model, state.params, batches[0]), jnp.repeat(start, 3, axis=1), atol=1e-6)

    train_step = make_train_step(model, tx, cfg)
    for batch in batches:
        state, _ = train_step(state, batch)
    frames = _rolled(model, state.params, batches[0])
    assert np.abs(frames - start).max() > 1e-3
    np.testing.assert_allclose(frames.mean(2), jnp.repeat(start.mean(2), 3, axis=1), atol=1e-5)


def test_the_coefficient_reaches_the_net(waves: Dataset, tiny: Config) -> None:
    class Mirror(nn.Module):
        @nn.compact
        def __call__(self, x: Any) -> Any:
            return x[..., 1:2]

    task = replace(waves.task, conserved=())
    model = FieldSimulator(task, tiny.latent, tiny.operator, net=Mirror())
    coefficient = waves.task.coefficients[0]
    values = jnp.asarray([coefficient.mean + 2 * coefficient.std, coefficient.mean, 7.0], jnp.float32)
    mask = jnp.asarray([1.0, 1.0, 0.0])
    cond = Conditions(dt=jnp.full(3, 0.05), coefficients=values[:, None], mask=mask[:, None])
    step = model.apply({}, jnp.zeros((3, 1, *waves.task.shape, 1)), cond)
    change = waves.task.statistics.delta_std[0] / waves.task.statistics.std[0]
    expected = np.broadcast_to(np.array([2.0, 0.0, 0.0])[:, None, None] * change, step.shape)
    np.testing.assert_allclose(step, expected, rtol=5e-3, atol=1e-6)


def test_dilation_one_is_the_plain_neighbourhood() -> None:
    x = jnp.asarray(np.random.default_rng(0).standard_normal((2, 6, 8, 3)))
    periodic = (True, False)
    np.testing.assert_array_equal(dilated_neighbourhood(x, 1, periodic), stack_neighbours(x, 3, periodic))
    far = dilated_neighbourhood(x[:, :, 0], 2, (True,))
    np.testing.assert_array_equal(far[..., :3], jnp.roll(x[:, :, 0], 2, axis=1))


def _rolled(model: FieldSimulator, params: Any, batch: Batch) -> jax.Array:
    fields = jnp.asarray(batch.fields[:, :1])
    return rollout(model, params, fields, conditions_of(batch), 3)
