"""Which floor do the relative loss terms need on data in which half of the trajectories come to rest?

A small model is trained on the Gray-Scott reaction with each floor, for the same steps and seeds. A floor is a share of
the denominator's mean over the training set; `none` is the constant 1e-8 alone. Finished rows are kept.

    python benchmarks/at_rest.py
"""

from __future__ import annotations

import argparse
import json
import platform
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ups_jax.cli import runner
from ups_jax.config.packaged import CONFIGS

_RESULTS = Path(__file__).resolve().parent / "results" / "at_rest.json"
# Floor of each variant; None trains without one.
FLOORS: dict[str, float | None] = {"none": None, "1e-3": 1e-3, "1e-2": 1e-2, "1e-1": 1e-1, "no H1": 1e-2}
_COLUMNS = {
    "rollout": "rollout error",
    "one_step": "one-step error",
    "relative": "largest step, relative",
    "h1": "largest step, H1",
    "relative_sample": "largest sample, relative",
    "h1_sample": "largest sample, H1",
    "grad_norm": "largest gradient norm",
}


def main(argv: list[str] | None = None) -> int:
    parser = runner.make_parser(__doc__)
    parser.add_argument("--steps", type=runner.positive_int, default=1500, help="of each training (default: 1500)")
    parser.add_argument("--seeds", type=runner.positive_int, default=3, help="seeds of each floor (default: 3)")
    parser.add_argument("--floors", nargs="+", choices=FLOORS, default=[*FLOORS], help=", ".join(FLOORS))
    parser.add_argument("--data-root", default="data", metavar="DIR", help="built-in data (default: data)")
    parser.add_argument("--work", type=Path, default=Path("runs/at_rest"), metavar="DIR", help="folder of the runs")
    parser.add_argument("--out", type=Path, default=_RESULTS, help="JSON (default: benchmarks/results/at_rest.json)")
    return runner.run_command(parser, compare, argv)


def compare(args: argparse.Namespace) -> None:
    from ups_jax.core.files import write_atomically

    rows: dict[str, Any] = json.loads(args.out.read_text()) if args.out.is_file() else {}
    for seed in range(args.seeds):
        for name in args.floors:
            key = f"{name}, seed {seed}, {args.steps} steps"
            if key not in rows:
                folder = args.work / f"{args.steps}_{name.replace(' ', '_')}_{seed}"
                rows[key] = measure(name, seed, args.steps, args.data_root, folder)
                args.out.parent.mkdir(parents=True, exist_ok=True)
                write_atomically(args.out, json.dumps(rows, indent=1) + "\n")
            print(f"done        {key}: rollout error {rows[key]['rollout']:.4g}", flush=True)
    write_atomically(args.out.with_suffix(".md"), markdown(list(rows.values())))


