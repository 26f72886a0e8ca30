"""Random `kill -9` over the four stages: does every run go on, and end in the bits of one that nobody killed?

    python tools/reliability/campaign.py --kills 100 --out campaign.json

Prints a line a trial and the sums. A trial trains one stage and is killed several times, then it ends. A kill comes at
a random moment between start and end by CPU time, start-up, compilation and the evaluation of the end among them, or,
two of three, up to a third of a second after the curve has come to a random step near the one that it was at, where it
meets steps, saves and validations.
Interrupted, it goes on with --out: finished trials stay in that file.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import runs
from end_state import differences, end_state

from ups_jax.core.files import write_atomically
from ups_jax.runs.directory import newest_step

STAGES = ("operator", "diffusion_residual", "consistency_distill", "steady_prior")
PARENTS = {"diffusion_residual": ("operator",), "consistency_distill": ("operator", "diffusion_residual")}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--each", type=int, default=5, help="kills a trial (default: 5)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("campaign.json"))
    args = parser.parse_args()
    trials: list[dict[str, Any]] = json.loads(args.out.read_text()) if args.out.exists() else []
    with tempfile.TemporaryDirectory() as folder:
        place = Place(Path(folder))
        while killed(trials) < args.kills:
            number = len(trials)
            trials.append(place.trial(STAGES[number % len(STAGES)], args.each, random.Random(f"{args.seed}/{number}")))
            write_atomically(args.out, json.dumps(trials, indent=1) + "\n")
            print(told(trials[-1]), flush=True)
    print(summed(trials))
    bad = [trial for trial in trials if trial["differences"] or trial["code"] or refused(trial) or lost(trial)]
    return 1 if bad else 0


@dataclass(frozen=True, kw_only=True)
class Moment:
    """When a start is killed: after so many CPU seconds, or `delay` seconds after the curve has come to a step."""

    cpu_seconds: float = math.inf
    step: float = math.inf
    delay: float = 0.0

    @classmethod
    def random(cls, rng: random.Random, seconds: float, reached: int) -> Moment:
        """`seconds` takes a whole run, whose curve is at step `reached` by now."""
        if rng.random() < 1 / 3:
            return cls(cpu_seconds=rng.uniform(0.05, 1.0) * seconds)
        # A start cuts the curve back to its checkpoint first, and comes to this step again.
        return cls(cpu_seconds=seconds, step=max(1, reached + rng.randint(-2, 8)), delay=rng.uniform(0.0, 0.3))

    def has_come(self, process: subprocess.Popen[str], run: Path, stage: str) -> bool:
        spent = _cpu_of(process)
        if math.isinf(self.step):
            return spent >= self.cpu_seconds
        # The curve of the start before is not this one's.
        return spent >= self.cpu_seconds or (runs.begun(process, run) and runs.reached(run, stage) >= self.step)

    def __str__(self) -> str:
        if math.isinf(self.step):
            return f"{self.cpu_seconds:.1f}s"
        return f"step{self.step:.0f}+{1000 * self.delay:.0f}ms"


class Place:
    """A folder with data, programs, and one uninterrupted run a stage."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        os.environ["JAX_COMPILATION_CACHE_DIR"] = str(folder / "programs")
        self._whole: dict[str, tuple[Path, dict[str, Any], float]] = {}

    def whole(self, stage: str) -> tuple[dict[str, Any], float]:
        """The end of an uninterrupted run of a stage, and the CPU seconds of one whose programs are compiled."""
        if stage not in self._whole:
            run, seconds = self.folder / f"whole-{stage}", 0.0
            for attempt in ("compiling", "compiled"):
                shutil.rmtree(run, ignore_errors=True)
                self._with_parents(stage, run)
                begin = _cpu_of_children()
                result = runs.run(self._line(stage, run))
                assert result.code == 0, (attempt, result.err)
                seconds = _cpu_of_children() - begin
            self._whole[stage] = run, end_state(run), seconds
        return self._whole[stage][1:]

    def trial(self, stage: str, kills: int, rng: random.Random) -> dict[str, Any]:
        """One run that is killed so many times."""
        expected, seconds = self.whole(stage)
        run, log = self.folder / "killed", []
        shutil.rmtree(run, ignore_errors=True)
        self._with_parents(stage, run)
        before = 0
        for _ in range(kills):
            moment = Moment.random(rng, seconds, runs.reached(run, stage))
            code, resumed = self._killed(stage, run, moment)
            log.append(
                {
                    "moment": str(moment),
                    "code": code,
                    "again": None if resumed is None else max(before - resumed, 0),
                    "reached": runs.reached(run, stage),
                    "saved": newest_step(run / "checkpoints" / stage),
                }
            )
            before = max(log[-1]["reached"], before if resumed is None else 0)
        last = runs.run(self._line(stage, run))
        again = max(before - last.resumed, 0) if last.resumed is not None else before
        mismatches = list(differences(expected, end_state(run))) if last.code == 0 else [last.last_line]
        return {"stage": stage, "kills": log, "code": last.code, "again": again, "differences": mismatches}

    def _killed(self, stage: str, run: Path, moment: Moment) -> tuple[int, int | None]:
        """Start a run and kill it at a moment; its exit code and the step that it had gone on from."""
        with tempfile.TemporaryFile("w+") as out:
            process = runs.start(self._line(stage, run), stdout=out)
            while process.poll() is None:
                if moment.has_come(process, run, stage):
                    time.sleep(moment.delay)
                    process.send_signal(signal.SIGKILL)
                    break
                time.sleep(0.01)
            _, err = process.communicate()
            out.seek(0)
            result = runs.Ended(code=process.returncode, out=out.read(), err=err)
        if result.code not in (0, -signal.SIGKILL):
            print(f"exit {result.code}: {result.last_line}", flush=True)
        return result.code, result.resumed

    def _with_parents(self, stage: str, run: Path) -> None:
        if stage in PARENTS:
            parent = PARENTS[stage][-1]
            self.whole(parent)
            shutil.copytree(self._whole[parent][0], run)

    def _line(self, stage: str, run: Path) -> list[str]:
        return runs.training(stage, run, self.folder / "data")


