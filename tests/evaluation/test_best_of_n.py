"""Choosing among candidates: what each way takes, what scores see, and that the ways stand beside one another."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ups_jax.config import LatentConfig, OperatorConfig, SpectralConfig, TaskConfig
from ups_jax.core.errors import ConfigError
from ups_jax.core.task import Statistics, Task
from ups_jax.evaluation.best_of_n import SELECTION_RULES, candidate_score, evaluate_best_of_n
from ups_jax.models import Conditions, Simulator
from ups_jax.models.corrector import Corrector, CorrectorWeights

TASK = Task(
    name="any", channels=("u",), axes=("x",), shape=(16,), origin=(0.0,), spacing=(1 / 16,), periodic=(True,), dt=0.1,
    conserved=(0,), statistics=Statistics(mean=(0.5,), std=(2.0,), delta_std=(0.2,)),
)  # fmt: skip
OPERATOR = OperatorConfig(spectral=SpectralConfig(hidden_dim=4, depth=1, modes=4))
KEY = jax.random.key(0)


def test_each_way_takes_what_its_name_says_for_every_row() -> None:
    drawn = jnp.arange(3.0)[:, None, None, None] * jnp.ones((3, 2, 4, 1))
    truth, scores = (
        jnp.asarray([0.1, 1.8])[:, None, None] * jnp.ones((2, 4, 1)),
        jnp.asarray([[3, 1], [1, 2], [2, 3.0]]),
    )
    taken = {name: choose(KEY, scores, drawn, truth)[:, 0, 0].tolist() for name, choose in SELECTION_RULES.items()}
    assert taken["one"] == [0, 0] and taken["mean"] == [1, 1]
    assert taken["chosen"] == [1, 0] and taken["oracle"] == [0, 2]
    seen = {
        tuple(SELECTION_RULES["random"](jax.random.key(n), scores, drawn, truth)[:, 0, 0].tolist()) for n in range(60)
    }
    assert len(seen) == 9


def test_a_score_is_of_what_is_known_of_the_task() -> None:
    name, drift = candidate_score(TaskConfig(name="mine", path="mine.hdf5"), TASK)
    assert name == "drift of conserved channels"
    before = jax.random.normal(KEY, (2, 16, 1))
    cond = Conditions(dt=jnp.full(2, 0.1), coefficients=jnp.zeros((2, 0)), mask=jnp.zeros((2, 0)))
    after = before[:, ::-1] + jnp.asarray([0.0, 0.4])[:, None, None]
    np.testing.assert_allclose(drift(before, after, cond), [0, 0.2], atol=1e-6)
    name, left = candidate_score(TaskConfig(name="ks1d"), replace(TASK, shape=(64,), spacing=(1.0,)))
    assert name == "equation residual"
    # Nothing moves where nothing is.
    still = jnp.zeros((2, 64, 1))
    np.testing.assert_allclose(left(still, still + jnp.asarray([0.0, 1.0])[:, None, None], cond), [0, 1], atol=1e-5)
    with pytest.raises(ConfigError, match=r"data\.tasks\.any\.conserved"):
        candidate_score(TaskConfig(name="mine", path="mine.hdf5"), replace(TASK, conserved=()))


def test_the_ways_are_rollouts_of_the_same_candidates_and_the_oracle_is_the_best() -> None:
    """Persistence, candidates that move every point by a number of their own, and a truth that stands still."""
    model, latent = Simulator(TASK, LatentConfig(dim=4), OPERATOR), LatentConfig(dim=4)
    cond = Conditions(dt=jnp.full(1, 0.1), coefficients=jnp.zeros((1, 0)), mask=jnp.zeros((1, 0)))
    params = jax.jit(model.init)(KEY, jnp.zeros((1, 1, 16, 1)), cond)["params"]
    first = np.random.default_rng(0).normal(size=(40, 1, 16, 1)).astype(np.float32)
    trajectories: Any = SimpleNamespace(
        fields=np.repeat(first, 4, 1), cond=np.zeros((40, 0), np.float32), cond_mask=np.zeros((40, 0), np.float32)
    )

    def moved(corrector: Any, weights: Any, key: Any, window: Any) -> Any:
        return jnp.broadcast_to(jax.random.normal(key, (len(window.fields), 1, 1)), (*window.fields.shape[:-1], 1))

    _, score = candidate_score(TaskConfig(name="mine", path="mine.hdf5"), TASK)
    variants = evaluate_best_of_n(
        model, params, Corrector(TASK, latent, OPERATOR), CorrectorWeights(params={}, scale=jnp.ones(1)), moved, score,
        trajectories, candidates=12, batch_size=16, context=1, seed=0,
    )  # fmt: skip
    assert list(variants) == [f"candidates_{name}" for name in ("one", "random", "mean", "chosen", "oracle")]
    rollouts = {name.removeprefix("candidates_"): metrics["rollout"] for name, metrics in variants.items()}
    first_error = {name: metrics["nrmse_by_time"][0] for name, metrics in rollouts.items()}
    # The truth keeps its integral, so the drift knows the best one; later it keeps what it has missed so far.
    assert first_error["chosen"] == pytest.approx(first_error["oracle"], rel=1e-5)
    assert first_error["chosen"] < 0.6 * first_error["mean"] < 0.4 * min(first_error["one"], first_error["random"])
    assert rollouts["oracle"]["rmse"] < rollouts["chosen"]["rmse"] < rollouts["random"]["rmse"]
    assert all(metrics["seconds_per_rollout_step"] > 0 for metrics in variants.values())
