"""Blocks computed again for the gradient: the same parameters, values and gradients, in less memory."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
import optax
import pytest

from ups_jax import batch_at, init_state, make_train_step
from ups_jax.config import Config, load
from ups_jax.core.xla import remat_options
from ups_jax.data import Dataset
from ups_jax.training.build import abstract_state, build_model
from ups_jax.training.stages import stage_spec

CORES = {
    "spectral": ["operator.spectral.depth=2", "operator.spectral.hidden_dim=4"],
    "pdet_stack": ["operator.pdet.depth=2", "operator.pdet.hidden_dim=8", "operator.pdet.num_heads=2"],
    "pdet_unet": ["operator.pdet.depths=[1,1]", "operator.pdet.hidden_dim=8", "operator.pdet.num_heads=2",
                  "operator.pdet.group_size=4"],
}  # fmt: skip


def config(core: str, remat: str, *more: str) -> Config:
    small = ["latent.dim=4", "training.batch_size=2", "training.input_noise=0", "optimizer.name=adamw"]
    return load(
        "configs/tiny.yaml",
        [f"operator.architecture_type={core}", f"training.remat={remat}", *CORES[core], *small, *more],
    )


@pytest.mark.parametrize("core", CORES)
def test_parameters_keep_their_names_and_shapes_so_that_checkpoints_fit_both(waves: Dataset, core: str) -> None:
    states = [abstract_state(config(core, remat), waves.task, "operator") for remat in ("none", "block", "full")]
    paths = [
        [(jax.tree_util.keystr(path), leaf.shape) for path, leaf in jax.tree_util.tree_leaves_with_path(state)]
        for state in states
    ]
    assert paths[0] == paths[1] == paths[2]


@pytest.fixture(scope="module")
def results() -> dict[tuple[str, str, int], Any]:
    """Of `gradients`, by its arguments."""
    return {}


def gradients(waves: Dataset, core: str, remat: str, horizon: int) -> Any:
    """The initial values, and the losses and their gradients a little beside them."""
    small = ("operator.spectral.depth=1", "operator.pdet.depth=1", "training.truncate=1")
    cfg = config(core, remat, *small, f"training.rollout_horizon={horizon}")
    batch, spec = batch_at(waves, cfg, "operator", 0), stage_spec("operator")
    model = build_model(cfg, waves.task, "operator")
    # The key of the initial values is split by the names of modules, which must be the same as well.
    params = jax.device_get(jax.jit(lambda key, batch: spec.init(model, key, batch))(jax.random.key(1), batch))
    slopes = jax.jit(
        jax.value_and_grad(spec.losses(model, cfg), has_aux=True), compiler_options=remat_options(cfg.training.remat)
    )
    return params, slopes(jax.tree.map(lambda leaf: leaf + np.float32(0.02), params), batch, jax.random.key(0))


@pytest.mark.parametrize(
    ("core", "remat"), [("spectral", "block"), ("spectral", "full"), ("pdet_stack", "block"), ("pdet_unet", "block")]
)
def test_values_and_gradients_are_the_same(waves: Dataset, results: Any, core: str, remat: str) -> None:
    # Blocks are the same modules in a rollout of two steps, with which one core is enough.
    horizon = 2 if core == "spectral" else 1
    for kind in ("none", remat):
        if (core, kind, horizon) not in results:
            results[core, kind, horizon] = gradients(waves, core, kind, horizon)
    (params, one), (same, other) = results[core, "none", horizon], results[core, remat, horizon]
    jax.tree.map(np.testing.assert_array_equal, params, same)
    largest = max(np.abs(leaf).max() for leaf in jax.tree.leaves(one[1]))
    jax.tree.map(
        lambda left, right: np.testing.assert_allclose(left, right, atol=2e-6 * largest, rtol=1e-4), one, other
    )


def test_eight_layers_take_at_least_two_fifths_less_memory_for_a_step(waves: Dataset) -> None:
    def temporaries(remat: str) -> int:
        cfg = config(
            "spectral", remat, "operator.spectral.depth=8", "operator.spectral.hidden_dim=16", "training.batch_size=64"
        )
        batch, tx = batch_at(waves, cfg, "operator", 0), optax.sgd(1.0)
        model = build_model(cfg, waves.task, "operator")
        state = jax.eval_shape(lambda key: init_state(model, tx, batch, key), jax.random.key(0))
        step: Any = make_train_step(model, tx, cfg)
        return step.lower(state, batch).compile().memory_analysis().temp_size_in_bytes

    assert temporaries("block") < 0.6 * temporaries("none")
