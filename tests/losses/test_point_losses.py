"""Losses and metrics of sets of points: of those that are there alone, and of no grid."""

from __future__ import annotations

import json
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from point_tasks import still_task
from pydantic import TypeAdapter

from ups_jax.config import LatentConfig, OperatorConfig, QuerySamplingConfig, SpectralConfig, TrainingConfig
from ups_jax.core.errors import ConfigError
from ups_jax.losses import operator_losses
from ups_jax.losses.operator import draw_query_indices
from ups_jax.losses.terms import field_terms
from ups_jax.losses.weights import POINT_SET_TERMS, checked_weights
from ups_jax.metrics.field import all_metrics, correlation, mae
from ups_jax.models import PointSimulator
from ups_jax.models.batch import Batch
from ups_jax.models.conditioning import conditions_of

TASK = still_task()
CORE = OperatorConfig(spectral=SpectralConfig(hidden_dim=4, depth=1, modes=2))
MODEL = PointSimulator(TASK, LatentConfig(dim=4, nodes=9), CORE)
SETTINGS = TrainingConfig(
    lambda_h1=0, lambda_relative_mse=0.5, lambda_forward=0.3, lambda_rollout=0.2, rollout_horizon=2
)


def batch(seed: int = 0, point_mask: np.ndarray | None = None) -> Batch:
    rng = np.random.default_rng(seed)
    mask = np.ones((3, TASK.num_points), np.float32)
    mask[0, 6:], mask[2, :2] = 0, 0
    return Batch(
        fields=rng.normal(size=(3, 3, TASK.num_points, 1)).astype(np.float32),
        mask=np.ones(3, np.float32),
        dt=np.full(3, TASK.dt, np.float32),
        cond=rng.normal(size=(3, 1)).astype(np.float32),
        cond_mask=np.ones((3, 1), np.float32),
        coords=rng.random((3, TASK.num_points, 2)).astype(np.float32),
        point_mask=mask if point_mask is None else point_mask,
        inputs=rng.normal(size=(3, TASK.num_points, 1)).astype(np.float32),
    )


def test_points_that_are_not_there_leave_loss_and_gradient_as_they_are() -> None:
    losses = operator_losses(MODEL, SETTINGS)
    original = batch()
    there = original.point_mask > 0
    other = replace(
        original,
        fields=np.where(there[:, None, :, None], original.fields, 1e3),
        coords=np.where(there[..., None], original.coords, 0.7),
    )
    params = jax.jit(MODEL.init)(jax.random.key(0), jnp.asarray(original.fields)[:, :1], conditions_of(original))[
        "params"
    ]
    params = jax.tree.map(lambda leaf: leaf + 0.1, params)
    value_and_grad = jax.jit(jax.value_and_grad(losses, has_aux=True))
    both = [value_and_grad(params, values, jax.random.key(1)) for values in (original, other)]
    (first, terms), gradient = both[0]
    assert set(terms) == set(POINT_SET_TERMS) and all(value > 0 for value in terms.values())
    np.testing.assert_allclose(both[1][0][0], first, rtol=1e-6)
    jax.tree.map(lambda one, two: np.testing.assert_allclose(two, one, rtol=1e-4, atol=1e-6), gradient, both[1][1])
    assert max(float(np.abs(leaf).max()) for leaf in jax.tree.leaves(gradient)) > 1e-3


def test_every_row_is_scored_at_as_many_of_its_points_as_queries_ask_for() -> None:
    """With one error at all present points and another at absent ones, every draw gives the same loss."""
    sampled = replace(SETTINGS, query_sampling=QuerySamplingConfig(enabled=True, num_queries=4))
    mask = jnp.asarray(batch().point_mask)
    truth = jnp.ones((3, TASK.num_points, 1))
    error = jnp.where(mask[..., None] > 0, 0.5, 7.0)
    for key in jax.random.split(jax.random.key(0), 8):
        queries = draw_query_indices(sampled, TASK, key, mask)
        assert queries is not None
        assert np.take_along_axis(np.asarray(mask), np.asarray(queries), axis=1).all()
        terms = field_terms(("forward",), truth + error, truth, TASK, queries, mask)
        np.testing.assert_allclose(terms["forward"], 0.25, rtol=1e-6)


def test_as_many_queries_as_there_are_points_leave_the_loss_as_it_is() -> None:
    rows = batch(point_mask=np.tile(np.arange(TASK.num_points) % 2 == 0, (3, 1)).astype(np.float32))
    plain = TrainingConfig(lambda_h1=0)
    count = int(rows.point_mask[0].sum())
    sampled = replace(plain, query_sampling=QuerySamplingConfig(enabled=True, num_queries=count))
    params = jax.jit(MODEL.init)(jax.random.key(0), jnp.asarray(rows.fields)[:, :1], conditions_of(rows))["params"]
    params = jax.tree.map(lambda leaf: leaf + 0.1, params)
    one, other = (
        jax.jit(operator_losses(MODEL, settings))(params, rows, jax.random.key(3))[0] for settings in (plain, sampled)
    )
    np.testing.assert_allclose(other, one, rtol=1e-6)


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        ({"lambda_h1": 0.1}, "training.lambda_h1"),
        ({"lambda_spectral": 0.1}, "training.lambda_spectral"),
        ({"lambda_inv_dec": 0.1}, "training.lambda_inv_dec"),
        ({"physics_priors": {"enabled": True, "lambda_boundary": 1.0}}, "training.physics_priors.lambda_boundary"),
        ({"query_sampling": {"enabled": True, "num_queries": 4, "strategy": "stratified"}}, "query_sampling.strategy"),
    ],
)
def test_what_needs_a_grid_is_refused_in_a_line(settings: dict[str, object], key: str) -> None:
    config = TypeAdapter(TrainingConfig).validate_python({"lambda_h1": 0} | settings)
    with pytest.raises(ConfigError, match=key) as raised:
        checked_weights(config, TASK)
    assert "\n" not in str(raised.value)


def test_metrics_are_those_of_the_points_that_are_there() -> None:
    rng = np.random.default_rng(0)
    pred, truth = rng.normal(size=(2, 2, 4, TASK.num_points, 1)).astype(np.float32) + 1
    mask = np.ones((2, TASK.num_points), np.float32)
    mask[1, 4:] = 0
    metrics = all_metrics(np.where(mask[:, None, :, None] > 0, pred, np.nan), truth, TASK, mask)
    assert set(metrics) == {"nrmse", "rmse", "max_error", "vrmse"}
    for row, size in ((0, TASK.num_points), (1, 4)):
        p, t = pred[row, :, :size, 0].astype(np.float64), truth[row, :, :size, 0].astype(np.float64)
        rmse = np.sqrt(((p - t) ** 2).mean(1))
        expected = {
            "rmse": rmse,
            "nrmse": rmse / np.sqrt((t**2).mean(1)),
            "vrmse": rmse / t.std(1, ddof=1),
            "max_error": np.abs(p - t).max(1),
        }
        for name, values in expected.items():
            np.testing.assert_allclose(metrics[name][row], values, rtol=1e-4, err_msg=name)
        np.testing.assert_allclose(mae(pred, truth, mask)[row], np.abs(p - t).mean(1), rtol=1e-5)
        pearson = [np.corrcoef(a, b)[0, 1] for a, b in zip(p, t, strict=True)]
        np.testing.assert_allclose(correlation(pred, truth, mask)[row], pearson, atol=1e-4)


def test_a_task_of_points_goes_through_json() -> None:
    task = replace(TASK, moving=(0,), periodic=(True, False))
    assert type(task).from_dict(json.loads(json.dumps(task.to_dict()))) == task
