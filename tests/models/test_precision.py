"""bfloat16: the core's products alone; what a step is added to, and all that is kept, stays float32."""

from __future__ import annotations

import re
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

from ups_jax import batch_at, build, init_state, make_train_step
from ups_jax.config import Config, load
from ups_jax.data import Dataset
from ups_jax.models.batch import as_jax_arrays
from ups_jax.models.conditioning import conditions_of
from ups_jax.models.spectral import SpectralMixing
from ups_jax.training.build import build_model
from ups_jax.training.stages import stage_spec

SMALL = ["latent.dim=4", "operator.spectral.depth=1", "operator.spectral.hidden_dim=8", "training.batch_size=4",
         "operator.pdet.depth=1", "operator.pdet.depths=[1,1]", "operator.pdet.hidden_dim=8",
         "operator.pdet.num_heads=2", "operator.pdet.group_size=4", "training.precision=bf16"]  # fmt: skip
SINGLE, HALF = jnp.dtype("float32"), jnp.dtype("bfloat16")
CORES = ("spectral", "pdet_stack", "pdet_unet")


def outputs(cfg: Config, waves: Dataset) -> dict[str, Any]:
    """The type that every module gives, by its path."""
    model = build_model(cfg, waves.task, "operator")
    batch = as_jax_arrays(batch_at(waves, cfg, "operator", 0))
    cond = conditions_of(batch)
    types: dict[str, Any] = {}

    def watch(call: Any, arguments: Any, options: Any, context: nn.module.InterceptorContext) -> Any:
        result = call(*arguments, **options)
        if context.method_name == "__call__":
            first = result[0] if isinstance(result, tuple) else result
            types["/".join(context.module.path)] = first.dtype
        return result

    def run(key: Any) -> Any:
        with nn.intercept_methods(watch):
            return model.init(key, batch.fields[:, :1], cond)

    jax.eval_shape(run, jax.random.key(0))
    return types


@pytest.mark.parametrize("core", CORES)
def test_stem_entrance_conditions_norms_and_exit_are_float32_and_the_core_s_products_are_not(
    waves: Dataset, core: str
) -> None:
    types = outputs(load("configs/tiny.yaml", [*SMALL, f"operator.architecture_type={core}"]), waves)
    outside = {path: kind for path, kind in types.items() if "core/" not in path}
    assert {"features/stem", "operator/entrance", "operator/condition", "operator/field_exit/write"} <= outside.keys()
    assert set(outside.values()) == {SINGLE}
    inside = {path: kind for path, kind in types.items() if "core/" in path}
    products = [
        path for path in inside if path.endswith(("value", "local", "out", "query", "key", "Dense_0", "modulation"))
    ]
    assert products and {inside[path] for path in products} == {HALF}
    for path, kind in inside.items():
        # Norms, and blocks as wholes: their residual sums.
        if "LayerNorm" in path or path.rsplit("/", 1)[-1].startswith(("SpectralBlock", "PdetLayer", "Residual")):
            assert kind == SINGLE, path


def test_the_fourier_transforms_and_the_mode_matrices_are_float32_products(waves: Dataset) -> None:
    cfg = load("configs/tiny.yaml", SMALL)
    spec, model = stage_spec("operator"), build_model(cfg, waves.task, "operator")
    batch = batch_at(waves, cfg, "operator", 0)
    params = jax.eval_shape(lambda key: spec.init(model, key, batch), jax.random.key(0))
    losses = spec.losses(model, cfg)
    jaxpr = jax.make_jaxpr(losses)(params, batch, jax.random.key(0))
    products = [
        [(variable.aval.dtype, variable.aval.shape) for variable in equation.invars]
        for equation in _equations(jaxpr.jaxpr)
        if equation.primitive.name == "dot_general"
    ]
    modes = [kinds for kinds in products if any(shape[-2:] == (8, 16) and len(shape) == 3 for _, shape in kinds)]
    assert modes and all(kind == SINGLE for kinds in modes for kind, _ in kinds)
    assert any(kind == HALF for kinds in products for kind, _ in kinds)


def _equations(jaxpr: Any) -> Any:
    for equation in jaxpr.eqns:
        yield equation
        for inner in jax.tree.leaves(
            list(equation.params.values()), is_leaf=lambda leaf: hasattr(leaf, "eqns") or hasattr(leaf, "jaxpr")
        ):
            inner = getattr(inner, "jaxpr", inner)
            if hasattr(inner, "eqns"):
                yield from _equations(inner)


@pytest.mark.parametrize("core", CORES)
def test_parameters_optimizer_average_gradients_and_losses_stay_float32(waves: Dataset, core: str) -> None:
    # Muon works on the matrices of any core in the same way.
    optimizer = "muon" if core == "spectral" else "adamw"
    cfg = load(
        "configs/tiny.yaml",
        [*SMALL, f"operator.architecture_type={core}", "stages.operator.accum_steps=2", f"optimizer.name={optimizer}"],
    )
    model = build_model(cfg, waves.task, "operator")
    tx = build(cfg, waves)[1]
    batch = batch_at(waves, cfg, "operator", 0)
    state = jax.eval_shape(lambda key: init_state(model, tx, batch, key), jax.random.key(0))
    new, metrics = jax.eval_shape(make_train_step(model, tx, cfg), state, batch)
    kept = (
        new.params,
        new.opt_state,
        new.ema,
        {name: metrics[name] for name in ("loss", "relative", "h1", "grad_norm")},
    )
    assert {leaf.dtype for leaf in jax.tree.leaves(kept) if jnp.issubdtype(leaf.dtype, jnp.floating)} == {SINGLE}


@pytest.mark.parametrize("shape", [(2, 16, 4), (2, 8, 8, 4)])
def test_transforms_of_fourier_ask_for_all_bits_and_the_mixing_of_channels_does_not(shape: tuple[int, ...]) -> None:
    layer, x = SpectralMixing(3), jnp.ones(shape)
    params = jax.eval_shape(layer.init, jax.random.key(0), x)

    def precisions(function: Any) -> list[str]:
        return re.findall(r"dot_general.*?precision = \[(\w+),", jax.jit(function).lower(params, x).as_text())

    # One transform an axis, and back.
    once = ["HIGHEST"] * (len(shape) - 2)
    assert precisions(layer.apply) == [*once, "DEFAULT", *once]
    backward = precisions(jax.grad(lambda params, x: layer.apply(params, x).sum(), argnums=(0, 1)))
    # The gradient of the mixing is one product for the weights and one for the field.
    assert backward.count("DEFAULT") in (2, 3) and backward.count("HIGHEST") >= 2 * len(once)
