"""Samplers of the corrector against errors whose distribution is known, and what distillation makes of them."""

from __future__ import annotations

from dataclasses import replace
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ups_jax.config import Config, DiffusionConfig, LatentConfig, OperatorConfig, PdetConfig, SpectralConfig, from_dict
from ups_jax.core.task import Statistics, Task
from ups_jax.losses import StepContext, diffusion_losses, distillation_draws, distillation_losses
from ups_jax.models import Conditions, Simulator
from ups_jax.models.batch import Batch, with_draws
from ups_jax.models.corrector import Corrector, CorrectorInputs, CorrectorWeights, step_inputs
from ups_jax.rollout import flow_sampler
from ups_jax.rollout.flow_sampler import consistency_function, draw_noise, flow_times, sample_distilled, sample_error

POINTS, SPREAD = 8, 0.3
TASK = Task(
    name="toy",
    channels=("u",),
    axes=("x",),
    shape=(POINTS,),
    origin=(0.0,),
    spacing=(1 / POINTS,),
    periodic=(True,),
    dt=1.0,
    statistics=Statistics(mean=(0.0,), std=(1.0,), delta_std=(1.0,)),
)
CORE = OperatorConfig(spectral=SpectralConfig(hidden_dim=16, depth=1, modes=3))
LATENT = LatentConfig(dim=4, patch_size=2)
CFG = from_dict(
    {
        "data": {"tasks": [{"name": "toy"}]},
        "diffusion": {"model_rollout_steps": 0, "num_steps": 4},
        "training": {"distill_num_taus": 4},
    }
)
MODEL = Corrector(TASK, LATENT, CORE, CFG.diffusion)
BASE = Simulator(TASK, LATENT, CORE)
KEY = jax.random.key(0)
sampled = jax.jit(partial(sample_error, MODEL))
distilled = jax.jit(partial(sample_distilled, MODEL), static_argnames="steps")
expected = jax.jit(partial(flow_sampler.mean_error, MODEL))


def conditions(rows: int) -> Conditions:
    return Conditions(dt=jnp.ones(rows), coefficients=jnp.zeros((rows, 0)), mask=jnp.zeros((rows, 0)))


def given(rows: int) -> CorrectorInputs:
    start = jnp.broadcast_to(jnp.sin(2 * jnp.pi * jnp.arange(POINTS) / POINTS)[None, :, None], (rows, POINTS, 1))
    return step_inputs(TASK, start[:, None], start, conditions(rows))


@cache
def fresh() -> Any:
    return jax.jit(MODEL.init)(KEY, jnp.zeros((1, POINTS, 1)), jnp.zeros(1), given(1))["params"]


@cache
def predictor() -> Any:
    """Parameters of an untrained predictor, which persists."""
    return jax.jit(BASE.init)(KEY, jnp.zeros((1, 1, POINTS, 1)), conditions(1))["params"]


def batch(key: Any, rows: int) -> Batch:
    """Windows of a persistent predictor whose error is half of the field, and white noise of deviation `SPREAD`."""
    size, noise = jax.random.split(key)
    first = given(rows).fields[..., :1] * jax.random.normal(size, (rows, 1, 1))
    second = 1.5 * first + SPREAD * jax.random.normal(noise, first.shape)
    fixed = {"dt": jnp.ones(rows), "cond": jnp.zeros((rows, 0)), "cond_mask": jnp.zeros((rows, 0))}
    return Batch(fields=jnp.stack([first, second], axis=1), mask=jnp.ones(rows), **fixed)


def trained(losses: Any, params: Any, steps: int, context: Any) -> Any:
    tx = optax.adam(optax.cosine_decay_schedule(1e-2, steps))

    def step(carry: Any, number: Any) -> tuple[Any, None]:
        params, state = carry
        key = jax.random.fold_in(KEY, number)
        gradient = jax.grad(lambda values: losses(values, batch(key, 64), key, StepContext(**context(params)))[0])(
            params
        )
        updates, state = tx.update(gradient, state, params)
        return (optax.apply_updates(params, updates), state), None

    return jax.jit(lambda p: jax.lax.scan(step, (p, tx.init(p)), jnp.arange(steps))[0][0])(params)


