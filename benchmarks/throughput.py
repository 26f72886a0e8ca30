"""How close to the hardware are training steps? Each row has two numbers first, the least operations and the least
bytes of its step, then its time beside this machine's ceilings, measured in the same run.

The golden row is UPS's published shape, beside PyTorch eager where the `bench` extra is installed. The others are the
whole step of training (augmentation, losses, clipping, optimizer, average) on random fields. A process a row.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from ups_jax.cli import runner

_RESULTS = Path(__file__).resolve().parent / "results" / "throughput.json"
_LARGE = ["optimizer.name=adamw", "data.tasks.0.symmetries=[]"]
_PDET = ["operator.architecture_type=pdet_stack", "operator.pdet={hidden_dim: 512, depth: 8, num_heads: 8}"]
# Name: (configuration, points along each axis, overrides).
_CASES: dict[str, tuple[str, int, list[str]]] = {
    "default": ("burgers1d", 128, []),
    "default 2D": ("ns2d", 64, []),
    "width 256": (
        "burgers1d",
        1024,
        [*_LARGE, "operator.spectral={hidden_dim: 256, depth: 6}", "training.batch_size=32"],
    ),
    "2D width 256": ("ns2d", 128, [*_LARGE, "operator.spectral={hidden_dim: 256, depth: 6}", "training.batch_size=16"]),
    "attention": ("burgers1d", 1024, [*_LARGE, *_PDET, "training.batch_size=32"]),
}
# XLA shares few of a CPU's operations among its cores; as devices each takes its rows of the batch, as many at a time
# as its own cache holds the activations of. By name: is a core a device, and the micro-batches of a device.
_GOLDEN = {
    "golden": (False, 1),
    "golden, a device a core": (True, 1),
    "golden, a device a core, 8 micro-batches": (True, 8),
}
_ON_CPU = (*_GOLDEN, "default", "default 2D")
_QUICK = ("golden", "default")


def main(argv: list[str] | None = None) -> int:
    parser = runner.make_parser(__doc__)
    names = [*_GOLDEN, *_CASES]
    parser.add_argument("--cases", nargs="+", choices=names, metavar="CASE", help=f"of {', '.join(names)}")
    parser.add_argument("--precision", nargs="+", choices=["fp32", "bf16"], help="on a GPU both, on a CPU fp32")
    parser.add_argument("--runs", type=runner.positive_int, default=15, help="timed runs, in turns (default: 15)")
    parser.add_argument("--quick", action="store_true", help="the golden and the default case, 3 runs")
    parser.add_argument("--out", type=Path, help="JSON (default: benchmarks/results/throughput[_quick].json)")
    parser.add_argument("--row", type=json.loads, help=argparse.SUPPRESS)
    return runner.run_command(parser, compare, argv)


def compare(args: argparse.Namespace) -> None:
    if args.row is not None:
        _print_rows(args.row)
        return
    from rich.console import Console

    from ups_jax.core.files import write_atomically

    runs = 3 if args.quick else args.runs
    out = args.out or (_RESULTS.with_stem("throughput_quick") if args.quick else _RESULTS)
    out.parent.mkdir(parents=True, exist_ok=True)
    about = _in_process({"case": "ceilings"})
    accelerated = about["platform"] != "cpu"
    cases = args.cases or (_QUICK if args.quick else ["golden", *_CASES] if accelerated else _ON_CPU)
    precisions = args.precision or (["fp32", "bf16"] if accelerated else ["fp32"])
    rows = []
    for case in cases:
        for precision in ["fp32"] if case in _GOLDEN else precisions:
            rows.append(_in_process({"case": case, "precision": precision, "runs": runs}))
            write_atomically(out, json.dumps({"about": about, "rows": rows}, indent=1) + "\n")
            print(f"done        {case} {precision}: {_milliseconds(rows[-1])}", flush=True)
    Console(width=None if Console().is_terminal else 140).print(_table(about, rows))


def _milliseconds(row: dict[str, Any]) -> str:
    return f"failed, {row['failed']}" if "failed" in row else f"{1e3 * statistics.median(row['seconds']):.4g} ms"


def _in_process(row: dict[str, Any]) -> dict[str, Any]:
    root = Path(__file__).resolve().parents[1]
    path = os.pathsep.join([str(root), *filter(None, [os.environ.get("PYTHONPATH")])])
    with tempfile.TemporaryDirectory() as cache:
        env = {"PYTHONPATH": path, "JAX_COMPILATION_CACHE_DIR": cache, "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
        if _GOLDEN.get(row["case"], (False, 1))[0]:
            cores = len(os.sched_getaffinity(0))
            env["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={cores}"
        command = [sys.executable, __file__, "--row", json.dumps(row)]
        result = subprocess.run(command, capture_output=True, text=True, env=os.environ | env)
    if result.returncode:
        return row | {"failed": result.stderr.strip().splitlines()[-1] if result.stderr.strip() else "no word"}
    return row | json.loads(result.stdout.splitlines()[-1])


def _print_rows(rows: dict[str, Any] | list[dict[str, Any]]) -> None:
    """Print one case as JSON, or several one after another, of which one that fails is a row with its error."""
    if isinstance(rows, dict):
        print(json.dumps(_made(**rows)))
        return
    for row in rows:
        try:
            measured = _made(**row)
        except Exception as error:
            measured = row | {"failed": f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]:.200}"}
        print(json.dumps(measured), flush=True)


def _made(*, case: str, **row: Any) -> dict[str, Any]:
    if case == "ceilings":
        return _ceilings_row()
    return _golden_row(_GOLDEN[case][1], **row) if case in _GOLDEN else _step_row(case=case, **row)


def _ceilings_row() -> dict[str, Any]:
    import jax
    from speed.ceilings import matrix_rates, memory_rate

    device = jax.devices()[0]
    return {
        "platform": device.platform,
        "device": device.device_kind,
        "devices": jax.device_count(),
        "processors": len(os.sched_getaffinity(0)),
        "load": os.getloadavg()[0],
        "jax": jax.__version__,
        "matrix": matrix_rates(),
        "memory": memory_rate(),
    }


def _golden_row(micro_batches: int, *, runs: int, **_row: Any) -> dict[str, Any]:
    """Ours and PyTorch's, in turns; a pause lets the other's threads come to rest."""
    import jax
    from speed.counts import least_bytes
    from speed.golden import BATCH, golden_step, latents

    begin = time.perf_counter()
    ours, operations, params = golden_step(micro_batches)
    jax.block_until_ready(ours())
    row = {"compile_seconds": time.perf_counter() - begin, "rows": BATCH, "operations": 3 * operations}
    row["bytes"] = least_bytes(params, latents())
    steps = {"seconds": lambda: jax.block_until_ready(ours())}
    try:
        import torch
        from speed.torch_golden import torch_step

        steps["peer_seconds"] = torch_step("cuda" if jax.default_backend() == "gpu" else "cpu")
        row["peer"] = f"PyTorch {torch.__version__}, eager, {torch.get_num_threads()} threads"
    except ModuleNotFoundError as error:
        print(f"no peer: {error.name} is not installed (pip install 'ups_jax[bench]')", file=sys.stderr)
    return row | _in_turns(steps, runs)


def _in_turns(steps: dict[str, Any], runs: int) -> dict[str, list[float]]:
    """Seconds a call of each step, in `runs` rounds of calls that take about a fifth of a second."""
    calls = {}
    for name, step in steps.items():
        step()
        begin = time.perf_counter()
        step()
        calls[name] = max(1, round(0.2 / (time.perf_counter() - begin)))
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(runs):
        for name, step in steps.items():
            time.sleep(0.1)
            begin = time.perf_counter()
            for _ in range(calls[name]):
                step()
            seconds[name].append((time.perf_counter() - begin) / calls[name])
    return seconds


def _step_row(*, case: str, precision: str, runs: int, rows: int | None = None, cached: bool = True) -> dict[str, Any]:
    import jax
    from speed.counts import least_bytes, product_operations
    from speed.random_task import random_step

    from ups_jax.trainer.dry_run import peak_bytes

    config, points, overrides = _CASES[case]
    overrides = [*overrides, *([] if rows is None else [f"training.batch_size={rows}"])]
    task = random_step(config, points, [*overrides, f"training.precision={precision}"])
    begin = time.perf_counter()
    compiled = task.train_step.compile(task.state, task.batch)
    cold = time.perf_counter() - begin
    again = None
    if cached:
        jax.clear_caches()
        begin = time.perf_counter()
        task.train_step.lower(task.state, task.batch).compile()
        again = time.perf_counter() - begin
    memory = compiled.compiled.memory_analysis()
    row = {
        "rows": task.rows,
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(task.state.params)),
        "operations": product_operations(task.train_step, task.state, task.batch),
        "bytes": least_bytes(task.state.params, task.batch),
        "compile_seconds": cold,
        "compile_cached_seconds": again,
        "peak_bytes": peak_bytes(memory) if memory is not None else None,
    }
    state = [task.state]

    def many(count: int) -> float:
        """Steps dispatched one after the other, each metric read a step late, as the loop of training does."""
        begin, before = time.perf_counter(), None
        for _ in range(count):
            state[0], metrics = compiled(state[0], task.batch)
            if before is not None:
                jax.device_get(before)
            before = metrics
        jax.block_until_ready(state[0])
        return (time.perf_counter() - begin) / count

    many(2)
    count = max(2, round(0.3 / many(2)))
    row["seconds"] = [many(count) for _ in range(runs)]
    stats = jax.devices()[0].memory_stats()
    return row | {"device_peak_bytes": stats["peak_bytes_in_use"] if stats else None}


def _table(about: dict[str, Any], rows: list[dict[str, Any]]) -> Any:
    from rich.table import Table

    rates = ", ".join(f"{kind} {rate / 1e12:.3g} TFLOP/s" for kind, rate in about["matrix"].items())
    table = Table(
        title=f"{about['device']}, {about['processors']} processors: products {rates}; "
        f"copy {about['memory'] / 1e9:.3g} GB/s"
    )
    for column in ("case", "", "GFLOP", "least MB", "compile s", "cached s", "peak MB", "ms", "rows/s", "of products"):
        table.add_column(column, justify="right")
    table.add_column("floor ms", justify="right")
    table.add_column("to PyTorch", justify="right")
    for row in rows:
        if "failed" in row:
            table.add_row(row["case"], row["precision"], f"failed: {row['failed'][:90]}")
            continue
        seconds = statistics.median(row["seconds"])
        kind = "bfloat16" if row["precision"] == "bf16" and "bfloat16" in about["matrix"] else "float32"
        least = max(row["operations"] / about["matrix"][kind], row["bytes"] / about["memory"])
        peer = row.get("peer_seconds")
        ratio = (
            statistics.median(a / b for a, b in zip(row["seconds"], peer, strict=True)) if peer is not None else None
        )
        table.add_row(
            row["case"],
            row["precision"],
            f"{row['operations'] / 1e9:.4g}",
            f"{row['bytes'] / 1e6:.4g}",
            f"{row['compile_seconds']:.3g}",
            _or_dash(row.get("compile_cached_seconds"), 1),
            _or_dash(row.get("device_peak_bytes") or row.get("peak_bytes"), 1e-6),
            f"{1e3 * seconds:.4g}",
            f"{row['rows'] / seconds:.4g}",
            f"{row['operations'] / seconds / about['matrix'][kind]:.1%}",
            f"{1e3 * least:.3g}",
            "-" if ratio is None else f"{ratio:.3f} ({1e3 * statistics.median(peer):.4g} ms)",
        )
    return table


def _or_dash(value: float | None, factor: float) -> str:
    return "-" if value is None else f"{factor * value:.4g}"


if __name__ == "__main__":
    sys.exit(main())
