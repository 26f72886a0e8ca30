"""The bundle: every term is the public function of the decoded prediction, weighted by its key and logged by name."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from commands import CONFIGS

from ups_jax import losses
from ups_jax.config import Config, load
from ups_jax.core.errors import ConfigError
from ups_jax.data import Dataset, batch_at
from ups_jax.losses import operator_losses
from ups_jax.models import Conditions, denormalize, normalize, step
from ups_jax.training.build import build, init_state

KEY = jax.random.key(3)
SMALL = ["optimizer={name: adamw, lr: 3e-3}",
         "operator.spectral.depth=1", "operator.spectral.hidden_dim=8", "latent.dim=4", "training.batch_size=4",
         "training.input_noise=0", "training.lambda_relative=0", "training.lambda_h1=0"]  # fmt: skip
WEIGHTS = {
    "relative_mse": ("lambda_relative_mse", 0.375),
    "forward": ("lambda_forward", 0.5),
    "rollout": ("lambda_rollout", 0.25),
    "spectral": ("lambda_spectral", 0.125),
    "smoothness": ("physics_priors.lambda_smoothness", 2.0),
    "positivity": ("physics_priors.lambda_positivity", 3.0),
    "latent_norm": ("physics_priors.lambda_latent_norm", 0.75),
    "latent_diversity": ("physics_priors.lambda_latent_diversity", 1.5),
}


def configured(*overrides: str) -> Config:
    return load(CONFIGS / "tiny.yaml", [*SMALL, *overrides])


def started(cfg: Config, waves: Dataset) -> tuple[Any, Any, Any]:
    model, tx = build(cfg, waves)
    batch = batch_at(waves, cfg, "operator", 0)
    params = init_state(model, tx, batch, KEY).params
    # An untrained exit is zero and hides what the terms are of.
    rng = np.random.default_rng(3)
    moved = jax.tree.map(lambda leaf: leaf + 0.05 * rng.normal(size=leaf.shape).astype(np.float32), params)
    return model, moved, batch


def test_terms_are_the_public_functions_of_the_predictions_and_their_weighted_sum_is_the_loss(waves: Dataset) -> None:
    weighed = [f"training.{key}={weight}" for key, weight in WEIGHTS.values()]
    cfg = configured("training.rollout_horizon=2", *weighed)
    model, params, batch = started(cfg, waves)
    total, terms = jax.jit(operator_losses(model, cfg.training))(params, batch, KEY)
    assert set(terms) == set(WEIGHTS)
    expected = sum(weight * float(terms[name]) for name, (_, weight) in WEIGHTS.items())
    np.testing.assert_allclose(total, expected, rtol=1e-5)

    task = model.task
    fields = normalize(jnp.asarray(batch.fields), task.statistics)
    dt, values, mask = (jnp.asarray(values) for values in (batch.dt, batch.cond, batch.cond_mask))
    cond = Conditions(dt=dt, coefficients=values, mask=mask)
    one = step(model, params, fields[:, :1], cond)
    two = step(model, params, one[:, None], cond)
    both = jnp.concatenate([one, two])
    truth = jnp.concatenate([fields[:, 1], fields[:, 2]])
    # Priors are in deviations of the training fields and in lengths of the domain.
    deviations = denormalize(both, task.statistics) / np.float32(task.statistics.std[0])
    spacing = (1 / task.shape[0],)
    for name, value in {
        "relative_mse": losses.relative_mse(both, truth),
        "forward": losses.mse(one, truth[: len(one)]),
        "rollout": losses.mse(two, truth[len(one) :]),
        "spectral": losses.spectral_energy(both, truth, 1, reduction="none").mean(),
        "smoothness": losses.smoothness(deviations, spacing, task.periodic),
        "positivity": losses.positivity(deviations),
    }.items():
        np.testing.assert_allclose(terms[name], value, rtol=1e-4, err_msg=name)


def test_every_term_has_a_gradient_and_rows_that_do_not_count_have_none(waves: Dataset) -> None:
    weighed = [f"training.{key}={weight}" for key, weight in WEIGHTS.values()]
    cfg = configured("training.rollout_horizon=2", *weighed)
    model, params, batch = started(cfg, waves)
    bundle = operator_losses(model, cfg.training)
    names = sorted(WEIGHTS)
    mask = np.array([1, 1, 0, 1], np.float32)
    others = batch.fields.copy()
    others[2] *= 5.0

    @jax.jit
    def gradient(fields: Any, chosen: Any) -> Any:
        rows = replace(batch, mask=mask, fields=fields)

        def loss(params: Any) -> Any:
            terms = bundle(params, rows, KEY)[1]
            return chosen @ jnp.stack([terms[name] for name in names])

        return jax.grad(loss)(params)

    for name, chosen in zip(names, np.eye(len(names), dtype=np.float32), strict=True):
        first, second = (jax.tree.leaves(gradient(fields, chosen)) for fields in (batch.fields, others))
        assert any(leaf.any() for leaf in first), name
        for left, right in zip(first, second, strict=True):
            np.testing.assert_allclose(left, right, rtol=1e-4, atol=1e-6, err_msg=name)


def test_queries_score_as_many_points_and_others_at_every_key(waves: Dataset) -> None:
    cfg = configured("training.lambda_forward=1", "training.query_sampling={enabled: true, num_queries: 8}")
    model, params, batch = started(cfg, waves)
    bundle = jax.jit(operator_losses(model, cfg.training))
    values = [float(bundle(params, batch, jax.random.key(seed))[0]) for seed in range(64)]
    whole = configured("training.lambda_forward=1")
    full = float(jax.jit(operator_losses(model, whole.training))(params, batch, KEY)[0])
    assert len(set(values)) > 32
    np.testing.assert_allclose(np.mean(values), full, rtol=0.15)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("training.lambda_forward=0", "lambda_"),
        ("training.lambda_rollout=1", r"training\.rollout_horizon.*1"),
        ("training.physics_priors.lambda_divergence=1", "velocity"),
        ("training.physics_priors.lambda_boundary=1", "lambda_boundary"),
        ("training.physics_priors={lambda_smoothness: 1, smoothness_channels: [q]}", r"\bq\b.*\bu\b"),
        ("training.query_sampling.enabled=true", "num_queries"),
    ],
)
def test_what_a_task_cannot_have_is_refused_by_key(waves: Dataset, override: str, message: str) -> None:
    forward = [] if "lambda_forward" in override else ["training.lambda_forward=1"]
    cfg = configured(*forward, override)
    model, _ = build(cfg, waves)
    with pytest.raises(ConfigError, match=message):
        operator_losses(model, cfg.training)
