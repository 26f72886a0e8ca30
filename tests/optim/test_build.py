"""The chain that a configuration gives: each optimizer against torch's, clipping, and who gets Muon and decay."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ups_jax.config import OptimizerConfig, SchedulerConfig, StageConfig
from ups_jax.optim import build_optimizer

STEADY = SchedulerConfig(name="constant", warmup=0.0)


def stage(**optimizer: Any) -> StageConfig:
    return StageConfig(grad_clip=None, optimizer=OptimizerConfig(**optimizer), scheduler=STEADY)


def test_muon_turns_a_hidden_matrix_into_a_near_orthogonal_step_and_leaves_the_rest_to_adamw() -> None:
    rng = np.random.default_rng(0)
    params = {
        "core": {"Dense_0": {"kernel": jnp.asarray(rng.normal(size=(12, 12)), jnp.float32), "bias": jnp.zeros(12)}},
        "write": {"kernel": jnp.asarray(rng.normal(size=(12, 12)), jnp.float32)},
    }
    gradients = jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape), jnp.float32), params)
    tx = build_optimizer(stage(name="muon", lr=1.0), 10, 1)
    updates, _ = tx.update(gradients, tx.init(params), params)
    values = np.linalg.svd(updates["core"]["Dense_0"]["kernel"], compute_uv=False)
    assert values.min() > 0.5 and values.max() < 1.5
    for name, leaf in (("bias", updates["core"]["Dense_0"]["bias"]), ("exit", updates["write"]["kernel"])):
        np.testing.assert_allclose(np.abs(leaf), 1.0, rtol=1e-3, err_msg=name)


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_the_gradient_is_clipped_to_its_norm(name: Any) -> None:
    tx = build_optimizer(StageConfig(grad_clip=0.5, optimizer=OptimizerConfig(name=name)), 10, 1)
    params = {"bias": jnp.zeros((2, 2))}
    state = tx.update({"bias": jnp.full((2, 2), 100.0)}, tx.init(params), params)[1]
    momentum = [leaf for path, leaf in optax.tree.get_all_with_path(state, "mu") if jax.tree.leaves(leaf)]
    np.testing.assert_allclose(optax.tree.norm(momentum[-1]) / (1 - 0.9), 0.5, rtol=1e-4)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ({"name": "adam", "betas": (0.8, 0.95)}, ("Adam", {"betas": (0.8, 0.95)})),
        ({"name": "adamw", "betas": (0.8, 0.95), "eps": 1e-3}, ("AdamW", {"betas": (0.8, 0.95), "eps": 1e-3})),
        ({"name": "sgd"}, ("SGD", {"momentum": 0.9})),
        ({"name": "sgd", "momentum": 0.7, "nesterov": True}, ("SGD", {"momentum": 0.7, "nesterov": True})),
    ],
)
def test_each_optimizer_steps_as_torchs_of_that_name(ours: dict[str, Any], theirs: tuple[str, dict[str, Any]]) -> None:
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    start = rng.normal(size=(3, 2)).astype(np.float32)
    other = torch.nn.Parameter(torch.tensor(start))
    optimizer = getattr(torch.optim, theirs[0])([other], lr=0.05, weight_decay=0.2, **theirs[1])
    tx = build_optimizer(stage(lr=0.05, weight_decay=0.2, **ours), 10, 1)
    params = {"kernel": jnp.asarray(start)}
    state = tx.init(params)
    for _ in range(6):
        gradient = rng.normal(size=(3, 2)).astype(np.float32)
        other.grad = torch.tensor(gradient)
        optimizer.step()
        updates, state = tx.update({"kernel": jnp.asarray(gradient)}, state, params)
        params = optax.apply_updates(params, updates)
        np.testing.assert_allclose(params["kernel"], other.detach().numpy(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["adam", "adamw", "sgd", "muon"])
def test_weights_decay_and_biases_and_norm_scales_do_not(name: Any) -> None:
    params = {
        "core": {"out": {"kernel": jnp.full((4, 4), 2.0), "bias": jnp.full(4, 2.0)}},
        "mixing": {"spectrum": jnp.full((3, 2, 4), 2.0)},
        "LayerNorm_0": {"scale": jnp.full(4, 2.0), "bias": jnp.full(4, 2.0)},
        "layers": {"bias": jnp.full((3, 4), 2.0)},
    }  # fmt: skip
    tx = build_optimizer(stage(name=name, lr=0.1, weight_decay=0.5), 10, 1)
    updates, _ = tx.update(jax.tree.map(jnp.zeros_like, params), tx.init(params), params)
    moved = {
        jax.tree_util.keystr(path, simple=True, separator="/")
        for path, leaf in jax.tree_util.tree_leaves_with_path(updates)
        if np.abs(leaf).max() > 0
    }
    assert moved == {"core/out/kernel", "mixing/spectrum"}


def test_without_decay_the_chain_is_optaxs_adamw_to_the_bit_and_its_state_too() -> None:
    rng = np.random.default_rng(0)
    params = {"kernel": jnp.asarray(rng.normal(size=(3, 2)), jnp.float32), "bias": jnp.ones(2)}
    theirs = optax.chain(optax.identity(), optax.adamw(lambda _: 0.1, weight_decay=0.0))
    pair = build_optimizer(stage(name="adamw", lr=0.1), 10, 1), theirs
    states = [tx.init(params) for tx in pair]
    gradients = jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape), jnp.float32), params)
    assert jax.tree.structure(states[0]) == jax.tree.structure(states[1])
    updates = [tx.update(gradients, state, params) for tx, state in zip(pair, states, strict=True)]
    jax.tree.map(np.testing.assert_array_equal, *updates)
