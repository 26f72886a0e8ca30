"""Micro-batches: the gradient is one batch's, however its rows are split, and whichever of them count."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jaxtyping import Array
from shared_programs import state, train_step

from ups_jax import batch_at
from ups_jax.config import Config, load
from ups_jax.data import Dataset, steps_per_epoch
from ups_jax.losses import StepContext
from ups_jax.models.batch import Batch, with_draws
from ups_jax.training.build import build_model
from ups_jax.training.gradients import make_gradient_fn, split_rows

SMALL = ["operator.spectral.depth=1", "operator.spectral.hidden_dim=8", "latent.dim=4", "training.batch_size=8"]
KEY = jax.random.key(3)


def losses(params: Array, batch: Batch, key: Any, context: StepContext) -> tuple[Array, dict[str, Array]]:
    """A mean over the rows that count, with noise in each row."""
    rows = batch.mask / jnp.maximum(batch.mask.sum(), 1.0)
    error = (batch.inputs @ params + batch.draws["noise"] - batch.fields) ** 2
    return jnp.sum(rows * error), {"size": jnp.sum(rows * jnp.abs(batch.fields))}


def draw(batch: Batch, key: Any) -> Batch:
    return with_draws(batch, {"noise": jax.random.normal(key, (batch.num_rows,))})


def problem(rows: int, counted: int) -> tuple[Array, Batch]:
    rng = np.random.default_rng(rows)
    mask = np.arange(rows) < counted
    batch = Batch(inputs=rng.normal(size=(rows, 3)), fields=rng.normal(size=rows), mask=mask)
    return jnp.asarray([0.3, -0.7, 0.2]), jax.tree.map(lambda values: values.astype(np.float32), batch)


@pytest.mark.parametrize(
    ("rows", "micro_batches", "counted"), [(12, 2, 12), (12, 12, 12), (10, 4, 10), (12, 3, 9), (12, 3, 5), (5, 2, 0)]
)
def test_k_micro_batches_are_one_batch_of_the_rows_that_count(rows: int, micro_batches: int, counted: int) -> None:
    params, batch = problem(rows, counted)
    noise = np.asarray(draw(batch, KEY).draws["noise"])[:counted]
    x, y = batch.inputs[:counted], batch.fields[:counted]
    residual = x @ np.asarray(params) + noise - y
    count = max(counted, 1)
    (loss, terms), gradient = make_gradient_fn(losses, micro_batches, draw)(params, batch, KEY, StepContext())
    np.testing.assert_allclose(loss, np.sum(residual**2) / count, rtol=1e-6)
    np.testing.assert_allclose(terms["size"], np.sum(np.abs(y)) / count, rtol=1e-6)
    np.testing.assert_allclose(gradient, 2 * x.T @ residual / count, rtol=2e-6, atol=1e-6)


def test_a_last_group_is_filled_with_rows_that_do_not_count() -> None:
    _, batch = problem(7, 7)
    groups = split_rows(batch, 3)
    assert groups.inputs.shape == (3, 3, 3)
    np.testing.assert_array_equal(groups.mask, [[1, 1, 1], [1, 1, 1], [1, 0, 0]])
    assert np.isfinite(groups.inputs).all()
    np.testing.assert_array_equal(groups.inputs.reshape(9, 3)[:7], batch.inputs)


def stepped(cfg: Config, dataset: Dataset, batch: Any) -> tuple[Any, Any]:
    model = build_model(cfg, dataset.task, "operator")
    # An untrained exit is zero and would hide most gradients.
    start = moved(state(model, SGD, batch, jax.random.key(cfg.seed)))
    return train_step(model, SGD, cfg)(start, batch)


SGD = optax.sgd(1.0)


@jax.jit
def moved(state: Any) -> Any:
    return jax.tree.map(lambda leaf: leaf + 0.01 if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf, state)


def same_step(left: tuple[Any, Any], right: tuple[Any, Any]) -> None:
    """Parameters and metrics of two steps agree to 1e-6; the gradient is of size 1."""
    assert left[1].keys() == right[1].keys()
    for name, value in left[1].items():
        np.testing.assert_allclose(right[1][name], value, rtol=1e-6, err_msg=name)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), left[0].params, right[0].params)


NOISY = [*SMALL, "training.input_noise=0.1"]


@pytest.fixture
def whole(waves: Dataset) -> dict[int, Any]:
    """Steps of eight rows at once, of which so many count."""
    cfg = load("configs/tiny.yaml", NOISY)
    batch = batch_at(waves, cfg, "operator", 3)
    counts = {counted: replace(batch, mask=(np.arange(8) < counted).astype(np.float32)) for counted in (8, 5)}
    return {counted: (rows, stepped(cfg, waves, rows)) for counted, rows in counts.items()}


@pytest.mark.parametrize("micro_batches", [2, 3, 5, 8])
def test_ragged_groups_with_rows_that_do_not_count_step_as_one_batch(
    waves: Dataset, whole: dict[int, Any], micro_batches: int
) -> None:
    cfg = load("configs/tiny.yaml", [*NOISY, f"stages.operator.accum_steps={micro_batches}"])
    for batch, expected in whole.values():
        same_step(stepped(cfg, waves, batch), expected)


def test_accumulated_steps_are_those_of_the_large_batch_noise_included(waves: Dataset) -> None:
    more = NOISY
    whole = load("configs/tiny.yaml", more)
    parts = load("configs/tiny.yaml", [*more, "training.batch_size=2", "stages.operator.accum_steps=4"])
    assert steps_per_epoch(waves, whole, "operator") == steps_per_epoch(waves, parts, "operator")
    batch = batch_at(waves, whole, "operator", 3)
    for name, values in batch_at(waves, parts, "operator", 3).arrays.items():
        np.testing.assert_array_equal(values, batch.arrays[name])
    same_step(stepped(whole, waves, batch), stepped(parts, waves, batch))
