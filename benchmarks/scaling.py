"""How work, memory and traffic of a training step grow, read from the compiled program: tokens, width, depth, batch,
devices. Nothing is trained; devices are simulated, one process a row."""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from ups_jax.cli import runner
from ups_jax.config.packaged import CONFIGS

_RESULTS = Path(__file__).resolve().parent / "results" / "scaling.json"
# What is varied: (name, points, width, depth, batch, devices along data, along fsdp). The default model but for that.
_BASE = {"points": 128, "width": 48, "depth": 3, "batch": 16, "data": 1, "fsdp": 1}
_STUDY: dict[str, list[dict[str, int]]] = {
    "tokens": [{"points": points} for points in (512, 2048, 8192, 32768)],
    "width": [{"width": width} for width in (48, 128, 256, 512)],
    "depth": [{"depth": depth} for depth in (3, 6, 12)],
    "batch": [{"batch": batch} for batch in (16, 64, 256)],
    "devices": [
        {"width": 512, "data": data, "fsdp": fsdp} for data, fsdp in ((1, 1), (8, 1), (1, 2), (1, 4), (1, 8), (2, 4))
    ],
}
_QUICK = {"tokens": _STUDY["tokens"][:2], "devices": [{"width": 64, "fsdp": 8}]}
_COLLECTIVE = re.compile(r"= (.*?) (all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute)(?:-start)?\(")
_ARRAY = re.compile(r"(f32|bf16|f16|s32|u32|pred)\[([\d,]*)\]")
_BYTES = {"f32": 4, "s32": 4, "u32": 4, "bf16": 2, "f16": 2, "pred": 1}


def main(argv: list[str] | None = None) -> int:
    parser = runner.make_parser(__doc__)
    parser.add_argument(
        "--studies", nargs="+", choices=[*_STUDY], default=[*_STUDY], help="what to vary (default: all)"
    )
    parser.add_argument("--time", action="store_true", help="run ten steps of each row on one device too")
    parser.add_argument("--quick", action="store_true", help="three small rows")
    parser.add_argument("--out", type=Path, help="JSON of the rows (default: benchmarks/results/scaling[_quick].json)")
    parser.add_argument("--row", type=json.loads, help=argparse.SUPPRESS)
    return runner.run_command(parser, study, argv)


def study(args: argparse.Namespace) -> None:
    if args.row is not None:
        print(json.dumps(measured(args.row)))
        return
    from rich.console import Console

    studies = _QUICK if args.quick else {name: _STUDY[name] for name in args.studies}
    rows: dict[str, list[dict[str, Any]]] = {}
    for name, cases in studies.items():
        rows[name] = [_in_process(_BASE | case, args.time and name != "devices") for case in cases]
        Console(width=140).print(_table(name, rows[name]))
    out = args.out or (_RESULTS.with_stem("scaling_quick") if args.quick else _RESULTS)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


def _in_process(row: dict[str, int], timed: bool) -> dict[str, Any]:
    """A row in a process of its own, which has as many devices as the row wants."""
    root = Path(__file__).resolve().parents[1]
    paths = os.pathsep.join([str(root), *filter(None, [os.environ.get("PYTHONPATH")])])
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={row['data'] * row['fsdp']}"
    result = subprocess.run(
        [sys.executable, __file__, "--row", json.dumps(row | {"timed": timed})],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": paths, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags},
    )
    if result.returncode:
        sys.exit(result.stderr)
    return row | json.loads(result.stdout.splitlines()[-1])


