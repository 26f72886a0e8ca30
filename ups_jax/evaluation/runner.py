"""A run directory in; its evaluation JSON, plots and report out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import optax
from rich.console import Console
from rich.table import Table

from ups_jax import simulate
from ups_jax.config import Config, from_dict, merge
from ups_jax.data import Split, open_dataset
from ups_jax.evaluation.evaluate import evaluate
from ups_jax.evaluation.plots import write_plots
from ups_jax.evaluation.report import write_report
from ups_jax.evaluation.result import Evaluation, finite, result, write_json
from ups_jax.evaluation.trained_run import load_run
from ups_jax.tracking import read_jsonl
from ups_jax.training.run_directory import RunDirectory, now


def run_config(path: Path, overrides: list[str]) -> Config:
    """The configuration that a run was trained with, with overrides (of data and evaluation) applied."""
    return from_dict(merge(RunDirectory(path).read()["config"], overrides), str(path))


def evaluate_run(
    path: Path, cfg: Config, *, split: Split = "test", json_path: Path | None = None, console: Console
) -> dict[str, Any]:
    """Evaluate the best checkpoint on a split: evaluation/<split>.json, plots and report.html, and a printed table."""
    run = RunDirectory(path)
    trained = load_run(path)
    simulate.prepare(cfg)
    dataset = open_dataset(cfg, trained.task)
    if dataset.task != trained.task:
        trained = load_run(path, task=dataset.task)
    for note in dataset.notes:
        console.print(f"note        {note}", highlight=False, markup=False, soft_wrap=True)
    evaluation = evaluate(
        trained.predictor(),
        dataset.trajectories(split),
        trained.task,
        cfg.evaluation,
        context=cfg.data.context,
        seed=cfg.seed,
    )
    values = finite(result([evaluation], _meta(run, trained, split)))
    write_json(run.evaluation / f"{split}.json", values)
    if json_path is not None:
        write_json(json_path, values)
    if cfg.evaluation.plots:
        records = read_jsonl(run.metrics_path)
        # The test split is the run's result; the others get a folder and a report of their own.
        plots = write_plots(run.plots if split == "test" else run.plots / split, [evaluation], records)
        write_report(
            run.path / ("report.html" if split == "test" else f"report_{split}.html"), values, plots, run.read()
        )
    _print_table(console, evaluation)
    return values


def _meta(run: RunDirectory, trained: Any, split: str) -> dict[str, Any]:
    stage = run.read()["stages"].get("operator", {})
    return {
        "steps": trained.step,
        "seed": trained.config.seed,
        "parameters": optax.tree.size(trained.weights),
        "device": jax.devices()[0].device_kind,
        "seconds_per_step": stage.get("seconds_per_step"),
        "checkpoint": f"checkpoints/operator/{trained.step}",
        "split": split,
        "wall_clock": now(),
    }


def _print_table(console: Console, evaluation: Evaluation) -> None:
    """The result next to what needs no training: persistence, and what the codec alone loses."""
    table = Table(
        title=f"nRMSE and fRMSE of {evaluation.task.name}, {evaluation.meta['trajectories']} trajectories",
        title_justify="left",
    )
    table.add_column("", no_wrap=True)
    for column in ("one-step", "rollout", "last frame", "low", "mid", "high"):
        table.add_column(column, justify="right", no_wrap=True)
    for name, sections in {"this model": evaluation.metrics, **evaluation.baselines}.items():
        rollout = sections["rollout"]
        bands = (f"{rollout[f'fourier_rmse_{band}']:.1e}" for band in ("low", "mid", "high"))
        headline = (sections["one_step"]["nrmse"], rollout["nrmse"], rollout["nrmse_by_time"][-1])
        table.add_row(name, *(f"{value:.3g}" for value in headline), *bands)
    console.print(table)
