"""Ten steps of a stage on eight devices of this process, laid out in several ways: prints what they come to, in JSON.

Arguments: the configuration, the stage, the layouts (comma between them), a folder, then overrides. With FLOATS=64 in
the environment all that is float32 elsewhere is float64.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import replace
from pathlib import Path

import jax

jax.config.update("jax_num_cpu_devices", 8)
if os.environ.get("FLOATS") == "64":
    jax.config.update("jax_enable_x64", True)
    # Before flax and the library take it for the type of what they make.
    jax.numpy.float32 = jax.numpy.float64

from commands import CONFIGS  # noqa: E402

from ups_jax import batch_at, build, init_state, make_train_step, simulate  # noqa: E402
from ups_jax.config import Config, ParallelConfig, load  # noqa: E402
from ups_jax.data import Dataset, open_dataset  # noqa: E402
from ups_jax.distributed.mesh import abstract_with_sharding, device_put, device_put_batch, gather_to_local, make_mesh  # noqa: E402
from ups_jax.runs.checkpoint import Checkpoints  # noqa: E402
from ups_jax.trainer.parents import init_from_parents, untrained_parents  # noqa: E402
from ups_jax.training.run_length import make_plan  # noqa: E402

LAYOUTS = {"one": (1, 1), "data": (8, 1), "fsdp": (1, 8), "both": (2, 4)}


def ten_steps(cfg: Config, dataset: Dataset, stage: str):  # type: ignore[no-untyped-def]
    model, tx = build(cfg, dataset, stage=stage)
    mesh = make_mesh(cfg.parallel)
    first = batch_at(dataset, cfg, stage, 0)
    parents = untrained_parents(cfg, dataset.task, stage, first)
    state = init_state(model, tx, first, jax.random.key(cfg.seed), stage=stage, cfg=cfg)
    single_device = replace(state, rng=gather_to_local(mesh, state.rng))
    state = device_put(
        mesh, replace(init_from_parents(cfg, stage, model, dataset, parents, single_device), rng=state.rng)
    )
    an_epoch = make_plan(cfg, dataset, stage).steps_per_epoch
    step = make_train_step(model, tx, cfg, stage=stage, steps_per_epoch=an_epoch, parents=parents)
    losses = []
    for n in range(10):
        state, metrics = step(state, device_put_batch(mesh, batch_at(dataset, cfg, stage, n)))
        losses.append(float(metrics["loss"]))
    return mesh, state, losses


def bytes_of(tree) -> int:  # type: ignore[no-untyped-def]
    leaves = [leaf for leaf in jax.tree.leaves(tree) if not jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)]
    return sum(leaf.addressable_shards[0].data.nbytes for leaf in leaves)


def difference(one, other) -> float:  # type: ignore[no-untyped-def]
    return max(
        float(abs(a - b).max()) for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True) if a.size
    )


def main() -> None:
    config, stage, layouts, folder, *overrides = sys.argv[1:]
    cfg = load(CONFIGS / config, overrides)
    simulate.generate_missing(cfg)
    dataset = open_dataset(cfg)
    results: dict[str, dict[str, object]] = {}
    params = {}
    for name in layouts.split(","):
        data, fsdp = LAYOUTS[name]
        layout_cfg = replace(cfg, parallel=ParallelConfig(data=data, fsdp=fsdp))
        mesh, state, losses = ten_steps(layout_cfg, dataset, stage)
        params[name] = jax.device_get(gather_to_local(mesh, state.params))
        with Checkpoints(Path(folder) / name) as checkpoints:
            checkpoints.save(state, {}, validation=None)
            checkpoints.wait()
            # What was saved on one layout is read on another.
            elsewhere = {"one": "both", "both": "one"}.get(name, "one")
            data, fsdp = LAYOUTS[elsewhere]
            other = make_mesh(ParallelConfig(data=data, fsdp=fsdp))
            restored = checkpoints.restore(
                10, abstract_with_sharding(other, jax.eval_shape(lambda state: state, state))
            )
            same = difference(params[name], jax.device_get(gather_to_local(other, restored.params)))
        results[name] = {
            "losses": losses,
            "difference": difference(params["one"], params[name]),
            "bytes": bytes_of((state.params, state.opt_state, state.ema)),
            "restored": same,
        }
    json.dump(results, sys.stdout)


if __name__ == "__main__":
    main()
