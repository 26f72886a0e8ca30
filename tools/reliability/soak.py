"""Train for a while under random faults, and watch what it costs and whether anything grows.

    python tools/reliability/soak.py --minutes 30

One run of the operator, started again after every fault: `kill -9`, SIGTERM, a full disk, NaN batches, memory that runs
out. Prints a line every start, then the steps and the time that were lost, and how resident memory and open files of
the longest-lived processes have grown over the second half of their samples, which begin once some saves lie behind:
a thread's heap, tens of megabytes, is made when it first needs one, and what leaks does not end.
Exit code 1 where a start lost more than a save apart, or the processes grew.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import places
import runs
from faults import at

_STEPS, _SHORTEST = 10_000_000, 30.0
# Steps between two saves, and what may come and go within a process: buffers of logs, a checkpoint on its way.
_EVERY, _MEGABYTES, _FILES = 1024, 12.5, 2.0
# Saves of a start before its first sample: on a busy machine they come late.
_WARM_SAVES = 3


@dataclass(kw_only=True)
class Life:
    """One start: the fault that ended it, seconds before its first step and in all, its samples, and its steps;
    `resumed` is None where it began or ended ahead of its loop."""

    fault: str
    code: int = 0
    seconds: float = 0.0
    until_first_step: float = 0.0
    resumed: int | None = None
    reached: int = 0
    megabytes: list[float] = field(default_factory=list)
    files: list[int] = field(default_factory=list)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--longest", type=float, default=300.0, help="seconds of a start at most (default: 300)")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    rng, lives = random.Random(args.seed), list[Life]()
    end = time.monotonic() + 60 * args.minutes
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(folder / "programs"))
        (folder / "token").touch()
        # A start of less is stopped before it can be told how.
        while time.monotonic() < end - _SHORTEST:
            fault = rng.choice(list(FAULTS))
            seconds = min(rng.uniform(0.2, 1.0) * args.longest, end - time.monotonic())
            lives.append(lived(folder, fault, seconds, lives[-1].reached if lives else 0))
            print(told(lives[-1]), flush=True)
    print(summed(lives))
    for line in (problems := complaints(lives)):
        print(f"error: {line}", file=sys.stderr)
    return 1 if problems else 0


def _none(_: Path, __: int) -> list[dict[str, Any]]:
    return []


def _disk_full(folder: Path, _: int) -> list[dict[str, Any]]:
    return at(places.RECORD, "full_file", 40)(folder)


def _nan_batches(folder: Path, step: int) -> list[dict[str, Any]]:
    return at(places.READ_BATCHES, "nan_fields", batches=[step + 9, step + 30])(folder)


def _out_of_memory(folder: Path, _: int) -> list[dict[str, Any]]:
    """Once in all, or one row would soon be too much."""
    token = str(folder / "token")
    return at(places.COMPILATION, "out_of_memory", token=token)(folder)


FAULTS: dict[str, Callable[[Path, int], list[dict[str, Any]]]] = {
    "kill -9": _none,
    "SIGTERM": _none,
    "disk full": _disk_full,
    "NaN batches": _nan_batches,
    "out of memory": _out_of_memory,
}


def lived(folder: Path, fault: str, seconds: float, before: int) -> Life:
    """One start in the run of `folder`, which its fault or the end of its time ends."""
    run, life = folder / "run", Life(fault=fault)
    # A window of five losses holds for the tens of steps of the other faults, not for thousands at a constant rate.
    overrides = (
        f"stages.operator.steps={_STEPS}",
        "logging.every_steps=10",
        "scheduler.name=constant",
        "training.spike_sigma=null",
    )
    line = runs.training("operator", run, folder / "data", "training.eval_every=16", *overrides)
    begin = time.monotonic()
    seen, saves = saved(run), 0
    with tempfile.TemporaryFile("w+") as out:
        process = runs.start(line, FAULTS[fault](folder, before), stdout=out)
        curve = run / "metrics.jsonl"
        while process.poll() is None and time.monotonic() - begin < seconds:
            time.sleep(0.5)
            if not life.until_first_step:
                if curve.exists() and curve.stat().st_mtime > time.time() - 1 and runs.begun(process, run):
                    life.until_first_step = time.monotonic() - begin
                continue
            if (now := saved(run)) - seen:
                seen, saves = now, saves + 1
            if saves >= _WARM_SAVES:
                sample(process, life)
        if process.poll() is None:
            process.send_signal(signal.SIGKILL if fault == "kill -9" else signal.SIGTERM)
        _, err = process.communicate()
        out.seek(0)
        ended = runs.Ended(code=process.returncode, out=out.read(), err=err)
    life.code, life.seconds = ended.code, time.monotonic() - begin
    life.resumed, life.reached = ended.resumed, runs.reached(run, "operator")
    if life.code not in (-signal.SIGKILL, 75, 7):
        raise SystemExit(f"{fault}: exit code {life.code}: {ended.err}")
    return life


def saved(run: Path) -> set[str]:
    """The checkpoints of the operator that are there."""
    return {item.name for item in (run / "checkpoints" / "operator").glob("*") if item.name.isdigit()}


def sample(process: subprocess.Popen[str], life: Life) -> None:
    """Resident memory and open files of a living process."""
    try:
        pages = int(Path(f"/proc/{process.pid}/statm").read_text().split()[1])
        files = len(os.listdir(f"/proc/{process.pid}/fd"))
    except OSError:
        return
    life.megabytes.append(pages * os.sysconf("SC_PAGE_SIZE") / 1e6)
    life.files.append(files)


def told(life: Life) -> str:
    places = (0, len(life.megabytes) // 2, -1)
    memory = (
        " to ".join(f"{life.megabytes[place]:.0f}" for place in places) + " MB" if life.megabytes else "not measured"
    )
    steps = f"from step {life.resumed or 0} to {life.reached}"
    return f"{life.fault:<14} {life.seconds:5.0f} s, {steps}, exit {life.code}, {memory}"


def lost_steps(lives: list[Life]) -> list[int]:
    """Steps that were done again by each start that went on."""
    losses, before = list[int](), 0
    for life in lives:
        if life.resumed is not None:
            losses.append(max(before - life.resumed, 0))
        before = life.reached
    return losses


def growths(lives: list[Life]) -> tuple[list[float], list[float]]:
    """By how many megabytes and open files each start with 20 s of samples has grown in their second half."""
    long = [life for life in lives if len(life.megabytes) >= 40]
    return [growth(life.megabytes) for life in long], [growth([float(count) for count in life.files]) for life in long]


def complaints(lives: list[Life]) -> list[str]:
    """Return the complaints about a soak. A single start may grow by chance; growth of the median is a leak."""
    memory, files = growths(lives)
    problems = []
    if (most := max(lost_steps(lives), default=0)) > _EVERY:
        problems.append(f"{most} steps were lost at once, with a save every {_EVERY}")
    if not memory:
        problems.append(
            f"no start lived for {_WARM_SAVES} saves and 20 s: give it more --minutes, or a longer --longest"
        )
    elif (grown := statistics.median(memory)) > _MEGABYTES:
        problems.append(f"memory grew by {grown:.0f} MB in the median start")
    elif (grown := statistics.median(files)) > _FILES:
        problems.append(f"open files grew by {grown:.0f} in the median start")
    return problems


def summed(lives: list[Life]) -> str:
    lost = lost_steps(lives)
    seconds = sum(life.seconds for life in lives)
    waiting = sum(life.until_first_step or life.seconds for life in lives)
    lines = [
        f"{len(lives)} starts in {seconds / 60:.1f} minutes, {lives[-1].reached} steps",
        f"steps lost: {sum(lost)} in all, {max(lost, default=0)} at once (a save every {_EVERY} steps); "
        f"time before a first step: {waiting:.0f} s in all, {waiting / len(lives):.0f} s a start",
    ]
    memory, files = growths(lives)
    if memory:
        lines.append(
            f"of {len(memory)} starts with 20 s after {_WARM_SAVES} saves: memory grew by {max(memory):.1f} MB at "
            f"most in the second half, median {statistics.median(memory):.1f}; open files by {max(files):.0f} at most"
        )
    return "\n".join(lines)


def growth(samples: list[float]) -> float:
    """From the middle tenth of the samples to the last."""
    tenth, middle = max(1, len(samples) // 10), len(samples) // 2
    return statistics.median(samples[-tenth:]) - statistics.median(samples[middle - tenth // 2 :][:tenth])


if __name__ == "__main__":
    sys.exit(main())
