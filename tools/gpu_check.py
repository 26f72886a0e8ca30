"""Measure one GPU with ups_jax: the training command beside the bare step, throughput by batch size, a wide model in
bfloat16, memory, a profile, and the tests marked `gpu`. Each section is a process of its own with a limit of its own; a
section that fails or takes too long is a line of the table, and the others still run. Without a GPU the check stops."""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
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
THROUGHPUT = str(BENCHMARKS / "throughput.py")
# Seconds that a process has to end after SIGTERM, and the lines of its output that the JSON keeps where it failed.
GRACE, KEPT_LINES = 5, 40
# Windows in a batch.
BATCHES = (16, 64, 256, 1024, 4096)


class SectionError(Exception):
    """A section failed or took too long; the arguments are its line of the table and the end of its output."""


@dataclass(frozen=True)
class Check:
    """The settings of one check.

    Attributes:
        dry: Whether every section runs on a CPU and on the smallest case.
        deadline: Time by the monotonic clock at which the whole check ends.
        folder: Folder for temporary files, among them the compilation cache that all sections share.
    """

    dry: bool
    deadline: float
    folder: Path

    def run(self, seconds: float, *command: str) -> str:
        """Return the output of a Python process; SectionError where it fails or runs longer than `seconds`.

        A dry check has no limits of its sections, because they are for a GPU.
        """
        left = self.deadline - time.monotonic()
        seconds = left if self.dry else min(seconds, left)
        if seconds <= 0:
            raise SectionError("not run: no time is left", "")
        inherited = filter(None, [os.environ.get("PYTHONPATH")])
        environment = os.environ | {
            "PYTHONPATH": os.pathsep.join([str(ROOT), str(BENCHMARKS), *inherited]),
            "JAX_COMPILATION_CACHE_DIR": str(self.folder / "compiled"),
            "WANDB_MODE": "offline",
            "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
        }
        if self.dry:
            environment["JAX_PLATFORMS"] = "cpu"
        out, err = self.folder / "stdout", self.folder / "stderr"
        with out.open("w") as stdout, err.open("w") as stderr:
            process = subprocess.Popen(
                [sys.executable, *command],
                stdout=stdout,
                stderr=stderr,
                env=environment,
                cwd=ROOT,
                start_new_session=True,
            )
            try:
                code = process.wait(seconds)
            except subprocess.TimeoutExpired:
                _end(process)
                raise SectionError(f"took more than {seconds:.0f} s", _tail(out, err)) from None
        if code:
            raise SectionError(f"exit code {code}: {_cause(_tail(out, err)):.200}", _tail(out, err))
        return out.read_text()


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a process and all that it started."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
            process.wait(GRACE)
        except (ProcessLookupError, subprocess.TimeoutExpired):
            continue


def _tail(*files: Path) -> str:
    """Return the last lines of the files, which need not be valid UTF-8."""
    return "\n".join(
        line for file in files for line in file.read_text(errors="replace").strip().splitlines()[-KEPT_LINES:]
    )


