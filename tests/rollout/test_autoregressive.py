"""Rollouts of a simulator: encoded anew or once, they agree."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ups_jax.config import LatentConfig, OperatorConfig, SpectralConfig
from ups_jax.core.task import Statistics, Task
from ups_jax.models import Conditions, LatentState, Simulator, decode, denormalize, encode, normalize, operate
from ups_jax.rollout.autoregressive import latent_rollout, rollout

STEPS = 3
# Patches of 4 points do not divide the last grid.
GRIDS = [((32,), (True,)), ((8, 12), (True, False)), ((13, 17), (True, False))]


def simulator(shape: tuple[int, ...], periodic: tuple[bool, ...]) -> Simulator:
    axes = len(shape)
    task = Task(
        name="any", channels=("u", "v"), axes=("x", "y")[:axes], shape=shape, origin=(0.0,) * axes,
        spacing=tuple(1 / points for points in shape), periodic=periodic, dt=0.1, conserved=(0,),
        statistics=Statistics(mean=(0.5, -1.0), std=(2.0, 3.0), delta_std=(0.2, 0.2)),
    )  # fmt: skip
    operator = OperatorConfig(spectral=SpectralConfig(hidden_dim=8, depth=1, modes=4))
    return Simulator(task, LatentConfig(dim=6), operator, context=2)


class Case(NamedTuple):
    """A simulator with compiled rollouts of `STEPS` steps, its first and some moved parameters."""

    model: Simulator
    fields: jax.Array
    cond: Conditions
    untrained: Any
    trained: Any
    anew: Callable[..., jax.Array]
    latent: Callable[..., jax.Array]


@pytest.fixture(scope="module", params=GRIDS, ids=["1d", "2d", "undivided"])
def case(request: pytest.FixtureRequest) -> Case:
    shape, periodic = request.param
    model = simulator(shape, periodic)
    cond = Conditions(dt=jnp.full(3, 0.1), coefficients=jnp.zeros((3, 0)), mask=jnp.zeros((3, 0)))
    fields = jax.random.normal(jax.random.key(1), (3, model.context, *shape, 2))
    untrained = jax.jit(model.init)(jax.random.key(0), fields, cond)["params"]
    rng = np.random.default_rng(2)
    trained = jax.tree.map(lambda leaf: leaf + 0.1 * rng.normal(size=leaf.shape).astype(np.float32), untrained)
    ways = (jax.jit(partial(way, model, steps=STEPS)) for way in (rollout, latent_rollout))
    return Case(model, fields, cond, untrained, trained, *ways)


def test_a_latent_state_is_what_the_encoder_makes_of_its_field_so_both_rollouts_agree(case: Case) -> None:
    anew, latent = (way(case.trained, case.fields, case.cond) for way in (case.anew, case.latent))
    np.testing.assert_allclose(latent, anew, atol=1e-4)
    assert np.abs(latent[:, 0] - case.fields[:, -1]).max() > 0.1


def test_an_untrained_latent_rollout_is_persistence(case: Case) -> None:
    frames = case.latent(case.untrained, case.fields, case.cond)
    np.testing.assert_allclose(frames, jnp.repeat(case.fields[:, -1:], STEPS, 1), atol=1e-6)
    np.testing.assert_array_equal(frames, case.anew(case.untrained, case.fields, case.cond))


def test_a_latent_rollout_is_the_operator_applied_again_and_again_and_conserves(case: Case) -> None:
    model, statistics = case.model, case.model.task.statistics
    frames = case.latent(case.trained, case.fields, case.cond)
    advance = jax.jit(partial(operate, model))
    z = encode(model, case.trained, normalize(case.fields, statistics))
    state = LatentState(z=z, t=jnp.zeros(3), cond=case.cond)
    for index in range(STEPS):
        state = advance(case.trained, state)
        frame = denormalize(decode(model, case.trained, state.z), statistics)
        np.testing.assert_allclose(frames[:, index], frame, atol=2e-5)
    axes = tuple(range(2, frames.ndim - 1))
    conserved = case.fields[:, -1:, ..., 0].mean(axes).repeat(STEPS, 1)
    np.testing.assert_allclose(frames[..., 0].mean(axes), conserved, atol=2e-6)
