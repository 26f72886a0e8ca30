"""The train step: what it reports, what it moves, and what it refuses to move."""

from __future__ import annotations

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ups_jax import build, init_state, make_train_step
from ups_jax.config import Config, load
from ups_jax.data import Dataset, batch_at
from ups_jax.losses import draw_rows, operator_losses
from ups_jax.models import Conditions, normalize
from ups_jax.models.parameter_sharing import Part
from ups_jax.optim import ema_params
from ups_jax.training.step import Update

CONFIG = "configs/tiny.yaml"
KEY = jax.random.key(5)


@pytest.fixture
def quiet(tiny: Config) -> Config:
    """The tiny configuration without noise on its inputs."""
    return load(CONFIG, [f"data.root={tiny.data.root}", "training.input_noise=0"])


def started(cfg: Config, waves: Dataset):  # type: ignore[no-untyped-def]
    model, tx = build(cfg, waves)
    batch = batch_at(waves, cfg, "operator", 0)
    return model, tx, batch, init_state(model, tx, batch, jax.random.key(cfg.seed))


def test_the_metrics_of_the_first_step_are_those_of_persistence(quiet: Config, waves: Dataset) -> None:
    model, tx, batch, state = started(quiet, waves)
    state, metrics = make_train_step(model, tx, quiet)(state, batch)
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
    assert int(state.step) == 1


@pytest.mark.parametrize("term", ["relative", "h1"])
def test_every_loss_term_has_a_gradient_for_trained_parameters(tiny: Config, waves: Dataset, term: str) -> None:
    weights = {"relative": 0.0, "h1": 0.0} | {term: 1.0}
    cfg = load(CONFIG, [f"training.lambda_{name}={weight}" for name, weight in weights.items()])
    model, _, batch, state = started(cfg, waves)
    moved = jax.tree.map(lambda leaf: leaf + 0.01, state.params)
    gradients = jax.jit(jax.grad(lambda params: operator_losses(model, cfg.training)(params, batch, KEY)[0]))(moved)
    assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(gradients["operator"]["core"]))


def test_all_parameters_have_a_gradient_in_the_default_loss(tiny: Config, waves: Dataset) -> None:
    model, _, batch, state = started(tiny, waves)
    moved = jax.tree.map(lambda leaf: leaf + 0.01, state.params)
    gradients = jax.jit(jax.grad(lambda params: operator_losses(model, tiny.training)(params, batch, KEY)[0]))(moved)
    silent = [
        jax.tree_util.keystr(path)
        for path, leaf in jax.tree_util.tree_leaves_with_path(gradients)
        if np.abs(leaf).max() == 0
    ]
    # In this data neither the time step nor the presence of the coefficient varies: their weights stay at zero.
    assert silent == ["['operator']['condition']['others']['kernel']"]


def test_training_lowers_the_loss(tiny: Config, waves: Dataset) -> None:
    model, tx, _, state = started(tiny, waves)
    step = make_train_step(model, tx, tiny)
    losses = []
    for n in range(60):
        state, metrics = step(state, batch_at(waves, tiny, "operator", n))
        losses.append(float(metrics["loss"]))
    assert np.mean(losses[-5:]) < 0.3 * losses[0]


def test_a_batch_that_is_not_finite_moves_nothing_but_the_counters(tiny: Config, waves: Dataset) -> None:
    model, tx, batch, state = started(tiny, waves)
    step = make_train_step(model, tx, tiny)
    state, _ = step(state, batch)
    before = jax.device_get((state.params, state.opt_state, state.ema))
    broken = replace(batch, fields=np.where(np.arange(32)[None, None, :, None] == 3, np.nan, batch.fields))
    for count in (1, 2):
        state, metrics = step(state, broken)
        assert (int(metrics["skipped"]), int(metrics["skipped_in_row"])) == (count, count)
    jax.tree.map(np.testing.assert_array_equal, before, jax.device_get((state.params, state.opt_state, state.ema)))
    state, metrics = step(state, batch)
    assert (int(state.step), int(metrics["skipped"]), int(metrics["skipped_in_row"])) == (4, 2, 0)


def test_rows_that_are_masked_out_do_not_count(quiet: Config, waves: Dataset) -> None:
    model, _, batch, state = started(quiet, waves)
    losses = jax.jit(lambda params, batch: operator_losses(model, quiet.training)(params, batch, KEY)[0])
    half = jax.tree.map(lambda values: values[:8], batch)
    padded = replace(batch, mask=np.repeat(np.array([1, 0], np.float32), 8))
    np.testing.assert_allclose(losses(state.params, padded), losses(state.params, half), rtol=1e-6)


def test_a_horizon_feeds_predictions_back(waves: Dataset) -> None:
    cfg = load(CONFIG, ["training.rollout_horizon=3", "training.lambda_h1=0", "training.input_noise=0"])
    model, _, batch, state = started(cfg, waves)
    moved = jax.tree.map(lambda leaf: leaf + 0.01, state.params)
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
    cfg = load(CONFIG, ["training.precision=bf16"])
    model, tx, batch, state = started(cfg, waves)
    state, metrics = make_train_step(model, tx, cfg)(state, batch)
    assert {leaf.dtype for leaf in jax.tree.leaves(state.params)} == {jnp.dtype("float32")}
    jaxpr = str(
        jax.make_jaxpr(lambda params: operator_losses(model, cfg.training)(params, batch, KEY)[0])(state.params)
    )
    assert "bf16" in jaxpr
    assert np.isfinite(metrics["loss"])


