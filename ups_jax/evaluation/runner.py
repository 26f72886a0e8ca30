"""A run directory in; its evaluation JSON, plots and report out."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Any

import jax
import optax
from rich.console import Console
from rich.table import Table

from ups_jax import simulate
from ups_jax.config import Config, from_dict, merge, to_dict
from ups_jax.data import Dataset, Split, open_dataset
from ups_jax.errors import ConfigError
from ups_jax.evaluation.evaluate import evaluate
from ups_jax.evaluation.plots import write_plots
from ups_jax.evaluation.report import write_report
from ups_jax.evaluation.resolution import WAYS, other_trajectories, predictor_on
from ups_jax.evaluation.result import Evaluation, finite, result, write_json
from ups_jax.evaluation.trained_run import TrainedRun, load_run
from ups_jax.tracking import WandbWriter, read_jsonl
from ups_jax.training.run_directory import RunDirectory, now

# What an evaluation may override: where data lies and how it is read, never what a trained run was trained on.
_OVERRIDABLE = ("data.tasks", "data.root", "data.loader", "evaluation", "logging")


def run_config(path: Path, overrides: list[str]) -> Config:
    """The configuration that a run was trained with, with overrides of data files and evaluation applied."""
    for override in overrides:
        if not override.startswith(tuple(f"{section}{end}" for section in _OVERRIDABLE for end in ".=")):
            raise ConfigError(
                f"override {override!r} would change what the run was trained on; an evaluation takes overrides of "
                f"{', '.join(_OVERRIDABLE)}"
            )
    return from_dict(merge(RunDirectory(path).read()["config"], overrides), str(path))


def evaluate_run(
    path: Path,
    cfg: Config,
    *,
    split: Split = "test",
    json_path: Path | None = None,
    track: bool = False,
    console: Console,
) -> dict[str, Any]:
    """Evaluate the best checkpoint on a split: evaluation/<name>.json, plots and report, and a printed table.

    The name is the split; for other data than the run's own, the split and the data file's name. `track` sends the
    result to W&B as well, as one more run of the run's group.
    """
    run = RunDirectory(path)
    trained = load_run(path)
    simulate.prepare(cfg)
    dataset = open_dataset(cfg, trained.task)
    predictor, way = predictor_on(trained, dataset.task)
    for note in (*dataset.notes, *_grid_notes(trained, cfg, dataset, way, split)):
        console.print(f"note        {note}", highlight=False, markup=False, soft_wrap=True)
    own_data = dataset.fingerprint == trained.fingerprint
    name = split if own_data else f"{split}-{Path(dataset.source.name).stem}"
    evaluation = evaluate(
        predictor,
        dataset.trajectories(split),
        dataset.task,
        cfg.evaluation,
        context=cfg.data.context,
        seed=cfg.seed,
        variants={"latent": predictor.latent_rollout},
    )
    data = {"file": dataset.source.name, "fingerprint": dataset.fingerprint, "split": split}
    grid = {"trained": trained.task.shape, "data": dataset.task.shape, "way": way, "meaning": WAYS[way]}
    values = finite(result([evaluation], _meta(run, trained) | {"data": data, "grid": grid}))
    write_json(run.evaluation / f"{name}.json", values)
    if json_path is not None:
        write_json(json_path, values)
    plots: list[Path] = []
    if cfg.evaluation.plots:
        records = read_jsonl(run.metrics_path) if run.metrics_path.exists() else []
        # The test split of the run's own data is its result; the others get a folder and a report of their own.
        plots = write_plots(run.plots if name == "test" else run.plots / name, [evaluation], records)
        report = "report.html" if name == "test" else f"report_{name}.html"
        write_report(run.path / report, values, plots, run.read())
    if track and cfg.logging.wandb.enabled:
        _track(run, cfg, name, evaluation, plots)
    _print_table(console, evaluation)
    return values


def _grid_notes(trained: TrainedRun, cfg: Config, dataset: Dataset, way: str, split: Split) -> list[str]:
    if way == "own":
        return []
    notes = [f"{dataset.source.name}: {WAYS[way]}"]
    different = other_trajectories(trained, cfg, dataset, split) if way == "restricted" else None
    return [*notes, different] if different else notes


def _track(run: RunDirectory, cfg: Config, name: str, evaluation: Evaluation, plots: list[Path]) -> None:
    group = run.path.resolve().name
    writer = WandbWriter(
        cfg.logging.wandb, directory=run.path, group=group, name=f"{group}-{name}", run_config=to_dict(cfg)
    )
    with closing(writer):
        for section, metrics in evaluation.metrics.items():
            writer.summary({f"{name}/{section}/{key}": value for key, value in metrics.items()})
        for plot in plots:
            writer.image(f"{name}/{plot.stem}", plot)


def _meta(run: RunDirectory, trained: TrainedRun) -> dict[str, Any]:
    stage = run.read()["stages"].get("operator", {})
    return {
        "steps": trained.step,
        "seed": trained.config.seed,
        "parameters": optax.tree.size(trained.weights),
        "device": jax.devices()[0].device_kind,
        "seconds_per_step": stage.get("seconds_per_step"),
        "checkpoint": f"checkpoints/operator/{trained.step}",
        "wall_clock": now(),
    }


def _print_table(console: Console, evaluation: Evaluation) -> None:
    """The result next to what needs no training: persistence, and what the codec alone loses."""
    table = Table(
        title=f"nRMSE and fRMSE of {evaluation.task.name}, {evaluation.meta['trajectories']} trajectories",
        title_justify="left",
        # A terminal of 80 columns holds it.
        show_edge=False,
        pad_edge=False,
    )
    table.add_column("", no_wrap=True)
    for column in ("one-step", "rollout", "last", "low", "mid", "high"):
        table.add_column(column, justify="right", no_wrap=True)
    variants = {f"{name} rollout": sections for name, sections in evaluation.variants.items()}
    for name, sections in {"this model": evaluation.metrics, **variants, **evaluation.baselines}.items():
        rollout = sections["rollout"]
        # A variant differs from the model's own rollout from the second step on.
        one_step = f"{sections['one_step']['nrmse']:.3g}" if "one_step" in sections else ""
        bands = (f"{rollout[f'fourier_rmse_{band}']:.1e}" for band in ("low", "mid", "high"))
        headline = (rollout["nrmse"], rollout["nrmse_by_time"][-1])
        table.add_row(name, one_step, *(f"{value:.3g}" for value in headline), *bands)
    console.print(table)
