"""Measure the first and second opening of a large HDF5 file, and the peak memory of training and evaluation from disk.

The file is written first, so that it may still be in the system's page cache: the time of the first opening is that of
reading from memory, checking and hashing. Each measurement is a process of its own, with an empty folder for caches.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

from ups_jax.cli import runner

_RESULTS = Path(__file__).resolve().parent / "results" / "opening.json"
_PROGRAM = """
import sys, time
from ups_jax.config import load
from ups_jax.data import open_dataset
cfg = load(sys.argv[1], sys.argv[2:])
start, processor_start = time.perf_counter(), time.process_time()
open_dataset(cfg)
print(time.perf_counter() - start, time.process_time() - processor_start)
"""


def main(argv: list[str] | None = None) -> int:
    parser = runner.make_parser(__doc__, config="configs/ns2d.yaml")
    parser.add_argument("--trajectories", type=runner.positive_int, default=300, help="default: %(default)s")
    parser.add_argument("--frames", type=runner.positive_int, default=41, help="default: %(default)s")
    parser.add_argument("--points", type=runner.positive_int, default=256, help="along x and y (default: %(default)s)")
    parser.add_argument("--steps", type=runner.positive_int, default=3, help="training steps (default: %(default)s)")
    parser.add_argument("--folder", type=Path, help="folder of the file and the run (default: a temporary folder)")
    parser.add_argument("--out", type=Path, default=_RESULTS, help="JSON file of the result (default: %(default)s)")
    return runner.run_command(parser, measure, argv)


def measure(args: argparse.Namespace) -> None:
    """Write the file, run the measurements, print them and write them as JSON."""
    from ups_jax.core.files import write_atomically

    with tempfile.TemporaryDirectory(dir=args.folder) as name:
        folder = Path(name)
        path = folder / "waves.hdf5"
        write_file(path, args.trajectories, args.frames, args.points)
        gigabytes = path.stat().st_size / 1e9
        environment = os.environ | {"XDG_CACHE_HOME": str(folder / "cache"), "OMP_NUM_THREADS": "1"}
        overrides = [
            f"data.tasks=[{{name: waves2d, path: {path}, channels: [w], periodic: [x, y]}}]",
            "data.loader.memory_gib=0",
            f"stages.operator.steps={args.steps}",
            "logging.wandb.enabled=false",
            *args.overrides,
        ]
        rows: dict[str, dict[str, float]] = {}
        for opening in ("first opening", "second opening"):
            output, row = run([sys.executable, "-c", _PROGRAM, args.config, *overrides], environment)
            row["seconds"], row["processor_seconds"] = map(float, output.split())
            rows[opening] = row | {"gigabytes_per_second": gigabytes / row["processor_seconds"]}
        command = [sys.executable, "-m", "ups_jax"]
        train = [*command, "train", "--config", args.config, "--stage", "operator", "--run-dir", str(folder / "run")]
        rows["training"] = run([*train, *overrides, "evaluation.enabled=false"], environment)[1]
        evaluate = [*command, "evaluate", "--run-dir", str(folder / "run")]
        rows["evaluation"] = run([*evaluate, "evaluation.plots=false"], environment)[1]
    for label, row in rows.items():
        print(f"{label:<16}" + ", ".join(f"{key} {value:.3g}" for key, value in row.items()))
    about = {
        "gigabytes": gigabytes,
        "shape": [args.trajectories, args.frames, args.points, args.points],
        "config": Path(args.config).stem,
        "overrides": args.overrides,
        "processor": platform.processor() or platform.machine(),
        "load": os.getloadavg()[0],
    }
    write_atomically(args.out, json.dumps({"about": about, "rows": rows}, indent=1) + "\n")


def write_file(path: Path, trajectories: int, frames: int, points: int) -> None:
    """Write travelling waves in PDEBench's layout: a dataset `tensor` (trajectories, frames, points, points)."""
    import h5py
    import numpy as np

    generator = np.random.default_rng(0)
    x = np.arange(points, dtype=np.float32) / points
    times = 0.05 * np.arange(frames + 1, dtype=np.float32)
    with h5py.File(path, "w") as file:
        tensor = file.create_dataset("tensor", (trajectories, frames, points, points), np.float32)
        file["t-coordinate"], file["x-coordinate"], file["y-coordinate"] = times, x, x
        for trajectory in range(trajectories):
            fields = np.zeros((frames, points, points), np.float32)
            for _ in range(3):
                (k, m), phase = generator.integers(1, 4, 2), generator.uniform(0, 2 * np.pi)
                angle = 2 * np.pi * (k * (x - times[:frames, None]))[:, :, None] + 2 * np.pi * m * x + phase
                fields += np.sin(angle, dtype=np.float32)
            tensor[trajectory] = fields


def run(command: list[str], environment: Mapping[str, str]) -> tuple[str, dict[str, float]]:
    """Run a command, and return its output and its wall time and largest resident memory."""
    start = time.perf_counter()
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen(command, env=dict(environment), stdout=output, stderr=subprocess.STDOUT)
        # wait4 gives the memory of this process alone; `resource` has only the largest of all.
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        output.seek(0)
        text = output.read()
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with exit code {process.returncode}: {text}")
    return text, {"wall_seconds": time.perf_counter() - start, "peak_gigabytes": usage.ru_maxrss * 1024 / 1e9}


if __name__ == "__main__":
    sys.exit(main())