def measure(name: str, seed: int, steps: int, data_root: str, path: Path) -> dict[str, Any]:
    """Return the errors on the test trajectories and the largest values during a training with one of the floors."""
    from rich.console import Console

    from ups_jax import simulate
    from ups_jax.config import load
    from ups_jax.data import Mixture, open_mixture
    from ups_jax.inference.trained_model import load_task_model
    from ups_jax.losses.terms import RESTING
    from ups_jax.tracking.jsonl import read_jsonl
    from ups_jax.trainer.train import train

    overrides = [
        f"data.root={data_root}",
        "data.tasks.0.preset=tiny",
        "operator.spectral={hidden_dim: 24, depth: 3, modes: 6}",
        "stages.operator.epochs=0",
        f"stages.operator.steps={steps}",
        f"seed={seed}",
        "logging.every_steps=1",
        "logging.wandb.enabled=false",
        *(["training.lambda_h1=0"] if name == "no H1" else []),
    ]
    cfg = load(CONFIGS / "reaction_diffusion2d.yaml", overrides)
    simulate.generate_missing(cfg)
    (dataset,) = open_mixture(cfg).datasets
    floor, scales = FLOORS[name], dataset.task.loss_scales
    if scales is None:
        raise TypeError("a new task has scales of the loss")
    if floor is None:
        task = replace(dataset.task, loss_scales=None)
    else:
        ratio = floor / RESTING
        scaled = replace(scales, square=ratio * scales.square, gradient=ratio * scales.gradient)
        task = replace(dataset.task, loss_scales=scaled)
    floored = replace(dataset, task=task)
    train(cfg, "operator", path, data=Mixture(datasets=(floored,)), console=Console(quiet=True))
    records = [record for record in read_jsonl(path / "metrics.jsonl") if "grad_norm" in record]
    run, test = load_task_model(path), dataset.trajectories("test")
    horizon = test.fields.shape[1] - 1
    rates = {item.name: test.cond[:, column] for column, item in enumerate(dataset.task.coefficients)}
    frames = run.rollout(test.fields[:, 0], horizon, rates)
    flat = {rate: np.repeat(values, horizon) for rate, values in rates.items()}
    starts = test.fields[:, :-1].reshape(-1, *test.fields.shape[2:])
    steps_ahead = run.rollout(starts, 1, flat).reshape(frames.shape)
    deviation = np.asarray(task.statistics.std)
    samples = largest_samples(dataset, task)
    return {
        "name": name,
        "seed": seed,
        "steps": steps,
        "machine": f"{platform.machine()}, {platform.system()}",
        "rollout": error(frames, test.fields[:, 1:], deviation),
        "one_step": error(steps_ahead, test.fields[:, 1:], deviation),
        **{term: max(record[term] for record in records) for term in ("relative", "h1") if term in records[0]},
        "grad_norm": max(record["grad_norm"] for record in records),
        **samples,
    }


def error(pred: Any, truth: Any, deviation: Any) -> float:
    """Return the root mean square error in deviations of the training fields, over all frames and trajectories."""
    return float(np.sqrt(np.mean(((np.asarray(pred, np.float64) - truth) / deviation) ** 2)))


def largest_samples(dataset: Any, task: Any) -> dict[str, float]:
    """Return the largest terms of a training sample for persistence, which an untrained model predicts."""
    import jax.numpy as jnp

    from ups_jax.losses.terms import field_terms
    from ups_jax.models import normalize

    largest = {"relative_sample": 0.0, "h1_sample": 0.0}
    for fields in dataset.trajectories("train").fields:
        u = normalize(jnp.asarray(fields), task.statistics)
        for term, values in field_terms(("relative", "h1"), u[:-1], u[1:], task).items():
            largest[f"{term}_sample"] = max(largest[f"{term}_sample"], float(values.max()))
    return largest


def markdown(rows: list[dict[str, Any]]) -> str:
    """Return a table with a row for each floor and number of steps: mean and deviation of errors, largest of terms."""
    lines = [
        "Gray-Scott reaction, preset `tiny`, from `python benchmarks/at_rest.py`. Errors are in deviations of the",
        "training fields, on the test trajectories (mean and standard deviation over seeds). A largest step is the",
        "largest mean of a step during the training. A largest sample is the largest term of a training sample for",
        "persistence, which the untrained model predicts.",
        "",
        f"| floor | steps | seeds | {' | '.join(_COLUMNS.values())} |",
        "|" + "---|" * (3 + len(_COLUMNS)),
    ]
    for name, steps in dict.fromkeys((row["name"], row["steps"]) for row in rows):
        group = [row for row in rows if (row["name"], row["steps"]) == (name, steps)]
        cells = []
        for key in _COLUMNS:
            values = [row[key] for row in group if key in row]
            if not values:
                cells.append("-")
            elif key in ("rollout", "one_step"):
                cells.append(f"{np.mean(values):.4g} ± {np.std(values):.2g}")
            else:
                cells.append(f"{max(values):.3g}")
        lines.append(f"| {name} | {steps} | {len(group)} | {' | '.join(cells)} |")
    return "\n".join([*lines, "", f"Machine: {rows[0]['machine']}.", ""])


if __name__ == "__main__":
    raise SystemExit(main())
