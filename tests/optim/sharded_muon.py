"""Muon on eight devices of one process and on one of them: prints how far apart the parameters end. Run by a test."""

from __future__ import annotations

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from ups_jax.config import OptimizerConfig, SchedulerConfig, StageConfig
from ups_jax.optim import build_optimizer

jax.config.update("jax_num_cpu_devices", 8)

LAYOUT = {
    "Dense_0": {"kernel": PartitionSpec(None, "data"), "bias": PartitionSpec("data")},
    "layers": {"kernel": PartitionSpec("data")},
    "tall": {"kernel": PartitionSpec("data")},
    "write": {"kernel": PartitionSpec()},
}
SHAPES = {
    "Dense_0": {"kernel": (16, 32), "bias": (32,)},
    "layers": {"kernel": (8, 32, 32)},
    "tall": {"kernel": (32, 16)},
    "write": {"kernel": (16, 4)},
}


def loss(params, batch):  # type: ignore[no-untyped-def]
    x = jnp.tanh(batch["x"] @ params["Dense_0"]["kernel"] + params["Dense_0"]["bias"][None])
    x, _ = jax.lax.scan(lambda h, kernel: (h + jnp.tanh(h @ kernel), None), x, params["layers"]["kernel"])
    return jnp.mean(jnp.square(x @ params["tall"]["kernel"] @ params["write"]["kernel"] - batch["y"]))


def trained(tx, params, batches):  # type: ignore[no-untyped-def]
    @jax.jit
    def step(params, state, batch):  # type: ignore[no-untyped-def]
        updates, state = tx.update(jax.grad(loss)(params, batch), state, params)
        return optax.apply_updates(params, updates), state

    state = jax.jit(tx.init)(params)
    for batch in batches:
        params, state = step(params, state, batch)
    return params


def main() -> None:
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda shape: (0.2 * rng.normal(size=shape)).astype(np.float32), SHAPES, is_leaf=lambda x: isinstance(x, tuple)
    )
    batches = [
        {"x": rng.normal(size=(16, 16)).astype(np.float32), "y": rng.normal(size=(16, 4)).astype(np.float32)}
        for _ in range(3)
    ]
    stage = StageConfig(
        optimizer=OptimizerConfig(name="muon", lr=0.02, weight_decay=0.1),
        scheduler=SchedulerConfig(name="constant", warmup=0.0),
    )
    tx = build_optimizer(stage, 3, 1)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    place = jax.tree.map(lambda spec: NamedSharding(mesh, spec), LAYOUT)
    rows = NamedSharding(mesh, PartitionSpec("data"))
    several = trained(tx, jax.device_put(params, place), [jax.device_put(batch, rows) for batch in batches])
    one = trained(tx, jax.device_put(params, jax.devices()[0]), batches)
    difference = jax.tree.map(lambda a, b: float(np.abs(np.asarray(a) - np.asarray(b)).max()), several, one)
    moved = jax.tree.map(lambda a, b: float(np.abs(np.asarray(a) - b).max()), one, params)
    kernel = several["layers"]["kernel"]
    print(
        json.dumps(
            {
                "difference": max(jax.tree.leaves(difference)),
                "moved": min(jax.tree.leaves(moved)),
                "devices": len(kernel.sharding.device_set),
                "shard": kernel.addressable_shards[0].data.shape,
            }
        )
    )


if __name__ == "__main__":
    main()
