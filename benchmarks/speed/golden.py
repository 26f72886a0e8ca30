"""The step of UPS's published training shape by ups_jax's layers: batch 256, 32 tokens of 32, three levels of width 96.

The blocks here are conditioned, which the original's are not; that work is ours alone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float

from speed.counts import product_operations
from ups_jax.config import OperatorConfig, ParallelConfig, PdetConfig
from ups_jax.distributed.mesh import device_put_batch, device_put_replicated, make_mesh
from ups_jax.losses import StepContext
from ups_jax.models.batch import Batch
from ups_jax.models.layers import Dense
from ups_jax.models.operator import build_architecture
from ups_jax.training.gradients import make_gradient_fn

BATCH, TOKENS, LATENT = 256, 32, 32
WIDTH, DEPTHS, GROUP, HEADS, RATIO = 96, (1, 1, 1), 12, 6, 2.0
CLIP, RATE, DECAY = 1.0, 1e-3, 0.03
# A dispatched step of either framework gives something that can be waited for.
Step = Callable[[], Any]


class GoldenOperator(nn.Module):
    """Tokens -> tokens one time step later."""

    config: OperatorConfig

    @nn.compact
    def __call__(self, z: Float[Array, "b n d"], dt: Float[Array, "b 1"]) -> Float[Array, "b n d"]:
        core, width = build_architecture(self.config, (True,), jnp.float32)
        embedding = nn.silu(nn.Dense(LATENT)(dt))
        hidden = core(Dense(width)(z + nn.Dense(LATENT)(embedding)[:, None]), embedding)
        return z + Dense(LATENT)(hidden)


def latents() -> tuple[np.ndarray, np.ndarray]:
    """Tokens before and after a step, (256, 32, 32) each."""
    rng = np.random.default_rng(0)
    before = rng.normal(size=(BATCH, TOKENS, LATENT)).astype(np.float32)
    return before, before + 0.1 * rng.normal(size=before.shape).astype(np.float32)


def golden_step(micro_batches: int = 1) -> tuple[Step, int, Any]:
    """The jitted step as training has it (state donated, rows shared by all devices, and on each taken in so many
    groups), operations of its loss's products, and its parameters."""
    pdet = PdetConfig(hidden_dim=WIDTH, depths=DEPTHS, group_size=GROUP, num_heads=HEADS, mlp_ratio=RATIO)
    model = GoldenOperator(OperatorConfig(architecture_type="pdet_unet", pdet=pdet))
    before, after = latents()
    host = Batch(inputs=before, fields=after, dt=np.full((BATCH, 1), 0.1, np.float32), mask=np.ones(BATCH, np.float32))
    mesh = make_mesh(ParallelConfig())
    batch = device_put_batch(mesh, host)
    params = model.init(jax.random.key(0), *map(jnp.asarray, (before, host.dt)))["params"]
    tx = optax.chain(optax.clip_by_global_norm(CLIP), optax.adamw(RATE, weight_decay=DECAY))

    def loss(params: Any, batch: Batch, _key: Any, _context: StepContext) -> tuple[Array, dict[str, Array]]:
        change = model.apply({"params": params}, batch.inputs, batch.dt) - batch.fields
        return jnp.mean(change**2), {}

    gradients, key = make_gradient_fn(loss, micro_batches, mesh=mesh), jax.random.key(0)

    def step(state: tuple[Any, Any], batch: Any) -> tuple[tuple[Any, Any], Array]:
        params, opt_state = state
        (value, _), gradient = gradients(params, batch, key, StepContext())
        updates, opt_state = tx.update(gradient, opt_state, params)
        return (optax.apply_updates(params, updates), opt_state), value

    compiled = jax.jit(step, donate_argnums=0)
    carry = [device_put_replicated(mesh, (jax.tree.map(jnp.copy, params), tx.init(params)))]

    def run() -> Any:
        with jax.default_matmul_precision("highest"):
            carry[0], value = compiled(carry[0], batch)
        return carry[0], value

    return run, product_operations(loss, params, host, key, StepContext()), params
