"""Compare grids that no patch divides with the nearest grids that patches divide.

The first table is the time of a training step on 101, 53 x 31 and 129 x 129 points against 100, 52 x 32 and 128 x 128
points; the two grids of a pair take turns. With --accuracy, burgers1d is trained for the same steps on 100 and on 101
points, and the second table is the test error.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ups_jax.cli import runner

_RESULTS = Path(__file__).resolve().parent / "results" / "odd_grids.json"
# A grid that patches of 4 points do not divide, the nearest one that they divide, and whether the axes are periodic.
_PAIRS = (
    ((101,), (100,), True),
    ((53, 31), (52, 32), True),
    ((129, 129), (128, 128), True),
    ((129, 129), (128, 128), False),
)
_ACCURACY_POINTS = (100, 101)


def main(argv: list[str] | None = None) -> int:
    parser = runner.make_parser(__doc__)
    parser.add_argument("--rounds", type=runner.positive_int, default=7, help="timed turns of each grid (default: 7)")
    parser.add_argument("--accuracy", action="store_true", help="train burgers1d on both grids instead")
    parser.add_argument("--seeds", type=runner.positive_int, default=3, help="seeds 0, 1, .. (default: 3)")
    parser.add_argument("--steps", type=runner.positive_int, default=6400, help="of each training (default: 6400)")
    parser.add_argument("--data-root", default="data", metavar="DIR", help="built-in data (default: data)")
    parser.add_argument("--out", type=Path, default=_RESULTS, help="JSON (default: benchmarks/results/odd_grids.json)")
    return runner.run_command(parser, measure, argv)


def measure(args: argparse.Namespace) -> None:
    from ups_jax.core.files import write_atomically

    results: dict[str, Any] = json.loads(args.out.read_text()) if args.out.is_file() else {}
    if not args.accuracy:
        results["cost"] = []
    for odd, even, periodic in () if args.accuracy else _PAIRS:
        row = cost_row(odd, even, periodic, args.rounds)
        results["cost"].append(row)
        print(
            f"cost        {row['grid']} against {row['nearest']}, {'periodic' if periodic else 'walls'}: "
            f"{row['milliseconds']:.3g} against {row['nearest_milliseconds']:.3g} ms a step, "
            f"ratio {row['ratio']:.3f}",
            flush=True,
        )
    if args.accuracy:
        rows = results["accuracy"] = []
        for seed in range(args.seeds):
            for points in _ACCURACY_POINTS:
                rows.append(accuracy_row(points, seed, args.steps, args.data_root))
                print(f"accuracy    {rows[-1]}", flush=True)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(args.out, json.dumps(results, indent=1) + "\n")


def cost_row(odd: tuple[int, ...], even: tuple[int, ...], periodic: bool, rounds: int) -> dict[str, Any]:
    """Milliseconds of a step on two grids: the medians of turns that alternate, whatever else the machine does."""
    turns = [timed_steps(shape, periodic) for shape in (odd, even)]
    seconds: list[list[float]] = [[], []]
    for _ in range(rounds):
        for turn, measured in zip(turns, seconds, strict=True):
            measured.append(turn())
    ratios = [first / second for first, second in zip(*seconds, strict=True)]
    names = [" x ".join(map(str, shape)) for shape in (odd, even)]
    medians = [1e3 * statistics.median(measured) for measured in seconds]
    return {
        "grid": names[0],
        "nearest": names[1],
        "periodic": periodic,
        "milliseconds": medians[0],
        "nearest_milliseconds": medians[1],
        "ratio": statistics.median(ratios),
    }


def timed_steps(shape: tuple[int, ...], periodic: bool) -> Callable[[], float]:
    """A function that makes a few training steps on noise and returns the seconds of one."""
    import jax

    from ups_jax import from_arrays
    from ups_jax.config import Config, DataConfig, LatentConfig, TaskConfig
    from ups_jax.trainer.timing import open_step_trial
    from ups_jax.training.build import build_model

    axes = ("x", "y", "z")[: len(shape)]
    task = TaskConfig(name="noise", channels=("u",), periodic=axes if periodic else ())
    cfg = Config(data=DataConfig(tasks=(task,)), latent=LatentConfig(patch_size=4))
    cfg = replace(cfg, training=replace(cfg.training, batch_size=8))
    cfg = replace(cfg, stages=replace(cfg.stages, operator=replace(cfg.stages.operator, batch_size=8)))
    fields = np.random.default_rng(0).normal(size=(16, 4, *shape)).astype(np.float32)
    dataset = from_arrays(cfg, fields, 0.1, origin=(0.0,) * len(shape), spacing=(1.0,) * len(shape))
    model = build_model(cfg, dataset.task, "operator")
    with open_step_trial(cfg, "operator", dataset, model, steps_per_call=1) as trial:
        state, batch = trial.new_state(), next(trial.batches)
    # About as long on every grid.
    steps = max(2, 20_000 // int(np.prod(shape)))

    def turn() -> float:
        nonlocal state
        start = time.perf_counter()
        for _ in range(steps):
            state, _ = jax.block_until_ready(trial.train_step(state, batch))
        return (time.perf_counter() - start) / steps

    turn()
    return turn


def accuracy_row(points: int, seed: int, steps: int, data_root: str) -> dict[str, Any]:
    """Test errors of burgers1d, resampled with its Fourier series to a number of points, after training."""
    import h5py
    from rich.console import Console

    from ups_jax import from_arrays, simulate
    from ups_jax.config import load
    from ups_jax.data import Mixture
    from ups_jax.data.files import data_path
    from ups_jax.evaluation.evaluate_run import evaluate
    from ups_jax.inference.trained_model import load_run
    from ups_jax.trainer.train import train

    overrides = [f"data.root={data_root}", f"seed={seed}", f"stages.operator.steps={steps}"]
    cfg = load("burgers1d", overrides)
    simulate.generate_missing(cfg)
    with h5py.File(data_path(cfg.data, cfg.data.tasks[0])) as file:
        stored, times, x = (np.asarray(file[name]) for name in ("tensor", "t-coordinate", "x-coordinate"))
        coefficients = {"nu": np.asarray(file["parameters/nu"])}
    extent = (x[1] - x[0]) * len(x)
    modes = np.fft.rfft(stored.astype(np.float64), axis=2)[:, :, : points // 2 + 1]
    if points % 2 == 0:
        modes[:, :, -1] *= 2
    fields = np.fft.irfft(modes, points, axis=2) * (points / len(x))
    dt = float(times[1] - times[0])
    dataset = from_arrays(cfg, fields, dt, coefficients, (float(x[0]),), (float(extent) / points,))
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        train(cfg, "operator", run, data=Mixture(datasets=(dataset,)), console=Console(quiet=True))
        result = evaluate(load_run(run), dataset)
    return {
        "points": points,
        "seed": seed,
        "steps": steps,
        "one_step": result["metrics"]["burgers1d"]["one_step"]["nrmse"],
        "rollout": result["metrics"]["burgers1d"]["rollout"]["nrmse"],
    }


if __name__ == "__main__":
    sys.exit(main())