def told(trial: dict[str, Any]) -> str:
    moments = " ".join(f"{kill['moment']}@{kill['reached']}" for kill in trial["kills"])
    end = "same bits" if not trial["differences"] else f"DIFFERS: {trial['differences'][:3]}"
    return f"{trial['stage']:<20} killed at {moments}: exit {trial['code']}, {end}"


def killed(trials: list[dict[str, Any]]) -> int:
    """Kills that met a process: a start that had ended before is none."""
    return sum(kill["code"] == -signal.SIGKILL for trial in trials for kill in trial["kills"])


def refused(trial: dict[str, Any]) -> int:
    """Starts after a kill that ended in anything but their work or the next kill."""
    return sum(kill["code"] not in (0, -signal.SIGKILL) for kill in trial["kills"]) + (trial["code"] != 0)


def lost(trial: dict[str, Any]) -> int:
    """Steps that were done again though a save held them."""
    following = [*(kill["again"] for kill in trial["kills"][1:]), trial["again"]]
    pairs = zip(trial["kills"], following, strict=True)
    return sum(max(0, again - max(kill["reached"] - kill["saved"], 0)) for kill, again in pairs if again is not None)


def summed(trials: list[dict[str, Any]]) -> str:
    starts, real = sum(len(trial["kills"]) for trial in trials), killed(trials)
    again = [number for trial in trials for number in (trial["again"], *(kill["again"] for kill in trial["kills"]))]
    return (
        f"{real} kills in {len(trials)} runs (of {starts} starts that were to be killed {starts - real} had ended "
        f"before): {sum(refused(trial) for trial in trials)} starts refused, "
        f"{sum(bool(trial['differences']) for trial in trials)} runs that differ by a bit, "
        f"{sum(lost(trial) for trial in trials)} steps done again that were saved, at most "
        f"{max((number for number in again if number is not None), default=0)} in all (a save every {runs.EVERY})"
    )


def _cpu_of(process: subprocess.Popen[str]) -> float:
    """CPU seconds of a process so far."""
    try:
        fields = Path(f"/proc/{process.pid}/stat").read_text().rsplit(")", 1)[1].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _cpu_of_children() -> float:
    times = os.times()
    return times.children_user + times.children_system


if __name__ == "__main__":
    sys.exit(main())