@pytest.fixture(scope="module")
def teacher() -> CorrectorWeights:
    parents = {"operator": predictor()}
    context = {"parents": parents, "scale": jnp.ones(1)}
    params = trained(diffusion_losses(MODEL, BASE, CFG), fresh(), 600, lambda _: context)
    return CorrectorWeights(params=params, scale=jnp.ones(1))


def test_times_begin_with_noise_alone_and_end_with_none() -> None:
    np.testing.assert_allclose(flow_times(3, 0.01), [0, 0.9, 0.99, 1])
    np.testing.assert_allclose(flow_times(1, 0.01), [0, 1])


def test_an_untrained_corrector_says_nothing_in_one_step() -> None:
    weights = CorrectorWeights(params=fresh(), scale=jnp.ones(1))
    np.testing.assert_allclose(distilled(weights, KEY, given(2)), 0, atol=1e-6)
    assert np.isfinite(sampled(weights, KEY, given(2))).all()


def test_the_boundary_of_the_consistency_function_is_exact() -> None:
    x = jax.random.normal(KEY, (2, POINTS, 1))
    noisy = jax.tree.map(lambda leaf: leaf + 1.0, fresh())
    result = jax.jit(partial(consistency_function, MODEL))(noisy, x, jnp.ones(2), given(2))
    np.testing.assert_array_equal(result, x)


def test_noise_of_a_conserved_channel_has_no_mean() -> None:
    kept = draw_noise(KEY, (3, POINTS, 1), replace(TASK, conserved=(0,)))
    np.testing.assert_allclose(kept.mean(1), 0, atol=1e-6)
    assert abs(float(draw_noise(KEY, (3, POINTS, 1), TASK).mean())) > 1e-3


@pytest.mark.parametrize(("sampler", "steps", "rtol"), [("heun", 6, 0.08), ("heun", 24, 0.01), ("euler", 200, 0.02)])
def test_the_exact_velocity_of_a_gaussian_gives_its_mean_and_deviation(
    monkeypatch: pytest.MonkeyPatch, sampler: Any, steps: int, rtol: float
) -> None:
    mean = 0.7

    def exact(model: Any, params: Any, x: Any, time: Any, inputs: Any) -> Any:
        t = time.reshape(-1, 1, 1)
        gain = (t * SPREAD**2 - (1 - t)) / (t**2 * SPREAD**2 + (1 - t) ** 2)
        return mean + gain * (x - t * mean)

    monkeypatch.setattr(flow_sampler, "velocity", exact)
    model = Corrector(TASK, LATENT, CORE, DiffusionConfig(sampler=sampler, num_steps=steps))
    samples = sample_error(model, CorrectorWeights(params={}, scale=jnp.full(1, 2.0)), KEY, given(2000))
    np.testing.assert_allclose(samples.mean(), 2 * mean, atol=0.02)
    np.testing.assert_allclose(samples.std(), 2 * SPREAD, rtol=rtol)


def test_a_trained_corrector_samples_the_errors_of_its_predictor(teacher: CorrectorWeights) -> None:
    samples = np.asarray(sampled(teacher, KEY, given(2000)))
    np.testing.assert_allclose(samples.mean(0), 0.5 * np.asarray(given(1).fields[0, :, :1]), atol=0.1)
    # Four steps of Heun's on a Gaussian of this deviation spread a fifth too much.
    assert 0.9 * SPREAD < samples.std(0).mean() < 1.35 * SPREAD


def test_the_error_that_a_trained_corrector_expects_is_the_mean_of_its_samples(teacher: CorrectorWeights) -> None:
    mean = expected(teacher, KEY, given(1))
    np.testing.assert_allclose(mean[0], 0.5 * np.asarray(given(1).fields[0, :, :1]), atol=0.1)


def aiming_at(aim: str, taus: int = 4) -> Config:
    stage = replace(CFG.stages.consistency_distill, aim=aim)
    return replace(
        CFG,
        training=replace(CFG.training, distill_num_taus=taus),
        stages=replace(CFG.stages, consistency_distill=stage),
    )


