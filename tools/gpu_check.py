"""Measure one GPU with ups_jax: its tests, the training command beside the bare step, throughput by batch size, a wide
model in bfloat16, memory, and a profile. Each section is a process of its own; a section that fails or takes too long
is a line of the table, and the others still run."""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
BENCHMARKS = ROOT / "benchmarks"
# Seconds for everything, and for one section.
TOTAL, LONGEST = 600, 200
# Windows in a batch.
BATCHES = (16, 64, 256, 1024, 4096)
WIDE = "width 256"


class SectionError(Exception):
    """A section ended with an error or took too long; its text is the line of the table."""


@dataclass(frozen=True)
class Check:
    """How the check runs: `dry` in small on a CPU, until `deadline` by the monotonic clock."""

    dry: bool
    deadline: float
    folder: Path

    def run(self, *command: str) -> str:
        """Return the output of a Python process; SectionError where it fails or does not end in time."""
        seconds = min(LONGEST, self.deadline - time.monotonic())
        if seconds <= 0:
            raise SectionError("not run: the ten minutes are over")
        environment = os.environ | {
            "PYTHONPATH": os.pathsep.join([str(ROOT), str(BENCHMARKS)]),
            "WANDB_MODE": "offline",
            "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
        }
        if self.dry:
            environment["JAX_PLATFORMS"] = "cpu"
        try:
            done = subprocess.run(
                [sys.executable, *command], capture_output=True, text=True, env=environment, cwd=ROOT, timeout=seconds
            )
        except subprocess.TimeoutExpired:
            raise SectionError(f"took more than {seconds:.0f} s") from None
        if done.returncode:
            lines = (done.stderr.strip() or done.stdout.strip() or "no output").splitlines()
            raise SectionError(f"exit code {done.returncode}: {lines[-1]:.200}")
        return done.stdout


def device(check: Check) -> dict[str, Any]:
    """Return the device, its number, and its rates of matrix products and of a copy."""
    row = json.loads(check.run(str(BENCHMARKS / "throughput.py"), "--row", '{"case": "ceilings"}').splitlines()[-1])
    if row["platform"] == "cpu" and not check.dry:
        raise SectionError("JAX finds no GPU; install ups_jax[cuda12], or give --dry")
    return row


def tests(check: Check) -> dict[str, Any]:
    """Return how many of the tests marked `gpu` passed; in a dry check how many there are."""
    collect = ["--collect-only"] if check.dry else []
    out = check.run("-m", "pytest", "-n0", "-q", "-m", "gpu", *collect, "tests/test_on_gpu.py")
    return {"tests": re.sub(r" in [\d.]+s.*", "", out.strip().splitlines()[-1])}


def command(check: Check) -> dict[str, Any]:
    """Return the milliseconds of a step in the training command and of the bare step, in turns."""
    out = check.folder / "goodput.json"
    length = ["--config", "tiny", "--quick"] if check.dry else ["--config", "burgers1d", "--rounds", "1"]
    seconds = [] if check.dry else ["--seconds", "24"]
    check.run(str(BENCHMARKS / "goodput.py"), *length, *seconds, "--out", str(out))
    (row,) = json.loads(out.read_text())["rounds"]
    return {
        "command_steps_per_second": 1 / row["loop"],
        "bare_steps_per_second": 1 / row["bare"],
        "goodput": row["bare"] / row["loop"],
    }


def batches(check: Check) -> dict[str, Any]:
    """Return the windows of `burgers1d` that a step takes a second, by the size of its batch."""
    sizes = BATCHES[:1] if check.dry else BATCHES
    return {str(size): _step(check, "default", size)["rows_per_second"] for size in sizes}


def wide(check: Check) -> dict[str, Any]:
    """Return the time of a step at width 256 in bfloat16, its share of the device's matrix rate, and its memory."""
    if check.dry:
        return _step(check, "default", 16)
    rates = device(check)["matrix"]
    row = _step(check, WIDE, None, "bf16")
    return row | {"model_flop_utilisation": row["operations_per_second"] / rates["bfloat16"]}


def profile(check: Check) -> dict[str, Any]:
    """Return the parts of a step that take most of its time, as the command `profile` prints them."""
    config = ["--config", "tiny"] if check.dry else []
    out = check.run(
        "-m", "ups_jax", "profile", *config, "--steps", "3", "--out", str(check.folder / "profile"),
        f"data.root={check.folder}",
    )  # fmt: skip
    rows = re.findall(r"^│ (.+?) +│ (.+?) +│ +([\d.]+) │ +([\d.]+%)", out, re.MULTILINE)
    return {f"{part} {direction}": f"{milliseconds} ms, {share}" for part, direction, milliseconds, share in rows[:5]}


SECTIONS: dict[str, Callable[[Check], dict[str, Any]]] = {
    "device": device,
    "tests": tests,
    "batches": batches,
    "wide": wide,
    "profile": profile,
    "command": command,
}


def _step(check: Check, case: str, rows: int | None, precision: str = "fp32") -> dict[str, Any]:
    """Return rates and memory of one case of benchmarks/throughput.py, with a batch of `rows`."""
    row = {"case": case, "precision": precision, "runs": 3} | ({} if rows is None else {"rows": rows})
    found = json.loads(check.run(str(BENCHMARKS / "throughput.py"), "--row", json.dumps(row)).splitlines()[-1])
    seconds = sorted(found["seconds"])[len(found["seconds"]) // 2]
    return {
        "milliseconds": 1e3 * seconds,
        "rows_per_second": found["rows"] / seconds,
        "operations_per_second": found["operations"] / seconds,
        "device_peak_bytes": found["device_peak_bytes"] or found["peak_bytes"],
    }


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dry", action="store_true", help="in small, on a CPU")
    parser.add_argument("--out", type=Path, default=Path("gpu_check.json"), help="JSON (default: %(default)s)")
    parser.add_argument("--sections", nargs="+", choices=SECTIONS, default=list(SECTIONS), help="only these")
    args = parser.parse_args(argv)
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        check = Check(dry=args.dry, deadline=time.monotonic() + TOTAL, folder=Path(folder))
        for name in args.sections:
            begin = time.monotonic()
            try:
                results[name] = SECTIONS[name](check)
            except SectionError as error:
                results[name] = {"failed": str(error)}
            results[name]["seconds"] = round(time.monotonic() - begin, 1)
            for key, value in results[name].items():
                print(f"{name:<10}{key:<40}{f'{value:.4g}' if isinstance(value, float) else value}", flush=True)
            args.out.write_text(json.dumps(results, indent=1) + "\n")
    print(f"written   {args.out}")
    return int(any("failed" in result for result in results.values()))


if __name__ == "__main__":
    sys.exit(main())
