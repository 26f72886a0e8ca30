"""A run directory in; its evaluation JSON, plots and report out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import optax
from rich.console import Console

from ups_jax import simulate
from ups_jax.config import Config, from_dict, merge, to_dict
from ups_jax.data import Dataset, Split, open_dataset
from ups_jax.determinism import require_determinism
from ups_jax.errors import ConfigError, DataError
from ups_jax.evaluation.candidates import candidate_variants, score_of
from ups_jax.evaluation.corrected import (
    SAMPLERS,
    VARIANTS,
    CorrectedPredictor,
    CorrectedSolver,
    corrector_of,
    correctors,
    predictor_stage_of,
)
from ups_jax.evaluation.evaluate import Rollout, evaluate
from ups_jax.evaluation.plots import write_plots
from ups_jax.evaluation.printed import print_table
from ups_jax.evaluation.report import write_report
from ups_jax.evaluation.resolution import WAYS, other_trajectories, predictor_on
from ups_jax.evaluation.result import Evaluation, SteadyEvaluation, finite, result, write_json
from ups_jax.evaluation.steady import evaluate_steady, mean_solution
from ups_jax.evaluation.steady_run import SteadyRun
from ups_jax.evaluation.tracked import track_evaluation
from ups_jax.evaluation.trained_run import TrainedRun, load_run
from ups_jax.steady import check_cells
from ups_jax.task import Task
from ups_jax.tracking import ending, evaluation_writer, read_jsonl
from ups_jax.training.printed import say
from ups_jax.training.run_directory import RunDirectory, now
from ups_jax.training.weights import Weights

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
    stage: str | None = None,
    split: Split = "test",
    json_path: Path | None = None,
    track: bool = False,
    console: Console,
) -> dict[str, Any]:
    """Evaluate the best checkpoint on a split: evaluation/<name>.json, plots and report, and a printed table.

    The name is the split, after the name of a `stage` that is not the run's main one; for other data than the run's
    own, the data file's name follows. `track` hands the result to W&B and TensorBoard as well, where they are on.
    """
    require_determinism(cfg.deterministic)
    run = RunDirectory(path)
    main = run.main_stage()
    stage = stage or main
    trained = load_run(path, stage=predictor_stage_of(path, stage))
    found = {stage: corrector_of(path, stage)} if stage in VARIANTS else correctors(path) if stage == main else {}
    simulate.prepare(cfg)
    dataset = open_dataset(cfg, trained.task)
    way = _way(trained, dataset.task)
    left_out = [] if stage in VARIANTS else _left_out(found, way)
    for note in (*dataset.notes, *_grid_notes(trained, cfg, dataset, way, split), *left_out):
        say(console, f"note        {note}")
    name = split if stage == main else f"{stage}_{split}"
    if dataset.fingerprint != trained.fingerprint:
        name = f"{name}-{Path(dataset.source.name).stem}"
    measured = _measure(trained, found, stage, dataset, split, cfg)
    data = {"file": dataset.source.name, "fingerprint": dataset.fingerprint, "split": split}
    grid = {"trained": trained.task.shape, "data": dataset.task.shape, "way": way, "meaning": WAYS[way]}
    meta = _meta(run, stage, found.get(stage, trained)) | {"data": data, "grid": grid}
    if "ensemble" in measured.variants:
        meta |= {"ensemble_of": stage if stage in found else next(reversed(found))}
    values = finite(result([measured], meta))
    written = [run.evaluation / f"{name}.json"]
    write_json(written[0], values)
    if json_path is not None:
        write_json(json_path, values)
    plots: list[Path] = []
    if cfg.evaluation.plots:
        records = read_jsonl(run.metrics_path) if run.metrics_path.exists() else []
        # The test split of the run's own data is its result; the others get a folder and a report of their own.
        plots = write_plots(run.plots if name == "test" else run.plots / name, [measured], records)
        report = "report.html" if name == "test" else f"report_{name}.html"
        written.append(run.path / report)
        write_report(written[-1], values, plots, run.read())
    if track:
        with ending(evaluation_writer(path, cfg.logging, name=name, run_config=to_dict(cfg))) as writer:
            track_evaluation(writer, name, measured, plots=plots, files=written)
    print_table(console, measured)
    return values


def _measure(
    trained: TrainedRun | SteadyRun,
    found: Mapping[str, Weights],
    stage: str,
    dataset: Dataset,
    split: Split,
    cfg: Config,
) -> Evaluation | SteadyEvaluation:
    """The result of a stage: of a corrector's that of the predictor with it, of the main one that of the predictor
    alone, with the correctors `found` as variants."""
    held = dataset.trajectories(split)
    if isinstance(trained, SteadyRun):
        mean_field = mean_solution(dataset)
        samplers = {name: CorrectedSolver(trained, name, weights) for name, weights in found.items()}
        return evaluate_steady(
            samplers.get(stage, trained.solve_arrays),
            held,
            dataset.task,
            cfg.evaluation,
            mean_field=mean_field,
            seed=cfg.seed,
            variants={} if stage in found else {VARIANTS[name]: way for name, way in samplers.items()},
            ensembles=_ensemble(samplers, stage, cfg),
        )
    predictor, met = predictor_on(trained, dataset.task)
    # A corrector acts on the grid that the model steps on.
    here = {
        name: CorrectedPredictor(trained.on(dataset.task), name, weights)
        for name, weights in found.items()
        if met != "restricted"
    }
    if stage in found and stage not in here:
        raise DataError(f"{dataset.source.name}: {WAYS[met]}; {stage} is evaluated on the trained grid only")
    variants: dict[str, Rollout] = {}
    if stage not in here:
        variants = {"latent": predictor.latent_rollout} | {VARIANTS[name]: way.rollout for name, way in here.items()}
    measured = evaluate(
        here.get(stage, predictor),
        held,
        dataset.task,
        cfg.evaluation,
        context=cfg.data.context,
        seed=cfg.seed,
        variants=variants,
        ensembles=_ensemble(here, stage, cfg),
    )
    if cfg.evaluation.candidates < 2 or not _ensemble(here, stage, cfg):
        return measured
    last = here.get(stage, list(here.values())[-1])
    name, score = score_of(cfg.data.tasks[0], last.run.task)
    chosen = candidate_variants(
        last.run.model,
        last.run.weights,
        last.model,
        last.trained.weights,
        SAMPLERS[last.stage],
        score,
        held,
        candidates=cfg.evaluation.candidates,
        batch_size=cfg.evaluation.batch_size,
        context=cfg.data.context,
        seed=cfg.seed,
    )
    scored = {"candidates": cfg.evaluation.candidates, "candidates_scored_by": name}
    return replace(measured, variants=dict(measured.variants) | chosen, meta=dict(measured.meta) | scored)


def _ensemble(here: Mapping[str, Any], stage: str, cfg: Config) -> dict[str, Any]:
    """That of the corrector that is evaluated, or of the run's last one, where it draws anything."""
    if not here or cfg.evaluation.members < 2:
        return {}
    last = here.get(stage, list(here.values())[-1])
    return {"ensemble": last.members} if last.random else {}


