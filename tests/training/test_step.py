"""The train step: what it reports, what it moves, and what it refuses to move."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from shared_programs import SMALL_MODEL, optimizer, state, train_step

from ups_jax.config import Config, load
from ups_jax.data import Dataset, batch_at
from ups_jax.losses import operator_draws, operator_losses
from ups_jax.models import Conditions, normalize
from ups_jax.models.parameter_sharing import ParameterSubset
from ups_jax.optim import ema_params
from ups_jax.training.build import build_model
from ups_jax.training.step import StateUpdate

KEY = jax.random.key(5)


def configured(*overrides: str) -> Config:
    """The tiny configuration with a small model."""
    return load("configs/tiny.yaml", [*SMALL_MODEL, *overrides])


@pytest.fixture
def quiet() -> Config:
    """The configuration without noise on its inputs."""
    return configured("training.input_noise=0")


def started(cfg: Config, waves: Dataset):  # type: ignore[no-untyped-def]
    """Model, optimizer, first batch and initial state; the rate is constant, so that the length has no part in it."""
    model, tx = build_model(cfg, waves.task, "operator"), optimizer(cfg.stages.operator, 1, 1)
    batch = batch_at(waves, cfg, "operator", 0)
    return model, tx, batch, state(model, tx, batch, jax.random.key(cfg.seed))


@jax.jit
def perturbed(params: Any) -> Any:
    """Parameters nowhere zero: an untrained exit is, and lets nothing through."""
    return jax.tree.map(lambda leaf: leaf + 0.01, params)


def test_the_metrics_of_the_first_step_are_those_of_persistence(quiet: Config, waves: Dataset) -> None:
    model, tx, batch, start = started(quiet, waves)
    moved, metrics = train_step(model, tx, quiet)(start, batch)
    fields = np.asarray(normalize(jnp.asarray(batch.fields), waves.task.statistics), np.float64)
    error, target = fields[:, 0] - fields[:, 1], fields[:, 1]
    slope = np.roll(error, -1, 1) - error, np.roll(target, -1, 1) - target
    relative = np.sqrt((error**2).mean((1, 2)) / (target**2).mean((1, 2))).mean()
    h1 = np.sqrt((slope[0] ** 2).mean((1, 2)) / (slope[1] ** 2).mean((1, 2))).mean()
    assert set(metrics) == {"loss", "relative", "h1", "grad_norm", "skipped", "skipped_in_row"}
    np.testing.assert_allclose(metrics["relative"], relative, rtol=1e-5)
    np.testing.assert_allclose(metrics["h1"], h1, rtol=1e-4)
    weights = quiet.training
    total = weights.lambda_relative * relative + weights.lambda_h1 * h1
    np.testing.assert_allclose(metrics["loss"], total, rtol=1e-5)
    assert int(moved.step) == 1


@pytest.fixture(scope="module")
def gradients_of() -> dict[str, Any]:
    """The gradients of the default loss and of each of its terms, once they have been computed."""
    return {}


@pytest.fixture
def gradients(waves: Dataset, gradients_of: dict[str, Any]) -> dict[str, Any]:
    """`loss`, `relative` and `h1` -> its gradient for perturbed parameters, by one program."""
    if not gradients_of:
        cfg = configured()
        model, _, batch, start = started(cfg, waves)
        losses = operator_losses(model, cfg.training)

        @jax.jit
        def pulled(params: Any, weights: Any) -> Any:
            def weighted(params: Any) -> Any:
                loss, terms = losses(params, batch, KEY)
                return weights @ jnp.stack([loss, terms["relative"], terms["h1"]])

            return jax.grad(weighted)(params)

        for name, weights in zip(("loss", "relative", "h1"), np.eye(3, dtype=np.float32), strict=True):
            gradients_of[name] = pulled(perturbed(start.params), weights)
    return gradients_of


@pytest.mark.parametrize("term", ["relative", "h1"])
def test_every_loss_term_has_a_gradient_for_trained_parameters(gradients: dict[str, Any], term: str) -> None:
    assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(jax.device_get(gradients[term]["operator"]["core"])))


def test_all_parameters_have_a_gradient_in_the_default_loss(gradients: dict[str, Any]) -> None:
    silent = [
        jax.tree_util.keystr(path)
        for path, leaf in jax.tree_util.tree_leaves_with_path(jax.device_get(gradients["loss"]))
        if np.abs(leaf).max() == 0
    ]
    # In this data neither the time step nor the presence of the coefficient varies: their weights stay at zero.
    assert silent == ["['operator']['condition']['others']['kernel']"]


def test_training_lowers_the_loss(quiet: Config, waves: Dataset) -> None:
    model, tx, _, moved = started(quiet, waves)
    step = train_step(model, tx, quiet)
    losses = []
    for n in range(60):
        moved, metrics = step(moved, batch_at(waves, quiet, "operator", n))
        losses.append(float(metrics["loss"]))
    assert np.mean(losses[-5:]) < 0.3 * losses[0]


def test_a_batch_that_is_not_finite_moves_nothing_but_the_counters(quiet: Config, waves: Dataset) -> None:
    model, tx, batch, moved = started(quiet, waves)
    step = train_step(model, tx, quiet)
    moved, _ = step(moved, batch)
    before = jax.device_get((moved.params, moved.opt_state, moved.ema))
    broken = replace(batch, fields=np.where(np.arange(32)[None, None, :, None] == 3, np.nan, batch.fields))
    for count in (1, 2):
        moved, metrics = step(moved, broken)
        assert (int(metrics["skipped"]), int(metrics["skipped_in_row"])) == (count, count)
    jax.tree.map(np.testing.assert_array_equal, before, jax.device_get((moved.params, moved.opt_state, moved.ema)))
    moved, metrics = step(moved, batch)
    assert (int(moved.step), int(metrics["skipped"]), int(metrics["skipped_in_row"])) == (4, 2, 0)


def test_rows_that_are_masked_out_do_not_count(quiet: Config, waves: Dataset) -> None:
    model, _, batch, start = started(quiet, waves)
    losses = jax.jit(lambda params, batch: operator_losses(model, quiet.training)(params, batch, KEY)[0])
    half = jax.tree.map(lambda values: values[:8], batch)
    padded = replace(batch, mask=np.repeat(np.array([1, 0], np.float32), 8))
    np.testing.assert_allclose(losses(start.params, padded), losses(start.params, half), rtol=1e-6)


def test_a_horizon_feeds_predictions_back(waves: Dataset) -> None:
    cfg = configured("training.rollout_horizon=3", "training.lambda_h1=0", "training.input_noise=0")
    model, _, batch, start = started(cfg, waves)
    moved = perturbed(start.params)
    value = jax.jit(lambda params: operator_losses(model, cfg.training)(params, batch, KEY)[0])(moved)
    fields = normalize(jnp.asarray(batch.fields), waves.task.statistics)
    cond = Conditions(dt=jnp.asarray(batch.dt), coefficients=jnp.asarray(batch.cond), mask=jnp.asarray(batch.cond_mask))
    frame, errors = fields[:, :1], []
    step = jax.jit(model.apply)
    for count in range(3):
        frame = step({"params": moved}, frame, cond)[:, None]
        truth = fields[:, 1 + count]
        errors.append(np.sqrt(((frame[:, 0] - truth) ** 2).mean((1, 2)) / (truth**2).mean((1, 2))))
    np.testing.assert_allclose(value, np.mean(errors), rtol=1e-5)


def test_bfloat16_computes_in_bfloat16_and_keeps_float32_parameters(waves: Dataset) -> None:
    cfg = configured("training.precision=bf16")
    model, tx, batch, start = started(cfg, waves)
    step = train_step(model, tx, cfg)
    assert "bf16" in step.lower(start, batch).as_text()
    moved, metrics = step(start, batch)
    assert {leaf.dtype for leaf in jax.tree.leaves(moved.params)} == {jnp.dtype("float32")}
    assert np.isfinite(metrics["loss"])


def test_input_noise_reaches_the_context_alone_and_is_new_at_every_step(waves: Dataset) -> None:
    cfg = configured("training.input_noise=0.05", "training.lambda_h1=0")
    model, _, batch, start = started(cfg, waves)
    losses = jax.jit(operator_losses(model, cfg.training))
    fields = np.asarray(normalize(jnp.asarray(batch.fields), waves.task.statistics))
    draw = jax.jit(operator_draws(model, cfg.training))
    values = [float(losses(start.params, batch, jax.random.key(seed))[0]) for seed in range(8)]
    # Persistence of a noisy frame: the noise is in its error, and the target has none of it.
    for seed, value in enumerate(values):
        noisy = fields[:, 0] + 0.05 * np.asarray(draw(batch, jax.random.key(seed)).draws["noise"])[:, 0]
        expected = np.sqrt(((noisy - fields[:, 1]) ** 2).mean((1, 2)) / (fields[:, 1] ** 2).mean((1, 2))).mean()
        np.testing.assert_allclose(value, expected, rtol=1e-5)
    assert len(set(values)) == 8
    none = optax.set_to_zero()
    step = train_step(model, none, cfg)
    still = state(model, none, batch, jax.random.key(0))
    still, first = step(still, batch)
    _, second = step(still, batch)
    assert first["loss"] != second["loss"]


def test_each_window_draws_how_strong_its_noise_is(waves: Dataset) -> None:
    cfg = configured("training.input_noise=0.05")
    model, _, batch, _ = started(cfg, waves)
    rows = replace(batch, fields=np.tile(batch.fields, (32, 1, 1, 1)))
    noise = jax.jit(operator_draws(model, cfg.training))(rows, KEY).draws["noise"]
    scales = np.asarray(noise).std((1, 2, 3))
    # Uniform from 0 to 1.
    np.testing.assert_allclose(np.quantile(scales, [0.1, 0.25, 0.5, 0.75, 0.9]), [0.1, 0.25, 0.5, 0.75, 0.9], atol=0.06)


def test_no_key_is_drawn_from_twice(waves: Dataset) -> None:
    cfg = configured(
        "training.batch_size=2",
        "training.accum_steps=2",
        "training.input_noise=0.1",
        "training.pushforward=1",
        "training.remat=none",
        "training.query_sampling={enabled: true, num_queries: 8}",
    )
    model, tx, batch, start = started(cfg, waves)
    with jax.debug_key_reuse(True):
        _, metrics = train_step(model, tx, cfg)(start, batch)
    assert np.isfinite(metrics["loss"])


@pytest.fixture(scope="module")
def ways() -> dict[bool, Any]:
    """The compiled update by a branch and by a select, once they have been made."""
    return {}


@pytest.mark.parametrize("finite", [True, False])
def test_an_update_is_the_same_by_a_branch_and_by_a_select(
    quiet: Config, waves: Dataset, ways: dict[bool, Any], finite: bool
) -> None:
    _, tx, _, start = started(quiet, waves)
    gradient = jax.tree.map(lambda leaf: np.full_like(leaf, 0.1 if finite else np.inf), start.params)
    for branch in (True, False):
        if branch not in ways:
            ways[branch] = jax.jit(StateUpdate(tx, 0.9, quiet.training, ParameterSubset(), branch=branch).apply)
    by_branch, by_select = (ways[branch](start, np.float32(1), gradient) for branch in (True, False))
    jax.tree.map(
        lambda one, other: np.testing.assert_allclose(one, other, rtol=1e-6, atol=1e-9),
        (by_branch[0].params, by_branch[0].opt_state, by_branch[0].ema, by_branch[1]),
        (by_select[0].params, by_select[0].opt_state, by_select[0].ema, by_select[1]),
    )
    changed = jax.tree.map(lambda new, old: bool(np.any(np.asarray(new) != old)), by_branch[0].params, start.params)
    assert set(jax.tree.leaves(changed)) == {finite}


@pytest.mark.parametrize("decay", [0.6, None])
def test_the_average_is_of_the_parameters_after_each_step(waves: Dataset, decay: float | None) -> None:
    # At this rate the parameters before and after a step differ by far more than the tolerance.
    large = "optimizer={name: sgd, lr: 0.3, momentum: 0}"
    cfg = configured(large, f"stages.operator.ema_decay={'null' if decay is None else decay}")
    model, tx, batch, moved = started(cfg, waves)
    step = train_step(model, tx, cfg)
    average = jax.tree.map(np.zeros_like, jax.device_get(moved.params))
    weight = 0.0
    for count in range(4):
        kept = count / (count + 40) if decay is None else decay
        moved, _ = step(moved, batch)
        after = jax.device_get(moved.params)
        average = jax.tree.map(lambda mean, new: kept * mean + (1 - kept) * new, average, after)  # noqa: B023
        weight = kept * weight + 1 - kept
    expected = jax.tree.map(lambda mean: mean / weight, average)
    averaged = ema_params(moved.params, moved.ema, decay)
    jax.tree.map(lambda one, other: np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6), averaged, expected)
