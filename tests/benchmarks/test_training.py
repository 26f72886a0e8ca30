"""Peers are trained on what the library trains on: the same steps to the bit, the same coefficient channels."""

from __future__ import annotations

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from comparison import training
from comparison.field_simulator import constant_channels
from comparison.models import MODELS
from comparison.row import Row

from ups_jax.core.task import Coefficient
from ups_jax.data import Dataset, batch_at
from ups_jax.models import Conditions
from ups_jax.optim import build_optimizer, ema_params
from ups_jax.training.build import build_model, init_state
from ups_jax.training.step import make_train_step

STEPS = 3


def test_the_same_number_of_steps_gives_the_bits_of_the_librarys_own(waves: Dataset) -> None:
    facts = ("data.tasks.0.symmetries=[]", "data.tasks.0.coefficients={beta: linear}")
    small = (
        *facts,
        "operator.spectral.depth=1",
        "operator.spectral.hidden_dim=8",
        "latent.dim=4",
        "optimizer.name=adamw",
    )
    row = Row(task="tiny", model="ours", seed=1, budget=1.0, overrides=small, steps=STEPS)
    cfg = row.config()
    trained = training.train(row, MODELS["ours"], waves)

    model = build_model(cfg, waves.task, "operator")
    tx = build_optimizer(cfg.stages.operator, STEPS, STEPS)
    train_step = make_train_step(model, tx, cfg, stage="operator")
    batches = [batch_at(waves, cfg, "operator", n) for n in range(STEPS)]
    state = init_state(model, tx, batches[0], jax.random.key(1), stage="operator")
    for batch in batches:
        state, _ = train_step(state, batch)
    expected = ema_params(state.params, state.ema, cfg.stages.operator.ema_decay)
    assert trained.steps == STEPS
    jax.tree.map(np.testing.assert_array_equal, trained.run.weights, expected)


@pytest.mark.filterwarnings("ignore")
def test_the_packages_fno_sees_the_coefficients_that_the_other_peers_see() -> None:
    torch = pytest.importorskip("torch")
    pytest.importorskip("neuralop.models")
    from comparison.torch_fno import with_coefficients

    coefficients = (
        Coefficient(name="nu", scale="log10", mean=-2.0, std=0.5),
        Coefficient(name="beta", scale="linear", mean=0.4, std=0.3),
    )
    task = SimpleNamespace(coefficients=coefficients)
    cond = np.array([[0.01, 0.4], [0.1, 1.0], [0.003, 0.1]], np.float32)
    mask = np.array([[1, 1], [1, 0], [0, 1]], np.float32)
    frame = np.random.default_rng(0).normal(size=(3, 5, 4, 1)).astype(np.float32)
    conditions = Conditions(dt=jnp.full(3, 0.1), coefficients=jnp.asarray(cond), mask=jnp.asarray(mask))
    channels = constant_channels(conditions, task, jnp.asarray(frame))
    theirs = with_coefficients(torch.from_numpy(frame).movedim(-1, 1), cond, mask, task)
    assert np.ptp(channels[..., 0]) > 1
    np.testing.assert_allclose(theirs[:, 1:].movedim(1, -1).numpy(), channels, atol=1e-5)
    np.testing.assert_array_equal(theirs[:, :1].movedim(1, -1).numpy(), frame)