def _way(trained: TrainedRun | SteadyRun, task: Task) -> str:
    """How the run meets the grid of the data, one of `WAYS`; DataError where it cannot."""
    if isinstance(trained, TrainedRun):
        return predictor_on(trained, task)[1]
    check_cells(trained.task, task)
    return "own" if task.shape == trained.task.shape else "averaged"


def _grid_notes(trained: TrainedRun | SteadyRun, cfg: Config, dataset: Dataset, way: str, split: Split) -> list[str]:
    if way == "own":
        return []
    notes = [f"{dataset.source.name}: {WAYS[way]}"]
    different = other_trajectories(trained, cfg, dataset, split) if way != "native" else None
    return [*notes, different] if different else notes


def _left_out(found: Mapping[str, Weights], way: str) -> list[str]:
    """What is to be said of correctors that an evaluation of their predictor has no variants of."""
    return [f"{name}: is left out, as it acts on the trained grid only" for name in found if way == "restricted"]


def _meta(run: RunDirectory, stage: str, trained: TrainedRun | SteadyRun | Weights) -> dict[str, Any]:
    record = run.read()["stages"].get(stage, {})
    return {
        "steps": trained.step,
        "seed": trained.config.seed,
        "parameters": optax.tree.size(trained.params if isinstance(trained, Weights) else trained.weights),
        "device": jax.devices()[0].device_kind,
        "seconds_per_step": record.get("seconds_per_step"),
        "checkpoint": f"checkpoints/{stage}/{trained.step}",
        "wall_clock": now(),
    }
