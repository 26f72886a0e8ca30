"""The training target of a corrector: the predictor's error on states of its own rollout, by hand; no gradient."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ups_jax.config import DiffusionConfig, LatentConfig, OperatorConfig, SpectralConfig
from ups_jax.core.task import Input, Statistics, Task
from ups_jax.losses import diffusion as residuals
from ups_jax.losses.diffusion import predictor_error_function, with_state_draws
from ups_jax.models import Conditions, Simulator, SteadySimulator
from ups_jax.models.batch import Batch, with_draws

POINTS, CONTEXT, ROWS = 8, 2, 6
MEAN, STD, DELTA = 0.5, 2.0, 0.25
# The frame after (u, v), with u the older one, is A v + B u.
PARAMS = {"a": jnp.asarray(0.9), "b": jnp.asarray(-0.3)}
CORE = OperatorConfig(spectral=SpectralConfig(hidden_dim=8, depth=1, modes=3))
LATENT = LatentConfig(dim=4, patch_size=2)
KEY = jax.random.key(0)


def task(**changes: Any) -> Task:
    defaults: dict[str, Any] = dict(
        name="toy",
        channels=("u",),
        axes=("x",),
        shape=(POINTS,),
        origin=(0.0,),
        spacing=(1 / POINTS,),
        periodic=(True,),
        dt=1.0,
        statistics=Statistics(mean=(MEAN,), std=(STD,), delta_std=(DELTA,)),
    )
    return Task(**defaults | changes)


BASE = Simulator(task(), LATENT, CORE, CONTEXT)
SOLVER = SteadySimulator(
    task(kind="steady", inputs=(Input(name="nu", mean=1.0, std=4.0),)), LATENT, CORE, jnp.float32, False, "highest"
)


def batch(frames: int, **more: Any) -> Batch:
    rng = np.random.default_rng(0)
    fixed = {"dt": np.ones(ROWS, np.float32), "cond": np.zeros((ROWS, 0)), "cond_mask": np.zeros((ROWS, 0))}
    return Batch(fields=rng.normal(size=(ROWS, frames, POINTS, 1)).astype(np.float32), **fixed, **more)


@pytest.fixture
def linear_predictors(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replace the predictors by linear functions that can be computed by hand."""

    def step(model: Any, params: Mapping[str, Any], window: Any, cond: Conditions) -> Any:
        return params["a"] * window[:, -1] + params["b"] * window[:, -2]

    monkeypatch.setattr(residuals, "step", step)
    monkeypatch.setattr(residuals, "steady_field", lambda model, params, inputs, cond: params["a"] * inputs + 0.1)


@pytest.mark.parametrize("noise", [0.0, 0.3])
@pytest.mark.parametrize("own_steps", [0, 1, 3])
@pytest.mark.usefixtures("linear_predictors")
def test_the_error_of_a_step_is_that_after_the_predictor_s_own_ones(own_steps: int, noise: float) -> None:
    config = DiffusionConfig(model_rollout_steps=own_steps, input_noise=noise)
    rows = with_state_draws(batch(CONTEXT + own_steps + 1), KEY, CONTEXT, config)
    inputs, error = predictor_error_function(BASE, config)(PARAMS, rows)
    for row in range(ROWS):
        fields = (rows.fields[row, ..., 0] - MEAN) / STD
        window = [frame.copy() for frame in fields[:CONTEXT]]
        if noise:
            drawn = np.asarray(rows.draws["state_noise"])[row, :, :, 0]
            window = [frame + noise * drawn[n] for n, frame in enumerate(window)]
        for n in range(own_steps):
            predicted = 0.9 * window[-1] - 0.3 * window[-2]
            window.append(fields[CONTEXT + n] if n < int(rows.draws["num_true_steps"][row]) else predicted)
        pred = 0.9 * window[-1] - 0.3 * window[-2]
        np.testing.assert_allclose(error[row, :, 0], fields[-1] - pred, atol=1e-5)
        # The frames that were seen, newest first, and the change in units of one-step differences.
        seen = np.stack([window[-1], window[-2], (pred - window[-1]) * STD / DELTA], axis=-1)
        np.testing.assert_allclose(inputs.fields[row], seen, rtol=1e-4, atol=1e-4)


