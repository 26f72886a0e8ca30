"""Is every kind of data learned in three minutes? Each shipped configuration through `scripts/train.py` as a user
starts it, on one core, with its evaluation; the error of the test beside persistence's (the mean field's if steady).

Data is made before. Finished rows are kept: an interrupted table goes on.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ups_jax.cli import runner
from ups_jax.config.packaged import CONFIGS

_RESULTS = Path(__file__).resolve().parent / "results" / "every_task.json"


@dataclass(frozen=True, kw_only=True)
class _Case:
    """A configuration of configs/, whose stage is trained, and what kind of data it is."""

    config: str
    kind: str
    stage: str = "operator"


CASES = {
    "cfd1d": _Case(config="cfd1d", kind="1D compressible flow, three channels"),
    "swe2d": _Case(config="swe2d", kind="2D shallow water, walls"),
    "reaction_diffusion2d": _Case(config="reaction_diffusion2d", kind="2D reaction, half of the trajectories at rest"),
    "swe2d_well": _Case(config="swe2d_well", kind="the same as a file of The Well"),
    "darcy2d": _Case(config="darcy2d", kind="Darcy, steady", stage="steady_prior"),
    "advection_burgers": _Case(config="advection_burgers", kind="two tasks, one model"),
    "line_and_plane": _Case(config="line_and_plane", kind="1D and 2D, one model"),
    "advection_diffusion3d": _Case(config="advection_diffusion3d", kind="3D, 16 x 16 x 16"),
    "particles": _Case(config="particles", kind="particles in a flow"),
    "heat_mesh": _Case(config="heat_mesh", kind="heat on triangles"),
}


def main(argv: list[str] | None = None) -> int:
    parser = runner.make_parser(__doc__)
    parser.add_argument("--tasks", nargs="+", choices=CASES, default=[*CASES], metavar="TASK", help=", ".join(CASES))
    parser.add_argument("--seconds", type=runner.positive_int, default=90, help="of training at most (default: 90)")
    parser.add_argument("--data-root", default="data", metavar="DIR", help="built-in data (default: data)")
    parser.add_argument("--out", type=Path, default=_RESULTS, help="JSON (default: benchmarks/results/every_task.json)")
    parser.add_argument("--again", action="store_true", help="measure finished rows again")
    return runner.run_command(parser, compare, argv)


def compare(args: argparse.Namespace) -> int:
    from rich.console import Console

    from ups_jax.core.files import write_atomically

    rows: dict[str, Any] = json.loads(args.out.read_text()) if args.out.is_file() else {}
    wanted = [name for name in args.tasks if args.again or rows.get(name, {}).get("seconds") != args.seconds]
    failed = 0
    for name in wanted:
        row = measured(name, args.seconds, args.data_root)
        if row is None:
            failed += 1
            continue
        rows[name] = row
        args.out.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(args.out, json.dumps(rows, indent=1) + "\n")
    Console(width=None if Console().is_terminal else 160).print(_table({name: rows[name] for name in rows}))
    return 1 if failed else 0


def measured(name: str, seconds: float, data_root: str) -> dict[str, Any] | None:
    """The whole command from start to its evaluation: what it took and what it came to; None where it failed."""
    from comparison.jobs import environment

    case = CASES[name]
    overrides = [f"data.root={data_root}", f"stages.{case.stage}.max_seconds={seconds}", *_file_of(name, data_root)]
    _prepare(case, overrides)
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        script, config = (Path(__file__).resolve().parents[1] / "scripts" / "train.py", CONFIGS / f"{case.config}.yaml")
        line = [sys.executable, str(script), "--config", str(config), "--stage", case.stage, "--run-dir", str(run)]
        begin, before = time.monotonic(), _cpu_of_children()
        variables = {"JAX_COMPILATION_CACHE_DIR": str(Path(folder) / "cache"), "WANDB_MODE": "offline"}
        result = subprocess.run([*line, *overrides], capture_output=True, text=True, env=environment() | variables)
        wall, cpu = time.monotonic() - begin, _cpu_of_children() - before
        if result.returncode:
            said = [f"exit code {result.returncode}", *result.stderr.strip().splitlines()]
            print(f"failed      {name}: {said[-1]}", file=sys.stderr, flush=True)
            return None
        evaluation = json.loads((run / "evaluation" / "test.json").read_text())
        steps = json.loads((run / "run.json").read_text())["stages"][case.stage]["steps"]
    baseline = next(iter(evaluation["baselines"]))
    errors = {
        task: (_error(sections), _error(evaluation["baselines"][baseline][task]))
        for task, sections in evaluation["metrics"].items()
    }
    row = {"seconds": seconds, "steps": steps, "wall": wall, "cpu": cpu, "baseline": baseline, "errors": errors}
    summary = ", ".join(f"{task} {error:.3g} / {trivial:.3g}" for task, (error, trivial) in errors.items())
    print(f"done        {name}: {summary} in {cpu:.0f} CPU-s, {wall:.0f} s", flush=True)
    return row


def _error(sections: dict[str, Any]) -> float:
    return float(sections["rollout" if "rollout" in sections else "steady"]["nrmse"])


def _file_of(name: str, data_root: str) -> list[str]:
    """Return the overrides for data that the built-in generator does not write."""
    if name != "swe2d_well":
        return []
    return [f"data.tasks.0.path={Path(data_root) / 'swe2d_well.hdf5'}"]


def _prepare(case: _Case, overrides: list[str]) -> None:
    from comparison.well_file import write_well

    from ups_jax import simulate
    from ups_jax.config import load
    from ups_jax.data import data_path

    cfg = load(CONFIGS / f"{case.config}.yaml", overrides)
    wanted = cfg.data.tasks[0].path
    if case.config == "swe2d_well" and not Path(str(wanted)).exists():
        embedded = load(CONFIGS / "swe2d.yaml", overrides[:1])
        simulate.generate_missing(embedded)
        write_well(data_path(embedded.data, embedded.data.tasks[0]), Path(str(wanted)))
    simulate.generate_missing(cfg)


def _cpu_of_children() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def _table(rows: dict[str, Any]) -> Any:
    from rich.table import Table

    table = Table(title=f"one of {os.cpu_count()} cores, start-up, compilation and evaluation included")
    for column in ("configuration", "data", "steps", "CPU-s", "s", "task", "error", "baseline", "ratio"):
        table.add_column(column, justify="left" if column in ("configuration", "data", "task") else "right")
    for name, row in rows.items():
        for task, (error, baseline) in row["errors"].items():
            numbers = [str(row["steps"]), f"{row['cpu']:.0f}", f"{row['wall']:.0f}"]
            table.add_row(
                name,
                CASES[name].kind,
                *numbers,
                task,
                f"{error:.3g}",
                f"{baseline:.3g} ({row['baseline']})",
                f"{error / baseline:.3f}",
            )
    return table


if __name__ == "__main__":
    sys.exit(main())
