"""Corrected rollouts: when the corrector acts, that its randomness is the key's, and that pieces are the whole."""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ups_jax.config import LatentConfig, OperatorConfig, SpectralConfig
from ups_jax.core.task import Statistics, Task
from ups_jax.models import Conditions, Simulator, denormalize, normalize
from ups_jax.rollout.autoregressive import rollout, rollout_chunk
from ups_jax.rollout.correction import Correction, above, every_n

STEPS, BATCH = 6, 3
TASK = Task(
    name="any", channels=("u",), axes=("x",), shape=(16,), origin=(0.0,), spacing=(1 / 16,), periodic=(True,), dt=0.1,
    statistics=Statistics(mean=(0.5,), std=(2.0,), delta_std=(0.2,)),
)  # fmt: skip


class Case(NamedTuple):
    """An untrained simulator, which is persistence, so that every change of a frame is the corrector's."""

    model: Simulator
    params: Any
    fields: jax.Array
    cond: Conditions


@pytest.fixture(scope="module")
def case() -> Case:
    operator = OperatorConfig(spectral=SpectralConfig(hidden_dim=4, depth=1, modes=4))
    model = Simulator(TASK, LatentConfig(dim=4), operator, context=2)
    cond = Conditions(dt=jnp.full(BATCH, 0.1), coefficients=jnp.zeros((BATCH, 0)), mask=jnp.zeros((BATCH, 0)))
    fields = jax.random.normal(jax.random.key(1), (BATCH, 2, 16, 1))
    return Case(model, jax.jit(model.init)(jax.random.key(0), fields, cond)["params"], fields, cond)


def add_one(key, window, pred, cond):
    """In model units; `std` of the task in physical ones."""
    return pred + 1.0


def add_noise(key, window, pred, cond):
    return pred + jax.random.normal(key, pred.shape)


def rolled(case: Case, correction: Correction, key=None, steps: int = STEPS) -> np.ndarray:
    run = jax.jit(partial(rollout, case.model, steps=steps, correction=correction))
    return np.asarray(run(case.params, case.fields, case.cond, key=jax.random.key(0) if key is None else key))


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_every_n_steps_the_corrector_acts_and_what_it_changed_is_handed_on(case: Case, steps: int) -> None:
    frames = rolled(case, Correction(corrector=add_one, when=every_n(steps)))
    added = np.arange(1, STEPS + 1) // steps * TASK.statistics.std[0]
    np.testing.assert_allclose(frames, np.asarray(case.fields)[:, -1:] + added[:, None, None], atol=1e-5)


def test_a_threshold_corrects_the_samples_beyond_it_alone(case: Case) -> None:
    """Sample i starts at mean i in model units and is lifted by one until it is no longer below 2."""
    means = normalize(case.fields, TASK.statistics)[:, -1].mean((1, 2))
    lifted = case._replace(fields=case.fields + 2.0 * (jnp.arange(3.0) - means)[:, None, None, None])
    below = above(lambda window, pred, cond: 2.0 - pred.mean((1, 2)), 0.5)
    frames = rolled(lifted, Correction(corrector=add_one, when=below))
    levels = (frames.mean((2, 3)) - TASK.statistics.mean[0]) / TASK.statistics.std[0]
    np.testing.assert_allclose(levels, [[1, 2, 2, 2, 2, 2], [2, 2, 2, 2, 2, 2], [2, 2, 2, 2, 2, 2]], atol=1e-4)


def test_a_residual_that_is_not_a_number_is_beyond_any_threshold(case: Case) -> None:
    when = above(lambda window, pred, cond: jnp.full(len(pred), jnp.nan), 1e9)
    frames = rolled(case, Correction(corrector=add_one, when=when), steps=1)
    np.testing.assert_allclose(frames, case.fields[:, -1:] + TASK.statistics.std[0], atol=1e-5)


def test_held_noise_is_drawn_once_and_adds_up(case: Case) -> None:
    frames = rolled(case, Correction(corrector=add_noise, when=every_n(1), fixed_noise=True))
    noise = np.diff(np.concatenate([case.fields[:, -1:], frames], 1), axis=1)
    np.testing.assert_allclose(noise, np.repeat(noise[:, :1], STEPS, 1), atol=1e-5)
    assert np.abs(rolled(case, Correction(corrector=add_noise, when=every_n(1), fixed_noise=True), jax.random.key(1))
                  - frames).max() > 0.1  # fmt: skip


def test_each_step_draws_anew_and_the_same_key_draws_the_same(case: Case) -> None:
    correction = Correction(corrector=add_noise, when=every_n(1))
    frames = rolled(case, correction)
    np.testing.assert_array_equal(frames, rolled(case, correction))
    assert np.abs(frames - rolled(case, correction, jax.random.key(1))).max() > 0.1
    noise = np.diff(np.concatenate([case.fields[:, -1:], frames], 1), axis=1) / TASK.statistics.std[0]
    assert np.abs(np.corrcoef(noise.swapaxes(0, 1).reshape(STEPS, -1)) - np.eye(STEPS)).max() < 0.6
    # A random walk: the variance of the sum grows with the number of steps.
    assert frames[:, -1].var() > 2 * frames[:, 0].var()


@pytest.mark.parametrize("correction", [None, Correction(corrector=add_noise, when=every_n(2))], ids=["plain", "noise"])
def test_pieces_of_a_rollout_are_the_rollout_and_compile_once(case: Case, correction: Correction | None) -> None:
    key = jax.random.key(2)
    traced = []

    def counted(*arguments: Any, **named: Any) -> Any:
        traced.append(True)
        return rollout_chunk(case.model, *arguments, chunk_length=4, correction=correction, key=key, **named)

    piece = jax.jit(counted)
    whole = jax.jit(partial(rollout, case.model, steps=9, correction=correction))(
        case.params, case.fields, case.cond, key=key
    )
    window, frames = normalize(case.fields, TASK.statistics), []
    for first, count in ((0, 4), (4, 1), (5, 4)):
        window, part = piece(
            case.params, window, case.cond, first_step=jnp.asarray(first), step_count=jnp.asarray(count)
        )
        assert part.shape[1] == 4
        frames.append(part[:, :count])
        np.testing.assert_array_equal(part[:, count:], jnp.repeat(part[:, count - 1 : count], 4 - count, 1))
    np.testing.assert_allclose(jnp.concatenate(frames, 1), whole, atol=1e-5)
    np.testing.assert_allclose(denormalize(window, TASK.statistics), whole[:, -2:], atol=1e-5)
    assert len(traced) == 1


def test_gradients_go_through_a_corrected_rollout(case: Case) -> None:
    """A corrector is trained on its own rollouts: with a gain g at each of n steps the frame grows as (1 + g)^n."""

    def last(gain: jax.Array) -> jax.Array:
        correction = Correction(corrector=lambda key, window, pred, cond: pred * (1 + gain), when=every_n(1))
        frames = rollout(case.model, case.params, case.fields, case.cond, 3, correction, jax.random.key(0))
        return normalize(frames, TASK.statistics)[:, -1].sum()

    slope = jax.jit(jax.grad(last))(jnp.zeros(()))
    assert slope == pytest.approx(3 * float(normalize(case.fields, TASK.statistics)[:, -1].sum()), rel=1e-4)


def test_a_correction_without_a_key_or_of_no_step_is_refused(case: Case) -> None:
    with pytest.raises(ValueError, match="with a correction requires a random key"):
        rollout(case.model, case.params, case.fields, case.cond, 1, Correction(corrector=add_one, when=every_n(1)))
    with pytest.raises(ValueError, match="at least 1 step, got 0"):
        every_n(0)