def measured(row: dict[str, Any]) -> dict[str, Any]:
    """Return the compiler's counts of a step, per device, and if `timed` the median seconds of ten steps."""
    import statistics
    import time

    import jax
    import numpy as np

    from ups_jax import batch_at, build, init_state, make_train_step
    from ups_jax.config import load
    from ups_jax.data import from_arrays
    from ups_jax.distributed.mesh import abstract_with_sharding, device_put_batch, make_mesh

    cfg = load(
        CONFIGS / "burgers1d.yaml",
        [
            f"operator.spectral.hidden_dim={row['width']}",
            f"operator.spectral.depth={row['depth']}",
            f"training.batch_size={row['batch']}",
            f"parallel.data={row['data']}",
            f"parallel.fsdp={row['fsdp']}",
            "optimizer.name=adamw",
            "stages.operator={steps: 100}",
            "data.tasks.0.coefficients={}",
        ],
    )
    points = row["points"]
    fields = np.random.default_rng(0).normal(size=(10, 3, points, 1)).astype(np.float32)
    dataset = from_arrays(cfg, fields - fields.mean(2, keepdims=True), 0.05, {}, (0.0,), (1.0 / points,))
    model, tx = build(cfg, dataset)
    mesh, batch = make_mesh(cfg.parallel), batch_at(dataset, cfg, "operator", 0)
    key = jax.random.key(0)
    like = abstract_with_sharding(mesh, jax.eval_shape(lambda key: init_state(model, tx, batch, key, cfg=cfg), key))
    step = make_train_step(model, tx, cfg)
    placed = device_put_batch(mesh, batch)
    compiled = step.lower(like, placed).compile()
    memory, costs = compiled.memory_analysis(), compiled.cost_analysis()
    arrays = (like.params, like.opt_state, like.ema)
    counts = {
        "parameters": sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(like.params)),
        "state_bytes": sum(_own_bytes(leaf) for leaf in jax.tree.leaves(arrays)),
        "whole_bytes": sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(arrays)),
        "temporary_bytes": memory.temp_size_in_bytes,
        "flops": costs["flops"],
        "bytes_accessed": costs["bytes accessed"],
        "moved_bytes": moved_bytes(compiled.as_text(), mesh.size),
        "least_moved_bytes": _least_moved(like.params, row["data"], row["fsdp"]),
    }
    if row["timed"]:
        state, seconds = init_state(model, tx, batch, key, cfg=cfg), []
        for _ in range(11):
            start = time.perf_counter()
            state, _ = jax.block_until_ready(step(state, placed))
            seconds.append(time.perf_counter() - start)
        counts["seconds"] = statistics.median(seconds[1:])
    return counts


def _own_bytes(leaf: Any) -> int:
    return math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize


def moved_bytes(program: str, devices: int) -> int:
    """Bytes that a device sends in the collectives of a compiled program, each round a ring of all its members."""
    total = 0.0
    for line in program.splitlines():
        match = _COLLECTIVE.search(line)
        if not match:
            continue
        size = sum(
            _BYTES[kind] * math.prod(int(number) for number in shape.split(",") if number)
            for kind, shape in _ARRAY.findall(match[1])
        )
        members = _members(line, devices)
        share = (members - 1) / members
        total += {"all-reduce": 2 * share, "all-gather": share, "reduce-scatter": members * share}.get(
            match[2], 1
        ) * size
    return round(total)


def _members(line: str, devices: int) -> int:
    """How many devices take part in a collective."""
    iota = re.search(r"replica_groups=\[(\d+),(\d+)\]", line)
    if iota:
        return int(iota[2])
    listed = re.search(r"replica_groups=\{\{([\d,]+)\}", line)
    return len(listed[1].split(",")) if listed else devices


def _least_moved(params: Any, data: int, fsdp: int) -> int:
    """Every parameter in pieces: gathered once, its gradient scattered once, the pieces added up over `data`."""
    import jax

    size = sum(4 * math.prod(leaf.shape) for leaf in jax.tree.leaves(params))
    return round(2 * size * (fsdp - 1) / fsdp + 2 * size / fsdp * (data - 1) / data)


def _table(name: str, rows: list[dict[str, Any]]) -> Any:
    from rich.table import Table

    table = Table(title=f"{name}: a step of the default model, on each device")
    varied = {"tokens": "points", "devices": "devices"}.get(name, name)
    columns = (
        varied,
        "parameters",
        "state MB",
        "of whole",
        "temporaries MB",
        "GFLOP",
        "moved MB",
        "to the least",
        "ms",
    )
    for column in columns:
        table.add_column(column, justify="right")
    for row in rows:
        least = row["least_moved_bytes"]
        table.add_row(
            f"{row['data']} x {row['fsdp']}" if name == "devices" else str(row[varied]),
            f"{row['parameters']:,}",
            f"{row['state_bytes'] / 1e6:.4g}",
            f"{row['state_bytes'] / row['whole_bytes']:.4f}",
            f"{row['temporary_bytes'] / 1e6:.4g}",
            f"{row['flops'] / 1e9:.4g}",
            f"{row['moved_bytes'] / 1e6:.4g}",
            f"{row['moved_bytes'] / least:.3f}" if least else "-",
            f"{1e3 * row['seconds']:.4g}" if "seconds" in row else "-",
        )
    return table


if __name__ == "__main__":
    sys.exit(main())