@pytest.mark.usefixtures("linear_predictors")
def test_the_error_of_a_solution_is_what_its_given_fields_leave() -> None:
    rows = batch(1, inputs=np.random.default_rng(1).normal(size=(ROWS, POINTS, 1)).astype(np.float32))
    corrector_inputs, error = predictor_error_function(SOLVER, DiffusionConfig())(PARAMS, rows)
    inputs = (rows.inputs - 1.0) / 4.0
    pred = 0.9 * inputs + 0.1
    np.testing.assert_allclose(error, (rows.fields[:, 0] - MEAN) / STD - pred, atol=1e-5)
    np.testing.assert_allclose(corrector_inputs.fields, np.concatenate([inputs, pred], axis=-1), atol=1e-5)


def test_states_begin_with_each_number_of_own_steps_equally_often_and_in_white_noise() -> None:
    rows = Batch(fields=jnp.zeros((3000, 6, POINTS, 1)))
    drawn = with_state_draws(rows, KEY, CONTEXT, DiffusionConfig(model_rollout_steps=3, input_noise=0.1)).draws
    np.testing.assert_allclose(np.bincount(drawn["num_true_steps"]) / 3000, np.full(4, 0.25), atol=0.03)
    noise = np.asarray(drawn["state_noise"])
    # Of the frames that are given alone; its size is the configuration's, given where it is added.
    assert noise.shape == (3000, CONTEXT, POINTS, 1)
    np.testing.assert_allclose([noise.mean(), noise.std()], [0.0, 1.0], atol=0.02)
    assert abs(np.corrcoef(noise[:, 0].ravel(), noise[:, 1].ravel())[0, 1]) < 0.03


def test_states_are_drawn_by_the_key_apart_and_only_where_they_are_wanted_and_not_there_yet() -> None:
    rows = Batch(fields=jnp.zeros((50, 4, POINTS, 1)))
    config = DiffusionConfig(input_noise=1.0)
    both, other = (with_state_draws(rows, jax.random.key(n), CONTEXT, config).draws for n in (0, 1))
    assert (both["num_true_steps"] != other["num_true_steps"]).any()
    assert (both["state_noise"] != other["state_noise"]).all()
    alone = with_state_draws(rows, KEY, CONTEXT, DiffusionConfig(model_rollout_steps=0, input_noise=0.2)).draws
    assert set(alone) == {"state_noise"}
    np.testing.assert_array_equal(alone["state_noise"], both["state_noise"])
    steps = with_state_draws(rows, KEY, CONTEXT, DiffusionConfig()).draws
    assert set(steps) == {"num_true_steps"}
    np.testing.assert_array_equal(steps["num_true_steps"], both["num_true_steps"])
    assert not with_state_draws(rows, KEY, CONTEXT, DiffusionConfig(model_rollout_steps=0)).draws
    # What the rows of a whole batch have drawn is found by its micro-batches.
    there = {"num_true_steps": jnp.full(50, 7), "state_noise": jnp.ones(3)}
    draws = with_state_draws(with_draws(rows, there), KEY, CONTEXT, DiffusionConfig(input_noise=1.0)).draws
    assert draws["num_true_steps"] is there["num_true_steps"] and draws["state_noise"] is there["state_noise"]


@pytest.mark.parametrize("kind", ["transient", "steady"])
def test_no_gradient_reaches_the_predictor(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    config = DiffusionConfig(model_rollout_steps=1, input_noise=0.1)
    base: Any = BASE if kind == "transient" else SOLVER
    cond = Conditions(dt=jnp.ones(1), coefficients=jnp.zeros((1, 0)), mask=jnp.zeros((1, 0)))
    shape = (1, CONTEXT, POINTS, 1) if kind == "transient" else (1, POINTS, 1)
    params = jax.tree.map(lambda leaf: leaf + 0.1, jax.jit(base.init)(KEY, np.zeros(shape, np.float32), cond)["params"])
    rows = with_state_draws(batch(CONTEXT + 2, inputs=np.ones((ROWS, POINTS, 1), np.float32)), KEY, CONTEXT, config)

    def reached() -> bool:
        residual = predictor_error_function(base, config)

        def total(params: Any) -> Any:
            inputs, error = residual(params, rows)
            return jnp.square(inputs.fields).sum() + jnp.square(error).sum()

        return any(leaf.any() for leaf in jax.tree.leaves(jax.jit(jax.grad(total))(params)))

    assert not reached()
    monkeypatch.setattr(jax.lax, "stop_gradient", lambda values: values)
    assert reached()
