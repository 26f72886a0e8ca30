"""Every stage's whole train step lowers for CUDA where there is no GPU."""

from __future__ import annotations

from pathlib import Path

import jax
import pytest
from jax import export

from ups_jax import batch_at, build, init_state, make_train_step, simulate
from ups_jax.config import Config, load
from ups_jax.data import Dataset, open_dataset
from ups_jax.trainer.parents import untrained_parents

# One layer has every kind of product.
SMALL = ("operator.spectral.depth=1", "operator.pdet={depth: 1, depths: [1, 1]}")
ON = (*SMALL, "training.precision=bf16", "training.remat=block", "training.accum_steps=2", "training.rollout_horizon=2")


@pytest.mark.parametrize("stage", ["operator", "diffusion_residual", "consistency_distill"])
def test_a_transient_step_lowers_for_cuda(waves: Dataset, tiny: Config, stage: str) -> None:
    lowers_for_cuda(load("configs/tiny.yaml", [*ON, "data.tasks.0.symmetries=[]"]), waves, stage)


def test_a_steady_step_lowers_for_cuda(data_root: Path) -> None:
    cfg = load("configs/tiny_steady.yaml", [f"data.root={data_root}", *ON[:-1]])
    simulate.generate_missing(cfg)
    lowers_for_cuda(cfg, open_dataset(cfg), "steady_prior")


@pytest.mark.parametrize("architecture", ["pdet_unet", "pdet_stack"])
def test_the_other_operators_lower_for_cuda(waves: Dataset, architecture: str) -> None:
    overrides = [*ON[:-1], "data.tasks.0.symmetries=[]", f"operator.architecture_type={architecture}"]
    lowers_for_cuda(load("configs/tiny.yaml", overrides), waves, "operator")


@pytest.mark.parametrize(("precision", "exact"), [("fp32", True), ("tf32", False)])
@pytest.mark.parametrize("core", ["spectral", "pdet_stack"])
def test_products_have_all_bits_unless_fewer_are_asked_for(
    waves: Dataset, precision: str, exact: bool, core: str
) -> None:
    overrides = [
        "data.tasks.0.symmetries=[]",
        "optimizer.name=adamw",
        "operator.spectral.depth=1",
        f"training.precision={precision}",
    ]
    overrides += [f"operator.architecture_type={core}", "operator.pdet={hidden_dim: 16, depth: 1, num_heads: 2}"]
    cfg = load("configs/tiny.yaml", overrides)
    model, tx = build(cfg, waves)
    batch = batch_at(waves, cfg, "operator", 0)
    state = jax.eval_shape(lambda key: init_state(model, tx, batch, key, cfg=cfg), jax.random.key(0))
    program = make_train_step(model, tx, cfg).compiled
    lowered = export.export(program, platforms=["cuda"])(state, batch, {}).mlir_module()
    products = [line for line in lowered.splitlines() if "stablehlo.dot_general" in line]
    least = sum("HIGHEST" in line for line in products) / len(products)
    assert least == 1 if exact else least < 0.6, f"{least:.0%} of {len(products)} products"


def test_the_update_of_a_gpu_lowers_for_cuda(waves: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    # The process that lowers has a CPU, which takes another form of the update.
    monkeypatch.setattr("ups_jax.training.step.is_one_cpu", lambda mesh: False)
    lowers_for_cuda(load("configs/tiny.yaml", [*SMALL, "data.tasks.0.symmetries=[]"]), waves, "operator")


def lowers_for_cuda(cfg: Config, dataset: Dataset, stage: str) -> None:
    model, tx = build(cfg, dataset, stage=stage)
    batch = batch_at(dataset, cfg, stage, 0)
    parents = untrained_parents(cfg, dataset.task, stage, batch)
    state = jax.eval_shape(lambda key: init_state(model, tx, batch, key, stage=stage, cfg=cfg), jax.random.key(0))
    step = make_train_step(model, tx, cfg, stage=stage, steps_per_epoch=4, parents=parents)
    lowered = export.export(step.compiled, platforms=["cuda"])(state, batch, parents)
    assert lowered.platforms == ("cuda",)
    # The optimizer's products and the gradient's are in it, not the forward pass alone.
    assert lowered.mlir_module().count("stablehlo.dot_general") > 20