def test_the_loss_is_what_lies_between_one_step_and_the_end_of_the_teachers(teacher: CorrectorWeights) -> None:
    rows = batch(KEY, 8)
    start = rows.fields[:, 0]
    asked = step_inputs(TASK, start[:, None], start, conditions(8))
    rows = with_draws(rows, {"noise": draw_noise(KEY, (8, POINTS, 1), TASK)})
    base = predictor()
    context = {"parents": {"operator": base, "diffusion_residual": teacher}, "scale": jnp.ones(1), "target": fresh()}
    params = jax.tree.map(lambda leaf: leaf + 0.01, teacher.params)
    theirs = sampled(teacher, KEY, asked)
    ours = distilled(CorrectorWeights(params=params, scale=jnp.ones(1)), KEY, asked)
    losses = distillation_losses(MODEL, BASE, aiming_at("teacher", 1))
    loss = jax.jit(lambda values: losses(values, rows, KEY, StepContext(**context))[0])(params)
    np.testing.assert_allclose(loss, jnp.mean((ours - theirs) ** 2), rtol=1e-4)
    # Later times are on the path as well: at all of them, and at the end of it the student is right by itself.
    levels = distillation_draws(MODEL, BASE, aiming_at("teacher", 4))(batch(KEY, 64), KEY).draws["levels"]
    assert (levels[:, 0] == 0).all() and set(np.unique(levels[:, 1:])) == {0, 1, 2, 3}
    levels = distillation_draws(MODEL, BASE, aiming_at("average", 4))(batch(KEY, 64), KEY).draws["levels"]
    assert set(np.unique(levels[:, 0])) == {0, 1, 2, 3}


@pytest.mark.parametrize("aim", ["teacher", "average"])
def test_a_student_does_in_one_step_what_its_teacher_does_in_four(teacher: CorrectorWeights, aim: str) -> None:
    parents = {"operator": predictor(), "diffusion_residual": teacher}

    def context(params: Any) -> dict[str, Any]:
        return {"parents": parents, "scale": jnp.ones(1), "target": params}

    params = trained(distillation_losses(MODEL, BASE, aiming_at(aim)), teacher.params, 600, context)
    theirs = sampled(teacher, KEY, given(500))

    def apart(params: Any) -> float:
        ours = distilled(CorrectorWeights(params=params, scale=jnp.ones(1)), KEY, given(500))
        return float(jnp.sqrt(jnp.mean((ours - theirs) ** 2) / jnp.var(theirs, axis=0).mean()))

    assert apart(params) < 0.3 < apart(teacher.params)
    weights = CorrectorWeights(params=params, scale=jnp.ones(1))
    once, twice = (distilled(weights, KEY, given(500), steps=steps) for steps in (1, 2))
    # The second step draws anew below the noise that it adds, and keeps what the first has found above it.
    assert 0.3 * SPREAD < float(jnp.std(twice - once)) < 1.5 * SPREAD
    np.testing.assert_allclose(twice.mean(0), theirs.mean(0), atol=0.1)
    np.testing.assert_allclose(twice.std(0).mean(), theirs.std(0).mean(), rtol=0.25)


def test_a_student_draws_its_own_samples_and_leaves_the_expected_error_to_its_teacher(
    teacher: CorrectorWeights,
) -> None:
    other = jax.tree.map(lambda leaf: leaf + 0.1, teacher.params)
    student = CorrectorWeights(params=other, scale=jnp.full(1, 2.0), teacher=teacher.params)
    theirs, student_error = (
        expected(CorrectorWeights(params=params, scale=jnp.full(1, 2.0)), KEY, given(3))
        for params in (teacher.params, other)
    )
    error = expected(student, KEY, given(3))
    np.testing.assert_array_equal(error, theirs)
    assert float(jnp.abs(error - student_error).max()) > 0.01
    drawn, alone = (distilled(weights, KEY, given(3)) for weights in (student, replace(student, teacher=None)))
    np.testing.assert_array_equal(drawn, alone)


