"""How much of the time does training spend in its step? The loop of `scripts/train.py` (reading HDF5, logging, W&B
offline, an asynchronous checkpoint every 30 seconds) beside the bare step on one batch, in turns, a process each.

Validations are left out: what they cost is for the user to choose, with `training.eval_every`.
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

from ups_jax import cli

_RESULTS = Path(__file__).resolve().parent / "results" / "goodput.json"
# The first save is due after them, and what is read, compiled and looked up at first lies before.
_WARM_STEPS = 200


def main(argv: list[str] | None = None) -> int:
    parser = cli.parser(__doc__, config="configs/burgers1d.yaml")
    parser.add_argument("--rounds", type=cli.positive, default=3, help="pairs of runs (default: 3)")
    parser.add_argument("--seconds", type=cli.positive, default=70, help="of a run of the loop (default: 70)")
    parser.add_argument("--quick", action="store_true", help="one pair of 8 seconds, a checkpoint every 3")
    parser.add_argument("--out", type=Path, help="JSON (default: benchmarks/results/goodput[_quick].json)")
    parser.add_argument("--bare", type=float, help=argparse.SUPPRESS)
    return cli.run(parser, measure, argv)


def measure(args: argparse.Namespace) -> None:
    from ups_jax.files import write_atomically

    if args.bare is not None:
        print(json.dumps(bare_seconds(args.config, args.overrides, args.bare)))
        return
    rounds, seconds, every = (1, 8, 3) if args.quick else (args.rounds, args.seconds, 30)
    rows = []
    for number in range(rounds):
        before = _bare(args, seconds / 4)
        loop = loop_seconds(args.config, args.overrides, seconds, every)
        after = _bare(args, seconds / 4)
        share = (before + after) / 2 / loop["seconds_per_step"]
        rows.append(loop | {"bare": [before, after], "goodput": share})
        print(
            f"round {number + 1}     {1e3 * loop['seconds_per_step']:.3f} ms a step with {loop['saves']} saves, bare "
            f"{1e3 * before:.3f} before and {1e3 * after:.3f} after: goodput {share:.1%}",
            flush=True,
        )
    print(f"goodput     {statistics.median(row['goodput'] for row in rows):.1%} (median of {rounds})")
    about = {"config": Path(args.config).stem, "overrides": args.overrides, "processors": len(os.sched_getaffinity(0))}
    about |= {"load": os.getloadavg()[0]}
    out = args.out or (_RESULTS.with_stem("goodput_quick") if args.quick else _RESULTS)
    write_atomically(out, json.dumps({"about": about, "rounds": rows}, indent=1) + "\n")


def _bare(args: argparse.Namespace, seconds: float) -> float:
    command = [sys.executable, __file__, "--config", args.config, "--bare", str(seconds), *args.overrides]
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode:
        sys.exit(result.stderr)
    return float(json.loads(result.stdout.splitlines()[-1]))


def bare_seconds(config: str, overrides: list[str], seconds: float) -> float:
    """Wall seconds of a step on batches that stay as they are, called as the loop does, over `seconds`."""
    import jax

    from ups_jax import simulate
    from ups_jax.compilation import enable_compilation_cache
    from ups_jax.config import load
    from ups_jax.data import open_dataset
    from ups_jax.training.build import build_model
    from ups_jax.training.trial import trial

    enable_compilation_cache()
    cfg = load(config, overrides)
    simulate.prepare(cfg)
    dataset = open_dataset(cfg)
    with trial(cfg, "operator", dataset, build_model(cfg, dataset.task, "operator")) as tried:
        state, batch = tried.begin(), next(tried.batches)
    begin, steps, before = 0.0, -_WARM_STEPS, None
    while steps < 1 or time.perf_counter() - begin < seconds:
        if steps >= 0 and not begin:
            jax.block_until_ready(state)
            begin, steps = time.perf_counter(), 0
        state, metrics = tried.train_step(state, batch)
        if before is not None:
            jax.device_get(before)
        before, steps = metrics, steps + tried.at_once
    jax.block_until_ready(state)
    return (time.perf_counter() - begin) / steps


def loop_seconds(config: str, overrides: list[str], seconds: float, every: float) -> dict[str, Any]:
    """Wall seconds of a step of the real loop, from its records as they are written, over `seconds`; then it is stopped
    with a signal."""
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryFile("w+") as messages:
        run = Path(folder) / "run"
        script = Path(__file__).resolve().parents[1] / "scripts" / "train.py"
        arguments = ["--stage", "operator", "--config", config, "--run-dir", str(run), *overrides]
        arguments += [
            f"checkpoint.every_seconds={every}",
            "stages.operator.steps=1000000",
            "training.eval_every=100000",
        ]
        process = subprocess.Popen(
            [sys.executable, str(script), *arguments],
            stdout=subprocess.DEVNULL,
            stderr=messages,
            env=os.environ | {"WANDB_MODE": "offline"},
        )
        records, first, last = run / "metrics.jsonl", None, None
        saved: set[str] = set()
        while process.poll() is None and (first is None or last is None or last[1] - first[1] < seconds):
            # A look costs the loop's cores something too.
            time.sleep(0.1)
            step = _newest_step(records)
            if step >= _WARM_STEPS and (last is None or step > last[0]):
                last = step, time.perf_counter()
                first = first or last
                saved |= {entry.name for entry in (run / "checkpoints" / "operator").glob("*") if entry.name.isdigit()}
        process.terminate()
        process.wait(timeout=120)
        if first is None or last is None or first == last:
            messages.seek(0)
            sys.exit(messages.read())
    return {
        "seconds_per_step": (last[1] - first[1]) / (last[0] - first[0]),
        "steps": last[0] - first[0],
        "saves": len(saved),
    }


def _newest_step(records: Path) -> int:
    """Of the last whole line; 0 where there is none."""
    if not records.exists():
        return 0
    with records.open("rb") as file:
        file.seek(max(0, records.stat().st_size - 4000))
        lines = file.read().split(b"\n")[:-1]
    return int(json.loads(lines[-1])["step"]) if len(lines) > 1 else 0


if __name__ == "__main__":
    sys.exit(main())
