"""Rollouts of a simulator: encoded anew or once, they agree where they must."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ups_jax.config import LatentConfig, OperatorConfig, SpectralConfig
from ups_jax.models import Conditions, LatentState, Simulator, decode, denormalize, encode, normalize, operate
from ups_jax.rollout import latent_rollout, rollout
from ups_jax.task import Statistics, Task

GRIDS = [((32,), (True,)), ((8, 12), (True, False))]


def simulator(shape: tuple[int, ...], periodic: tuple[bool, ...], context: int = 1) -> Simulator:
    axes = len(shape)
    task = Task(
        name="any", channels=("u", "v"), axes=("x", "y")[:axes], shape=shape, origin=(0.0,) * axes,
        spacing=tuple(1 / points for points in shape), periodic=periodic, dt=0.1, conserved=(0,),
        statistics=Statistics(mean=(0.5, -1.0), std=(2.0, 3.0), delta_std=(0.2, 0.2)),
    )  # fmt: skip
    operator = OperatorConfig(spectral=SpectralConfig(hidden_dim=8, depth=1, modes=4))
    return Simulator(task, LatentConfig(dim=6), operator, context)


def parameters(model: Simulator, fields: jax.Array, cond: Conditions, moved: float) -> Any:
    params = jax.jit(model.init)(jax.random.key(0), fields, cond)["params"]
    rng = np.random.default_rng(2)
    return jax.tree.map(lambda leaf: leaf + moved * rng.normal(size=leaf.shape).astype(np.float32), params)


def case(shape, periodic, context=1, moved=0.1):
    model = simulator(shape, periodic, context)
    cond = Conditions(dt=jnp.full(3, 0.1), coefficients=jnp.zeros((3, 0)), mask=jnp.zeros((3, 0)))
    fields = jax.random.normal(jax.random.key(1), (3, context, *shape, 2))
    params = parameters(model, fields, cond, moved)
    both = [jax.jit(partial(way, model), static_argnames="steps") for way in (rollout, latent_rollout)]
    return model, params, fields, cond, *both


@pytest.mark.parametrize(("shape", "periodic"), GRIDS)
def test_one_step_is_the_same_either_way_and_more_are_not(shape, periodic):
    _, params, fields, cond, anew, latent = case(shape, periodic, context=2)
    np.testing.assert_allclose(latent(params, fields, cond, steps=1), anew(params, fields, cond, steps=1), atol=1e-6)
    far = [way(params, fields, cond, steps=4) for way in (anew, latent)]
    np.testing.assert_allclose(far[1][:, 0], far[0][:, 0], atol=1e-6)
    assert np.abs(far[1][:, 1:] - far[0][:, 1:]).max() > 1e-3


@pytest.mark.parametrize(("shape", "periodic"), GRIDS)
def test_an_untrained_latent_rollout_is_persistence(shape, periodic):
    _, params, fields, cond, anew, latent = case(shape, periodic, moved=0.0)
    frames = latent(params, fields, cond, steps=3)
    np.testing.assert_allclose(frames, jnp.repeat(fields, 3, 1), atol=1e-6)
    np.testing.assert_array_equal(frames, anew(params, fields, cond, steps=3))


def test_a_latent_rollout_is_the_operator_applied_again_and_again_and_conserves():
    model, params, fields, cond, _, latent = case(*GRIDS[0])
    frames = latent(params, fields, cond, steps=3)
    state = LatentState(z=encode(model, params, normalize(fields, model.task.statistics)), t=jnp.zeros(3), cond=cond)
    for index in range(3):
        state = operate(model, params, state)
        frame = denormalize(decode(model, params, state.z), model.task.statistics)
        np.testing.assert_allclose(frames[:, index], frame, atol=2e-5)
    np.testing.assert_allclose(frames[..., 0].mean(2), fields[..., 0].mean(2).repeat(3, 1), atol=2e-6)