def test_input_noise_reaches_the_context_alone_and_is_new_at_every_step(tiny: Config, waves: Dataset) -> None:
    cfg = load(CONFIG, ["training.input_noise=0.05", "training.lambda_h1=0"])
    model, _, batch, state = started(cfg, waves)
    losses = jax.jit(operator_losses(model, cfg.training))
    fields = normalize(jnp.asarray(batch.fields), waves.task.statistics)
    draw = draw_rows(model, cfg.training)
    values = [float(losses(state.params, batch, jax.random.key(seed))[0]) for seed in range(8)]
    # Persistence of a noisy frame: the noise is in its error, and the target has none of it.
    for seed, value in enumerate(values):
        noisy = fields[:, 0] + 0.05 * draw(batch, jax.random.key(seed)).draws["noise"][:, 0]
        expected = np.sqrt(((noisy - fields[:, 1]) ** 2).mean((1, 2)) / (fields[:, 1] ** 2).mean((1, 2))).mean()
        np.testing.assert_allclose(value, expected, rtol=1e-5)
    assert len(set(values)) == 8
    step = make_train_step(model, optax.set_to_zero(), cfg)
    still = init_state(model, optax.set_to_zero(), batch, jax.random.key(0))
    still, first = step(still, batch)
    _, second = step(still, batch)
    assert first["loss"] != second["loss"]


def test_each_window_draws_how_strong_its_noise_is(waves: Dataset) -> None:
    cfg = load(CONFIG, ["training.input_noise=0.05"])
    model, _, batch, _ = started(cfg, waves)
    rows = replace(batch, fields=np.tile(batch.fields, (32, 1, 1, 1)))
    scales = draw_rows(model, cfg.training)(rows, KEY).draws["noise"].std((1, 2, 3))
    # Uniform from 0 to 1.
    np.testing.assert_allclose(np.quantile(scales, [0.1, 0.25, 0.5, 0.75, 0.9]), [0.1, 0.25, 0.5, 0.75, 0.9], atol=0.06)


def test_no_key_is_drawn_from_twice(waves: Dataset) -> None:
    cfg = load(CONFIG, ["operator.spectral.depth=1", "operator.spectral.hidden_dim=4", "latent.dim=4",
                        "training.batch_size=2", "training.accum_steps=2", "training.input_noise=0.1",
                        "training.pushforward=1", "training.remat=none",
                        "training.query_sampling={enabled: true, num_queries: 8}"])  # fmt: skip
    model, tx, batch, state = started(cfg, waves)
    with jax.debug_key_reuse(True):
        state, metrics = make_train_step(model, tx, cfg)(state, batch)
    assert np.isfinite(metrics["loss"])


@pytest.mark.parametrize("finite", [True, False])
def test_an_update_is_the_same_by_a_branch_and_by_a_select(tiny: Config, waves: Dataset, finite: bool) -> None:
    _, tx, _, state = started(tiny, waves)
    gradient = jax.tree.map(lambda leaf: jnp.full_like(leaf, 0.1 if finite else jnp.inf), state.params)
    by_branch, by_select = (
        jax.jit(Update(tx, 0.9, tiny.training, Part(), branch=branch).apply)(state, jnp.float32(1), gradient)
        for branch in (True, False)
    )
    jax.tree.map(
        lambda one, other: np.testing.assert_allclose(one, other, rtol=1e-6, atol=1e-9),
        (by_branch[0].params, by_branch[0].opt_state, by_branch[0].ema, by_branch[1]),
        (by_select[0].params, by_select[0].opt_state, by_select[0].ema, by_select[1]),
    )
    moved = jax.tree.map(lambda new, old: bool(np.any(new != old)), by_branch[0].params, state.params)
    assert set(jax.tree.leaves(moved)) == {finite}


@pytest.mark.parametrize("decay", [0.6, None])
def test_the_average_is_of_the_parameters_after_each_step(waves: Dataset, decay: float | None) -> None:
    # At this rate the parameters before and after a step differ by far more than the tolerance.
    large = ["optimizer={name: sgd, lr: 0.3, momentum: 0}", "scheduler={name: constant}"]
    cfg = load(CONFIG, [*large, f"stages.operator.ema_decay={'null' if decay is None else decay}"])
    model, tx, batch, state = started(cfg, waves)
    step = make_train_step(model, tx, cfg)
    average = jax.tree.map(np.zeros_like, state.params)
    weight = 0.0
    for count in range(4):
        kept = count / (count + 40) if decay is None else decay
        state, _ = step(state, batch)
        after = jax.tree.map(np.asarray, state.params)
        average = jax.tree.map(lambda mean, new: kept * mean + (1 - kept) * new, average, after)  # noqa: B023
        weight = kept * weight + 1 - kept
    expected = jax.tree.map(lambda mean: mean / weight, average)
    found = ema_params(state.params, state.ema, decay)
    jax.tree.map(lambda one, other: np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6), found, expected)
