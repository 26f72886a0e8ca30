"""The scores of one row: on the task's own data, and on the same trajectories at twice the points an axis."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from comparison.models import MODELS
from comparison.row import Row
from comparison.stage_row import StageRow
from comparison.tasks import TASKS
from comparison.training import Trained
from ups_jax.data import Dataset, Trajectories, open_dataset
from ups_jax.evaluation.evaluate import EnsembleFunction, RolloutFunction, evaluate_predictor
from ups_jax.evaluation.result import SteadyEvaluation, TransientEvaluation
from ups_jax.evaluation.steady import evaluate_steady, mean_solution
from ups_jax.inference.resolution import FinerPredictor

Values = dict[str, Any]


class Persistence:
    """Every later frame is the last one given."""

    def rollout_arrays(self, u0: np.ndarray, steps: int, cond: np.ndarray, cond_mask: np.ndarray) -> np.ndarray:
        """The `steps` frames after the context `u0`."""
        return np.repeat(u0[:, -1:], steps, axis=1)

    def reconstruct(self, fields: np.ndarray, cond: np.ndarray, cond_mask: np.ndarray) -> np.ndarray:
        """The fields themselves."""
        return fields


def transient_scores(row: Row, trained: Trained, dataset: Dataset) -> Values:
    """One-step and rollout metrics, the latter over the scored frames only; times and correlation over all, or, on the
    test split, over the task's longer trajectories where it has such."""
    frames = TASKS[row.task].scored_frames
    predictor = trained.run
    latent = {"latent": predictor.latent_rollout} if MODELS[row.model].has_tokens else {}
    trajectories = dataset.trajectories(row.split)  # type: ignore[arg-type]
    if frames is None:
        measured = scored = evaluation(row, predictor, trajectories, dataset, latent)
    else:
        measured = evaluation(row, predictor, trajectories, dataset)
        scored = evaluation(row, predictor, first_frames(trajectories, frames), dataset, latent)
    values = {
        "one_step": measured.metrics["one_step"],
        "rollout": scored.metrics["rollout"],
        **correlation(row, predictor, measured, dataset),
        "latent_rollout": scored.variants["latent"]["rollout"] if latent else None,
        "trajectories": measured.meta["trajectories"],
        "frames": scored.meta["horizon"],
        "seconds_per_rollout_step": measured.meta["seconds_per_rollout_step"],
    }
    if latent:
        values["latent_seconds_per_rollout_step"] = scored.variants["latent"]["seconds_per_rollout_step"]
    if not row.double:
        return values
    finer = _finer(row, dataset)
    trajectories = first_frames(finer.trajectories(row.split), scored.meta["horizon"])  # type: ignore[arg-type]
    trivial = isinstance(predictor, Persistence)
    double = evaluation(row, predictor if trivial else FinerPredictor(trained.run, finer.task), trajectories, finer)
    return values | {"double_resolution": double.metrics["rollout"]}


def steady_scores(row: Row, trained: Trained, dataset: Dataset) -> Values:
    """Metrics of the solutions; on the finer grid those of the better way, with the nRMSE of both under `ways`.

    Every model may average the given fields to its own grid and have its solution interpolated; what is not cut into
    tokens may also solve on the finer grid itself.
    """
    measured = _steady_evaluation(row, trained.run, dataset)
    values = {
        "steady": _section(row, measured),
        "trajectories": measured.meta["trajectories"],
        "points": list(dataset.task.shape),
        "seconds_per_rollout_step": measured.meta["seconds_per_rollout_step"],
    }
    if not row.double:
        return values
    finer = _finer(row, dataset)
    if trained.run is None:
        return values | {"double_resolution": _section(row, _steady_evaluation(row, None, finer))}
    runs = {"averaged": trained.run}
    if not MODELS[row.model].has_tokens:
        runs["native"] = trained.run.on_grid_of(finer.task)
    sections = {way: _section(row, _steady_evaluation(row, run, finer)) for way, run in runs.items()}
    ways = {way: section["nrmse"] for way, section in sections.items()}
    best = min(ways, key=lambda way: ways[way] if np.isfinite(ways[way]) else np.inf)
    return values | {"double_resolution": sections[best] | {"way": best, "ways": ways}}


SCORES = {"transient": transient_scores, "steady": steady_scores}


def _section(row: Row, measured: SteadyEvaluation) -> Mapping[str, Any]:
    sections = measured.baselines["mean_field"] if row.model == "mean_field" else measured.metrics
    return sections["steady"]


def _steady_evaluation(row: Row, run: Any, dataset: Dataset) -> SteadyEvaluation:
    cfg, mean_field = row.config(), mean_solution(dataset)
    trajectories = dataset.trajectories(row.split)  # type: ignore[arg-type]

    def trivial(inputs: np.ndarray, steps: int, cond: np.ndarray, cond_mask: np.ndarray) -> np.ndarray:
        return np.broadcast_to(mean_field, (len(inputs), steps, *mean_field.shape))

    solve = trivial if run is None else run.rollout_arrays
    return evaluate_steady(solve, trajectories, dataset.task, cfg.evaluation, mean_field=mean_field, seed=cfg.seed)


def evaluation(
    row: Row | StageRow,
    predictor: Any,
    trajectories: Trajectories,
    dataset: Dataset,
    variants: Mapping[str, RolloutFunction] | None = None,
    ensembles: Mapping[str, EnsembleFunction] | None = None,
) -> TransientEvaluation:
    """The library's own evaluation, with the settings of the row."""
    cfg = row.config()
    settings = {"context": 1, "seed": cfg.seed, "variants": variants or {}, "ensembles": ensembles or {}}
    return evaluate_predictor(predictor, trajectories, dataset.task, cfg.evaluation, **settings)


def correlation(row: Row | StageRow, predictor: Any, measured: TransientEvaluation, dataset: Dataset) -> Values:
    """Until when the rollout is correlated with the truth, and over how many trajectories and frames that was taken."""
    config = row.long_config()
    if config is not None and row.split == "test":
        # No model has been trained on any of this file: its largest part is measured.
        longer = open_dataset(config, dataset.task)
        measured = evaluation(row, predictor, longer.trajectories("train"), longer)
    return {
        "correlation_time": measured.metrics["rollout"]["correlation_time"],
        "correlation_trajectories": measured.meta["trajectories"],
        "correlation_frames": measured.meta["horizon"],
    }


def first_frames(trajectories: Trajectories, steps: int | None) -> Trajectories:
    """Return the trajectories cut to `steps` frames after the first, or whole if `steps` is None."""
    if steps is None:
        return trajectories
    return replace(trajectories, fields=trajectories.fields[:, : steps + 1], time=trajectories.time[: steps + 1])


def _finer(row: Row, dataset: Dataset) -> Dataset:
    return open_dataset(row.finer_config(), dataset.task)