def _cause(output: str) -> str:
    """Return the last line that names an error, or else the last line."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    named = [line for line in lines if re.match(r"([\w.]*(Error|Exception)\b|error:|E  )", line)]
    return (named or lines or ["no output"])[-1]


def device(check: Check) -> dict[str, Any]:
    """Return the device and its rates of matrix products and of a copy; SectionError where it is no GPU."""
    platform = check.run(60, "-c", "import jax; print(jax.devices()[0].platform)").split()[-1]
    if platform == "cpu" and not check.dry:
        raise SectionError("JAX finds no GPU; install ups_jax[cuda12], or give --dry", "")
    row: dict[str, Any] = json.loads(check.run(60, THROUGHPUT, "--row", '{"case": "ceilings"}').splitlines()[-1])
    return row


def command(check: Check) -> dict[str, Any]:
    """Return the steps per second of the training loop and of the bare step, measured interleaved.

    The loop reads, logs and saves; validation is left out (`benchmarks/goodput.py`).
    """
    out = check.folder / "goodput.json"
    length = ["--config", "tiny", "--quick"] if check.dry else ["--config", "burgers1d", "--rounds", "1"]
    seconds = [] if check.dry else ["--seconds", "40"]
    data = f"data.root={check.folder}"
    check.run(180, str(BENCHMARKS / "goodput.py"), *length, *seconds, "--out", str(out), data)
    (row,) = json.loads(out.read_text())["rounds"]
    return {
        "command_steps_per_second": 1 / row["loop"],
        "bare_steps_per_second": 1 / row["bare"],
        "goodput": row["bare"] / row["loop"],
    }


def batches(check: Check) -> dict[str, Any]:
    """Return rows per second and peak memory of a step of `burgers1d`, for each batch size that fits."""
    sizes = BATCHES[:2] if check.dry else BATCHES
    return {
        str(size): {"rows_per_second": row["rows_per_second"], "peak_bytes": row["peak_bytes"]}
        if "failed" not in row
        else row
        for size, row in zip(sizes, _steps(check, 180, [{"rows": size} for size in sizes]), strict=False)
    }


def wide(check: Check) -> dict[str, Any]:
    """Return the time and memory of a step at width 256 in bfloat16, and its FLOP/s over the measured matrix rate."""
    case = {"case": "default", "rows": 16} if check.dry else {"case": "width 256"}
    (row,) = _steps(check, 150, [case | {"precision": "bf16"}])
    if "failed" in row:
        raise SectionError(row["failed"], "")
    rates = json.loads(check.run(60, THROUGHPUT, "--row", '{"case": "ceilings"}').splitlines()[-1])["matrix"]
    return row | {"model_flop_utilisation": row["operations_per_second"] / rates.get("bfloat16", rates["float32"])}


def profile(check: Check) -> dict[str, Any]:
    """Return the parts of a step that take most of its time, as the command `profile` prints them."""
    config = ["--config", "tiny" if check.dry else "burgers1d"]
    trace = ["--steps", "3", "--out", str(check.folder / "profile")]
    out = check.run(90, "-m", "ups_jax", "profile", *config, *trace, f"data.root={check.folder}")
    rows = re.findall(r"^│ (.+?) +│ (.+?) +│ +([\d.]+) │ +([\d.]+%)", out, re.MULTILINE)
    if not rows:
        raise SectionError("the command printed no table of parts", out)
    return {f"{part} {direction}": f"{milliseconds} ms, {share}" for part, direction, milliseconds, share in rows[:5]}


def tests(check: Check) -> dict[str, Any]:
    """Return how many of the tests marked `gpu` passed and failed; in a dry check how many there are."""
    collect = ["--collect-only"] if check.dry else []
    try:
        out = check.run(300, "-m", "pytest", "-n0", "-q", "-m", "gpu", *collect, "tests/test_on_gpu.py")
    except SectionError as error:
        counts = re.findall(r"^=* ?(\d+ (?:passed|failed).*)$", error.args[1], re.MULTILINE)
        raise SectionError(counts[-1] if counts else error.args[0], error.args[1]) from None
    return {"tests": re.sub(r" in [\d.]+s.*", "", out.strip().splitlines()[-1])}


# The tests come last: what they show is known from a CPU in part, the other figures are not.
SECTIONS: dict[str, Callable[[Check], dict[str, Any]]] = {
    "device": device,
    "command": command,
    "batches": batches,
    "wide": wide,
    "profile": profile,
    "tests": tests,
}


def _steps(check: Check, seconds: float, cases: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return rates and memory of cases of benchmarks/throughput.py, measured one after another in one process.

    A case that failed has the key `failed`; cases that were not reached in time are missing at the end.
    """
    rows = [{"case": "default", "precision": "fp32", "runs": 3, "cached": False} | case for case in cases]
    try:
        out = check.run(seconds, THROUGHPUT, "--row", json.dumps(rows))
    except SectionError:
        out = (check.folder / "stdout").read_text()
        if not out.strip():
            raise
    measured = [json.loads(line) for line in out.splitlines() if line.startswith("{") and line.endswith("}")]
    return [_rates(row) for row in measured]


def _rates(row: dict[str, Any]) -> dict[str, Any]:
    if "failed" in row:
        return {"failed": row["failed"]}
    seconds = sorted(row["seconds"])[len(row["seconds"]) // 2]
    return {
        "milliseconds": 1e3 * seconds,
        "rows_per_second": row["rows"] / seconds,
        "operations_per_second": row["operations"] / seconds,
        "peak_bytes": row["device_peak_bytes"] or row["peak_bytes"],
    }


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dry", action="store_true", help="in small, on a CPU")
    parser.add_argument("--seconds", type=float, default=540, help="limit of the whole check (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("gpu_check.json"), help="JSON (default: %(default)s)")
    parser.add_argument("--sections", nargs="+", choices=SECTIONS, default=list(SECTIONS), help="only these")
    args = parser.parse_args(argv)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        check = Check(dry=args.dry, deadline=time.monotonic() + args.seconds, folder=Path(folder))
        for name in args.sections:
            begin = time.monotonic()
            try:
                results[name] = SECTIONS[name](check)
            except SectionError as error:
                results[name] = {"failed": error.args[0], "output": error.args[1]}
            except Exception as error:
                # Whatever one section prints, the other sections are still worth their minutes.
                results[name] = {"failed": f"{type(error).__name__}: {error}"}
            results[name]["seconds"] = round(time.monotonic() - begin, 1)
            for key, value in results[name].items():
                if key != "output":
                    print(f"{name:<10}{key:<40}{f'{value:.4g}' if isinstance(value, float) else value}", flush=True)
            args.out.write_text(json.dumps(results, indent=1) + "\n")
            if name == "device" and "failed" in results[name]:
                break
    print(f"written   {args.out}")
    return int(any("failed" in result for result in results.values()))


if __name__ == "__main__":
    sys.exit(main())