def test_a_corrector_with_a_core_of_attention_is_trained_sampled_and_distilled() -> None:
    pdet = PdetConfig(hidden_dim=16, num_heads=2, group_size=8, depth=1)
    core = OperatorConfig(architecture_type="pdet_stack", pdet=pdet)
    model = Corrector(TASK, LATENT, core, CFG.diffusion)
    fresh = jax.jit(model.init)(KEY, jnp.zeros((1, POINTS, 1)), jnp.zeros(1), given(1))["params"]
    assert "attention" in str(jax.tree_util.tree_structure(fresh))
    parents: dict[str, Any] = {"operator": predictor()}
    context = {"parents": parents, "scale": jnp.ones(1)}
    losses, rows = diffusion_losses(model, BASE, CFG), batch(jax.random.key(1), 256)
    params = trained(losses, fresh, 60, lambda _: context)
    scored = jax.jit(lambda values: losses(values, rows, KEY, StepContext(**context))[0])
    assert float(scored(params)) < 0.8 * float(scored(fresh))
    teacher = CorrectorWeights(params=params, scale=jnp.ones(1))
    samples = np.asarray(jax.jit(lambda values: sample_error(model, values, KEY, given(200)))(teacher))
    assert np.isfinite(samples).all() and samples.std(0).min() > 0
    parents["diffusion_residual"] = teacher
    student = trained(distillation_losses(model, BASE, CFG), params, 60, lambda values: context | {"target": values})

    @jax.jit
    def apart(params: Any) -> Any:
        ours = sample_distilled(model, CorrectorWeights(params=params, scale=jnp.ones(1)), KEY, given(200))
        return jnp.sqrt(jnp.mean((ours - samples) ** 2))

    assert apart(student) < 0.9 * apart(params)


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_the_steps_of_a_perfect_student_all_have_the_spread_of_the_error(
    monkeypatch: pytest.MonkeyPatch, steps: int
) -> None:
    """The consistency function of a Gaussian of mean m and deviation S is m + S (x - t m) / sqrt(t^2 S^2 + (1-t)^2)."""
    mean, seen = 0.7, []

    def exact(model: Any, params: Any, x: Any, time: Any, inputs: Any) -> Any:
        t = time.reshape(-1, 1, 1)
        seen.append(float(time[0]))
        return mean + SPREAD * (x - t * mean) / jnp.sqrt(t**2 * SPREAD**2 + (1 - t) ** 2)

    monkeypatch.setattr(flow_sampler, "consistency_function", exact)
    samples = sample_distilled(
        MODEL, CorrectorWeights(params={}, scale=jnp.full(1, 2.0)), KEY, given(2000), steps=steps
    )
    np.testing.assert_allclose(samples.mean(), 2 * mean, atol=0.02)
    np.testing.assert_allclose(samples.std(), 2 * SPREAD, rtol=0.03)
    # From noise alone on at later and later times of the teacher's.
    assert seen[0] == 0 and seen == sorted(seen) and len(set(seen)) == steps
    times = flow_times(CFG.diffusion.num_steps, CFG.diffusion.min_noise)
    assert all(np.isclose(times, time, atol=1e-6).any() for time in seen)


def test_the_error_that_is_expected_is_the_mean_velocity_from_no_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    def exact(model: Any, params: Any, x: Any, time: Any, inputs: Any) -> Any:
        return 0.25 * inputs.fields[..., :1] - x + time.reshape(-1, 1, 1)

    monkeypatch.setattr(flow_sampler, "velocity", exact)
    window = given(2).fields[:, None, :, :1] * jnp.asarray([1.0, 3.0])[:, None, None, None]
    weights = CorrectorWeights(params={}, scale=jnp.full(1, 2.0))
    rms = flow_sampler.mean_error_rms(MODEL, weights, window, window[:, 0], conditions(2))
    # The root mean square of a sine is 1 / sqrt(2).
    np.testing.assert_allclose(rms, 2 * 0.25 * np.sqrt(0.5) * np.asarray([1.0, 3.0]), rtol=1e-5)
    error = flow_sampler.mean_error(MODEL, weights, KEY, given(2))
    np.testing.assert_allclose(error, 2 * 0.25 * given(2).fields[..., :1], atol=1e-6)


def test_a_regression_answers_the_error_in_its_own_size_whatever_the_key_and_the_steps(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def exact(model: Any, params: Any, x: Any, time: Any, inputs: Any) -> Any:
        # Any noise or later time in what the network is asked would show.
        return 0.25 * inputs.fields[..., :1] + x + time.reshape(-1, 1, 1)

    monkeypatch.setattr(flow_sampler, "velocity", exact)
    model = replace(MODEL, diffusion=replace(CFG.diffusion, objective="regression"))
    weights = CorrectorWeights(params={}, scale=jnp.full(1, 2.0))
    for key, steps in ((KEY, None), (jax.random.key(1), 3)):
        error = sample_error(model, weights, key, given(2), steps)
        np.testing.assert_allclose(error, 2 * 0.25 * given(2).fields[..., :1], atol=1e-6)
