"""How much of the time does training spend in its step? The loop of `scripts/train.py` (reading HDF5, logging, W&B
offline, an asynchronous checkpoint every 30 seconds) beside the bare step on one batch: two processes take turns of a
few seconds, in which the other one is stopped.

Validations are left out: what they cost is for the user to choose, with `training.eval_every`.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

from ups_jax.cli import runner

_RESULTS = Path(__file__).resolve().parent / "results" / "goodput.json"
# The first save is due after them, and what is read, compiled and looked up at first lies before.
_WARM_STEPS = 200


def main(argv: list[str] | None = None) -> int:
    parser = runner.make_parser(__doc__, config="configs/burgers1d.yaml")
    parser.add_argument("--rounds", type=runner.positive_int, default=3, help="pairs of processes (default: 3)")
    parser.add_argument("--seconds", type=runner.positive_int, default=100, help="of each of a pair (default: 100)")
    parser.add_argument("--quick", action="store_true", help="one pair, 8 seconds each, a checkpoint every 3")
    parser.add_argument("--out", type=Path, help="JSON (default: benchmarks/results/goodput[_quick].json)")
    parser.add_argument("--bare", type=Path, help=argparse.SUPPRESS)
    return runner.run_command(parser, measure, argv)


def measure(args: argparse.Namespace) -> None:
    from ups_jax.core.files import write_atomically

    # Both processes are killed on the way out.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    if args.bare is not None:
        run_bare(args.config, args.overrides, args.bare)
    rounds, seconds, slice_seconds, every = (1, 8, 1, 3) if args.quick else (args.rounds, args.seconds, 4, 30)
    rows = []
    for number in range(rounds):
        rows.append(in_turns(args.config, args.overrides, seconds, slice_seconds, every))
        loop, bare = rows[-1]["loop"], rows[-1]["bare"]
        print(
            f"round {number + 1}     {1e3 * loop:.3f} ms a step with {rows[-1]['saves']} saves, bare {1e3 * bare:.3f}: "
            f"goodput {bare / loop:.1%}",
            flush=True,
        )
    print(f"goodput     {statistics.median(row['bare'] / row['loop'] for row in rows):.1%} (median of {rounds})")
    about = {"config": Path(args.config).stem, "overrides": args.overrides, "processors": len(os.sched_getaffinity(0))}
    about |= {"load": os.getloadavg()[0]}
    out = args.out or (_RESULTS.with_stem("goodput_quick") if args.quick else _RESULTS)
    write_atomically(out, json.dumps({"about": about, "rounds": rows}, indent=1) + "\n")


def in_turns(
    config: str, overrides: list[str], seconds: float, slice_seconds: float, every: float
) -> dict[str, float | int]:
    """Seconds of a step of the loop and of the bare one, both processes alive at once and one of them stopped: whatever
    else the machine does falls on both. `seconds` and `every`, of the saves, are of a process's own time."""
    script = Path(__file__).resolve().parents[1] / "scripts" / "train.py"
    with tempfile.TemporaryDirectory() as folder:
        run, counted = Path(folder) / "run", Path(folder) / "bare.jsonl"
        loop_command = [str(script), "--stage", "operator", "--config", config, "--run-dir", str(run), *overrides]
        # Half of the time on the wall it stands still.
        loop_command += [f"checkpoint.every_seconds={2 * every}"]
        loop_command += ["stages.operator.steps=1000000", "training.eval_every=100000"]
        bare_command = [__file__, "--config", config, "--bare", str(counted), *overrides]
        with _process(loop_command) as loop, _process(bare_command) as bare:
            turns = {"loop": _Turn(loop, run / "metrics.jsonl"), "bare": _Turn(bare, counted)}
            for turn in turns.values():
                turn.until_warm()
            saved: set[str] = set()
            for number in range(max(1, round(seconds / slice_seconds))):
                # What one leaves to the kernel, such as a checkpoint's blocks, is written in the other's next turn.
                for turn in [*turns.values()][:: -1 if number % 2 else 1]:
                    turn.go(slice_seconds)
                saved |= {entry.name for entry in (run / "checkpoints/operator").glob("*") if entry.name.isdigit()}
        measured = {name: turn.seconds_per_step() for name, turn in turns.items()}
    return measured | {"saves": len(saved), "steps": turns["loop"].newest - turns["loop"].first}


