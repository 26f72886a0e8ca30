"""Does reading hold the step back? Time per step of training from HDF5, from shards and from a file that was read into
memory, each beside the same step on one batch that stays in memory; all in turns, in one process.

Wall time is what counts where the machine is free; the processor's time of all threads is what others cannot disturb.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ups_jax.cli import runner
from ups_jax.config.packaged import CONFIGS

if TYPE_CHECKING:
    from ups_jax.trainer.timing import StepTrial

_RESULTS = Path(__file__).resolve().parent / "results" / "input_pipeline.json"
# Seconds a step of each run, by what was measured.
Runs = dict[str, list[float]]
_HELD = "held batch"
_WAYS = {
    "read into memory": ("hdf5", "data.loader.memory_gib=64"),
    "HDF5": ("hdf5", "data.loader.memory_gib=0"),
    "shards": ("shards", "data.loader.memory_gib=0"),
}


def main(argv: list[str] | None = None) -> int:
    parser = runner.make_parser(__doc__, config="configs/burgers1d.yaml")
    parser.add_argument("--rounds", type=runner.positive_int, help="paired runs (default: 21)")
    parser.add_argument("--steps", type=runner.positive_int, help="steps of a run (default: 256)")
    parser.add_argument("--quick", action="store_true", help="the tiny task, 5 runs of 40 steps")
    parser.add_argument("--out", type=Path, help="JSON (default: benchmarks/results/input_pipeline[_quick].json)")
    return runner.run_command(parser, measure, argv)


def measure(args: argparse.Namespace) -> None:
    import jax
    from rich.console import Console
    from rich.table import Table

    from ups_jax.core.files import write_atomically

    rounds, steps = (args.rounds or 5, args.steps or 40) if args.quick else (args.rounds or 21, args.steps or 256)
    config = str(CONFIGS / "tiny.yaml") if args.quick else args.config
    with tempfile.TemporaryDirectory() as folder:
        seconds = in_turns(config, args.overrides, Path(folder), rounds, steps)
    rows = {
        way: {what: _row(runs[what], seconds[_HELD][what]) for what in ("wall", "processor")}
        for way, runs in seconds.items()
    }
    table = Table(title=f"{Path(config).stem}: {rounds} runs of {steps} steps each, in turns", title_justify="left")
    table.add_column("batches from", no_wrap=True)
    for heading in ("ms a step", "to the held batch", "processor ms", "to the held batch"):
        table.add_column(heading, justify="right", no_wrap=True)
    for way, row in rows.items():
        table.add_row(way, *_cells(row["wall"]), *_cells(row["processor"]))
    Console(width=None if Console().is_terminal else 120).print(table)
    about = {"config": Path(config).stem, "overrides": args.overrides, "rounds": rounds, "steps": steps}
    about |= {"device": jax.devices()[0].device_kind, "processor": platform.processor() or platform.machine()}
    # Above the number of processors the wall times are those of a machine that does other things as well.
    about |= {"processors": os.cpu_count(), "load": os.getloadavg()[0]}
    out = args.out or (_RESULTS.with_stem("input_pipeline_quick") if args.quick else _RESULTS)
    write_atomically(out, json.dumps({"about": about, "rows": rows}, indent=1) + "\n")


def in_turns(config: str, overrides: list[str], folder: Path, rounds: int, steps: int) -> dict[str, Runs]:
    """Seconds a step of every run of every way, `wall` and `processor`, the ways one after the other in each round."""
    from ups_jax import simulate
    from ups_jax.config import load
    from ups_jax.core.xla import enable_compilation_cache
    from ups_jax.data import data_path, open_dataset, training_batches
    from ups_jax.data.batches import MAX_GROUPED_BATCHES
    from ups_jax.data.shards.writer import ShardSizes, convert_to_shards
    from ups_jax.trainer.timing import open_step_trial
    from ups_jax.training.build import build_model

    enable_compilation_cache()
    cfg = load(config, overrides)
    simulate.generate_missing(cfg)
    file = data_path(cfg.data, cfg.data.tasks[0])
    convert_to_shards(file, folder / "shards", ShardSizes())
    paths = {"hdf5": file, "shards": folder / "shards"}
    seconds: dict[str, Runs] = {way: {"wall": [], "processor": []} for way in (_HELD, *_WAYS)}
    with ExitStack() as stack:
        batches: dict[str, Iterator[Any]] = {}
        for way, (kind, key) in _WAYS.items():
            way_cfg = load(config, [*overrides, f"data.tasks.0.path={paths[kind]}", key])
            dataset = open_dataset(way_cfg)
            batches[way] = stack.enter_context(training_batches(dataset, way_cfg, "operator"))
        first_batch = next(batches["HDF5"])
        batches[_HELD] = iter(lambda: first_batch, None)
        tried = stack.enter_context(
            open_step_trial(cfg, "operator", dataset, build_model(cfg, dataset.task, "operator"))
        )
        # A reader has read ahead while the others ran; that is used up before the clock starts.
        ahead = cfg.data.loader.buffer + 2 * MAX_GROUPED_BATCHES + 2 * tried.steps_per_call
        steps = -(-steps // tried.steps_per_call) * tried.steps_per_call
        state = tried.new_state()
        for number in range(-1, rounds):
            ways = [*batches]
            for way in ways[number % len(ways) :] + ways[: number % len(ways)]:
                state = _run(tried, state, batches[way], ahead)
                start = time.perf_counter(), time.process_time()
                state = _run(tried, state, batches[way], steps)
                if number >= 0:
                    seconds[way]["wall"].append((time.perf_counter() - start[0]) / steps)
                    seconds[way]["processor"].append((time.process_time() - start[1]) / steps)
    return seconds


def _run(tried: StepTrial, state: Any, batches: Iterator[Any], steps: int) -> Any:
    """The training loop's way: batches are fetched and their call dispatched before the call before is waited for."""
    import jax

    from ups_jax.config import ParallelConfig
    from ups_jax.distributed.mesh import make_mesh
    from ups_jax.training.multi_step import make_batch_transfer

    give, before = make_batch_transfer(make_mesh(ParallelConfig()), tried.steps_per_call), None
    for _ in range(steps // tried.steps_per_call):
        state, metrics = tried.train_step(state, give([next(batches) for _ in range(tried.steps_per_call)]))
        if before is not None:
            jax.device_get(before)
        before = metrics
    return jax.block_until_ready(state)


def _cells(row: dict[str, Any]) -> tuple[str, str]:
    low, high = row["quartiles"]
    return f"{row['milliseconds']:.2f}", f"{row['ratio']:.3f} ({low:.3f} to {high:.3f})"


def _row(taken: list[float], baseline: list[float]) -> dict[str, Any]:
    ratios = [one / other for one, other in zip(taken, baseline, strict=True)]
    quartiles = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else [ratios[0]] * 3
    return {
        "milliseconds": 1e3 * statistics.median(taken),
        "ratio": statistics.median(ratios),
        "quartiles": [quartiles[0], quartiles[2]],
        "seconds": taken,
    }


if __name__ == "__main__":
    sys.exit(main())
