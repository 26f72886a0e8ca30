"""Frames a second of a trained run and of the solver that made its data, at equal error: when does the model pay?

The solver is run on fewer points and with larger time steps than the data was made with, in float32, and each setting
is held against the stored frames as the model is. Both start from the stored first frame, on the same device.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from ups_jax.cli import runner

_RESULTS = Path(__file__).resolve().parent / "results" / "rollout.json"
# Of the data's own: points of the stored grid, which the solver needs not have, and substeps.
_POINTS, _SUBSTEPS = (0.5, 1, 2, 4), (1, 2, 3, 5, 10)
Frames = Float[np.ndarray, "b t *s c"]


@dataclass(frozen=True, kw_only=True)
class Way:
    """A way to the frames after the first one of some trajectories, by their numbers."""

    name: str
    frames: Callable[[np.ndarray], Frames]


def main(argv: list[str] | None = None) -> int:
    parser = runner.make_parser(__doc__)
    parser.add_argument(
        "run", type=Path, metavar="RUN", help="a run of a spectral task with a coefficient, such as burgers1d"
    )
    parser.add_argument("--batches", type=runner.positive_int, nargs="+", default=[1, 64], help="(default: 1 64)")
    parser.add_argument("--repeats", type=runner.positive_int, default=9, help="timings of each, in turns (default: 9)")
    parser.add_argument("--data-root", metavar="DIR", help="built-in data (default: that of the run)")
    parser.add_argument("--out", type=Path, default=_RESULTS, help="JSON (default: benchmarks/results/rollout.json)")
    return runner.run_command(parser, compare, argv)


def compare(args: argparse.Namespace) -> None:
    from ups_jax.core.errors import ConfigError
    from ups_jax.core.files import write_atomically
    from ups_jax.data import open_dataset
    from ups_jax.evaluation.evaluate_run import evaluation_config
    from ups_jax.inference.trained_model import load_task_model
    from ups_jax.metrics.field import nrmse
    from ups_jax.simulate.presets import Preset, get_preset
    from ups_jax.simulate.solvers import STEPPERS

    run = load_task_model(args.run)
    cfg = evaluation_config(args.run, [] if args.data_root is None else [f"data.root={args.data_root}"])
    task = cfg.data.tasks[0]
    preset = get_preset(task.name, task.preset) if task.name in STEPPERS else None
    if run.task.kind == "steady" or not isinstance(preset, Preset) or preset.coefficient is None:
        raise ConfigError(f"{args.run}: {run.task.name} is no task of the spectral solver with a coefficient")
    trajectories = open_dataset(cfg, run.task).trajectories("test")
    steps, truth = trajectories.fields.shape[1] - 1, trajectories.fields[:, run.model.context :]

    def model(rows: np.ndarray) -> Frames:
        return run.rollout_arrays(
            trajectories.fields[rows, : run.model.context],
            truth.shape[1],
            trajectories.cond[rows],
            trajectories.cond_mask[rows],
        )

    ways = [Way(name="model", frames=model)]
    for points in _POINTS:
        for substeps in _SUBSTEPS:
            solver = _solver(task.name, preset, int(points * preset.points), substeps, steps)
            name = f"solver, {int(points * preset.points)} points, {substeps} substeps"

            def solved(rows: np.ndarray, solver: Any = solver) -> Frames:
                return np.asarray(solver(trajectories.fields[rows, 0, :, 0], trajectories.cond[rows, 0]))[
                    :, run.model.context - 1 :
                ]

            ways.append(Way(name=name, frames=solved))
    everything = np.arange(len(trajectories.fields))
    # What blew up is no number, and no answer to anything.
    errors = {way.name: float(np.asarray(nrmse(way.frames(everything), truth)).mean()) for way in ways}
    rates = {way.name: dict[int, float]() for way in ways}
    for batch in args.batches:
        timed = _seconds(ways, np.resize(everything, batch), args.repeats)
        for name, seconds in timed.items():
            rates[name][batch] = batch * truth.shape[1] / seconds
    tell(errors, rates, args.batches)
    from ups_jax.evaluation.result import to_json_values

    rows = [{"way": way.name, "nrmse": errors[way.name], "frames_per_second": rates[way.name]} for way in ways]
    about = {
        "task": run.task.name,
        "trajectories": len(trajectories.fields),
        "frames": truth.shape[1],
        "repeats": args.repeats,
        "step": run.checkpoint.step,
    }
    write_atomically(args.out, json.dumps(to_json_values({"about": about, "rows": rows}), indent=1) + "\n")


def _solver(task: str, preset: Any, points: int, substeps: int, steps: int) -> Any:
    """(first frames at the stored points, coefficients) -> the frames after them there; compiled once a batch."""
    from dataclasses import replace

    import exponax
    import jax

    from ups_jax.simulate.solvers import STEPPERS

    coarse = replace(preset, solved_points=points, substeps=substeps)

    def one(first: Any, coefficient: Any) -> Any:
        step = exponax.RepeatedStepper(STEPPERS[task](coarse, coefficient), substeps)
        frames = exponax.rollout(step, steps)(exponax.map_between_resolutions(first[None], points))
        stored = jax.vmap(lambda frame: exponax.map_between_resolutions(frame, preset.points))(frames)
        return stored[:, 0, :, None]

    compiled = jax.jit(jax.vmap(one))

    def solved(first: Any, coefficient: Any) -> Any:
        with jax.numpy_rank_promotion("allow"):
            return compiled(first, coefficient)

    return solved


def _seconds(ways: list[Way], rows: np.ndarray, repeats: int) -> dict[str, float]:
    """Return each way's median seconds per rollout, the ways interleaved; the first, which compiles, is left out."""
    taken: dict[str, list[float]] = {way.name: [] for way in ways}
    for repeat in range(repeats + 1):
        for way in ways:
            begin = time.perf_counter()
            way.frames(rows)
            if repeat:
                taken[way.name].append(time.perf_counter() - begin)
    return {name: statistics.median(seconds) for name, seconds in taken.items()}


def tell(errors: dict[str, float], rates: dict[str, dict[int, float]], batches: list[int]) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(width=120)
    table = Table("way", "rollout nRMSE", *(f"frames/s, batch {batch}" for batch in batches))
    for name, error in errors.items():
        table.add_row(name, f"{error:.2e}", *(f"{rates[name][batch]:.3g}" for batch in batches))
    console.print(table)
    for batch in batches:
        console.print(
            f"batch {batch}: {crossing(errors, {name: way_rates[batch] for name, way_rates in rates.items()})}"
        )


def crossing(errors: dict[str, float], rates: dict[str, float]) -> str:
    """Compare the solver with the model at the model's error, and at its speed."""
    solvers = [name for name in errors if name != "model"]
    as_good = [name for name in solvers if errors[name] <= errors["model"]]
    as_fast = [name for name in solvers if rates[name] >= rates["model"] and np.isfinite(errors[name])]
    sentences = []
    if as_good:
        best = max(as_good, key=lambda name: rates[name])
        sentences.append(
            f"at the model's error {errors['model']:.2e} the fastest is {best} ({errors[best]:.2e}), "
            f"{rates[best] / rates['model']:.2g} times as fast as the model"
        )
    else:
        sentences.append(f"no setting of the solver has the model's error {errors['model']:.2e}")
    if as_fast:
        best = min(as_fast, key=lambda name: errors[name])
        sentences.append(f"of those as fast as the model the best is {best}, with {errors[best]:.2e}")
    else:
        sentences.append("no setting of the solver is as fast as the model")
    return "; ".join(sentences)


if __name__ == "__main__":
    sys.exit(main())