class _Turn:
    """A process that is stopped but for its turns, and how far it has come by the records it writes."""

    def __init__(self, process: subprocess.Popen[bytes], records: Path) -> None:
        self.process, self.records = process, records
        self.first = self.newest = 0
        self.seconds = 0.0

    def until_warm(self) -> None:
        while (step := _newest_step(self.records)) < _WARM_STEPS:
            self._alive()
            time.sleep(0.1)
        self._signal(signal.SIGSTOP)
        self.first = self.newest = step

    def go(self, seconds: float) -> None:
        begin = time.perf_counter()
        self._signal(signal.SIGCONT)
        time.sleep(seconds)
        self._signal(signal.SIGSTOP)
        self.seconds += time.perf_counter() - begin
        self._alive()
        self.newest = _newest_step(self.records)

    def seconds_per_step(self) -> float:
        """Over all turns so far."""
        if self.newest == self.first:
            sys.exit(f"{self.records.name}: no step was made in the time; give more with --seconds")
        return self.seconds / (self.newest - self.first)

    def _alive(self) -> None:
        if self.process.poll() is not None:
            sys.exit("a measured process ended before its time")

    def _signal(self, number: signal.Signals) -> None:
        _signal_all(self.process.pid, number)


@contextlib.contextmanager
def _process(command: list[str]) -> Iterator[subprocess.Popen[bytes]]:
    """A Python process, which is killed at the end with all that it has started."""
    process = subprocess.Popen(
        [sys.executable, *command], stdout=subprocess.DEVNULL, env=os.environ | {"WANDB_MODE": "offline"}
    )
    try:
        yield process
    finally:
        _signal_all(process.pid, signal.SIGKILL)
        process.wait()


def _signal_all(process: int, number: signal.Signals) -> None:
    """To the process and its descendants; W&B's service is a group of its own."""
    for target in [process, *_descendants(process)]:
        with contextlib.suppress(ProcessLookupError):
            os.kill(target, number)


def _descendants(process: int) -> list[int]:
    children: list[int] = []
    for listed in Path(f"/proc/{process}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            children += map(int, listed.read_text().split())
    return [*children, *(below for child in children for below in _descendants(child))]


def run_bare(config: str, overrides: list[str], counted: Path) -> NoReturn:
    """Steps on batches that stay as they are, called as the loop does, until it is killed; tells its step as the loop
    does, in a file."""
    import jax

    from ups_jax import simulate
    from ups_jax.config import load
    from ups_jax.core.xla import enable_compilation_cache
    from ups_jax.data import open_dataset
    from ups_jax.trainer.timing import open_step_trial
    from ups_jax.training.build import build_model

    enable_compilation_cache()
    cfg = load(config, overrides)
    simulate.generate_missing(cfg)
    dataset = open_dataset(cfg)
    with open_step_trial(cfg, "operator", dataset, build_model(cfg, dataset.task, "operator")) as tried:
        state, batch = tried.new_state(), next(tried.batches)
    step, before = 0, None
    with counted.open("a", buffering=1) as file:
        while True:
            state, metrics = tried.train_step(state, batch)
            if before is not None:
                jax.device_get(before)
                file.write(json.dumps({"step": step}) + "\n")
            before, step = metrics, step + tried.steps_per_call


def _newest_step(records: Path) -> int:
    """Return the step of the last complete line, or 0 without one."""
    if not records.exists():
        return 0
    with records.open("rb") as file:
        file.seek(max(0, records.stat().st_size - 4000))
        lines = file.read().split(b"\n")[:-1]
    return int(json.loads(lines[-1])["step"]) if len(lines) > 1 else 0


if __name__ == "__main__":
    sys.exit(main())
