"""Evaluation of a trained run: `evaluate` returns the metrics, `evaluate_run` also writes JSON, plots and report."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar, cast

import jax
import numpy as np
import optax
from jaxtyping import Int
from rich.console import Console

from ups_jax import simulate
from ups_jax.config import Config, FullEvaluationConfig, apply_overrides, from_dict, load, restrict_to_task, to_dict
from ups_jax.core.errors import ConfigError, DataError
from ups_jax.core.terminal import print_line
from ups_jax.core.xla import require_determinism
from ups_jax.data import Dataset, Mixture, Split, as_mixture, open_dataset
from ups_jax.data.content import list_first
from ups_jax.data.dataset import StoredRows, StoredTrajectories
from ups_jax.data.files import configured_tasks, single_task
from ups_jax.data.open import as_trained_task
from ups_jax.evaluation.best_of_n import candidate_score, evaluate_best_of_n, no_candidates_reason
from ups_jax.evaluation.console import print_table, track_evaluation
from ups_jax.evaluation.evaluate import EnsembleFunction, RolloutFunction, evaluate_predictor
from ups_jax.evaluation.model_fingerprint import architecture_fingerprint, combined_fingerprint
from ups_jax.evaluation.result import (
    EvaluationResult,
    SteadyEvaluation,
    TransientEvaluation,
    evaluation_result,
    to_json_values,
    write_json,
)
from ups_jax.evaluation.steady import evaluate_steady, mean_solution
from ups_jax.inference.corrected import (
    SAMPLERS,
    VARIANT_NAMES,
    CorrectedModel,
    load_corrector,
    load_correctors,
    predictor_stage,
)
from ups_jax.inference.resolution import RESOLUTION_MODES, predictor_for_grid, split_mismatch_note
from ups_jax.inference.trained_model import TrainedModel, build_trained_model, select_task
from ups_jax.runs.best_weights import Weights, best_weights
from ups_jax.runs.directory import RunDirectory, utc_now
from ups_jax.runs.training_set import TrainingSet, read_training_set, recorded_training_set
from ups_jax.tracking import close_on_exit, open_evaluation_writer, read_jsonl
from ups_jax.training.build import JointModel

_Corrector = TypeVar("_Corrector", CorrectedModel, Weights)

# Keys that an evaluation may override: location, split and reading of the data, but nothing that the model depends on.
_OVERRIDABLE = ("data.tasks", "data.root", "data.split", "data.loader", "evaluation", "logging", "pipeline")


@dataclass(frozen=True, kw_only=True)
class Selection:
    """The trajectories to evaluate, and the name and folder of the results.

    Attributes:
        trajectories: Number of trajectories, from the first on; `evaluation.trajectories` if None.
        horizon: Number of predicted frames; all if None.
        name: Name of the result files; by default derived from split, stage and data.
        output: Folder of the results; by default the run directory.
        film: Whether to write a film of the median trajectory.
    """

    split: Split = "test"
    trajectories: int | None = None
    horizon: int | None = None
    name: str | None = None
    output: Path | None = None
    film: bool = False

    def for_pipeline_section(self, name: str, section: FullEvaluationConfig) -> Selection:
        """Return a copy called `name` that selects the trajectories of `section`, a section of `pipeline`."""
        return replace(self, name=name, split=section.split, trajectories=section.trajectories, horizon=section.horizon)


def evaluation_config(path: Path, overrides: list[str], config: Path | None = None) -> Config:
    """Return the configuration of a trained run after replacing settings that an evaluation may change.

    Args:
        overrides: Overrides `key=value` of data files, evaluation, logging or pipeline.
        config: A configuration file that replaces the settings on the same subjects.

    Raises:
        ConfigError: An override would change what the run was trained on.
    """
    for override in overrides:
        if not override.startswith(tuple(f"{section}{end}" for section in _OVERRIDABLE for end in ".=")):
            raise ConfigError(
                f"override {override!r} would change what the run was trained on; for an evaluation, override only "
                f"settings in `{'`, `'.join(_OVERRIDABLE)}`"
            )
    run = RunDirectory(path)
    values = run.read_record()["config"]
    if values["data"]["split"]["method"] == "listed":
        chooses_method = any(override.startswith("data.split.method=") for override in overrides)
        # The listed file may be in the directory of another run, which may not exist any more.
        own_path = {"path": str(run.split_path)} if run.split_path.is_file() else {}
        split = values["data"]["split"] | ({"path": None} if chooses_method else own_path)
        values["data"] = values["data"] | {"split": split}
    if config is not None:
        file_values = to_dict(load(config))
        values = values | {key: file_values[key] for key in ("evaluation", "logging", "pipeline")}
        values["data"] = values["data"] | {key: file_values["data"][key] for key in ("tasks", "root", "loader")}
    return from_dict(apply_overrides(values, overrides), str(path))


def evaluate(
    model: TrainedModel,
    data: Dataset | Mixture,
    *,
    split: Split = "test",
    trajectories: int | None = None,
    horizon: int | None = None,
) -> EvaluationResult:
    """Return the evaluation of a trained model: the contents of the JSON file that the command `evaluate` writes.

    Metrics are of decoded fields in physical units. Nothing is written or printed; notes for the user are in
    `result["meta"]["notes"]`.

    Args:
        model: The model of a run, from `load_run`.
        data: The data, from `open_dataset`, `open_mixture` or `from_arrays`. Only tasks of both model and data are
            evaluated.
        split: The split to evaluate: `train`, `val` or `test`.
        trajectories: Number of trajectories, from the first on; by default `evaluation.trajectories` of the run.
        horizon: Number of predicted frames; all by default.

    Raises:
        ConfigError: The data has none of the model's tasks.
        DataError: The data has other channels or axes than the model's task, or too few frames.
    """
    run = RunDirectory(model.path)
    datasets = {dataset.task.name: dataset for dataset in as_mixture(data).datasets}
    if len(model.tasks) == len(datasets) == 1:
        # A model of one task accepts data with any task name.
        datasets = {model.task.name: next(iter(datasets.values()))}
    cfg = evaluation_config(model.path, [])
    names = [task.name for task in model.tasks]
    tasks = tuple(task for task in cfg.data.tasks if task.name in datasets and task.name in names)
    if not tasks:
        raise ConfigError(
            f"{model.path}: the data has the tasks {', '.join(datasets)}, but the model was trained on the tasks "
            f"{', '.join(names)}; open data of a task that the model was trained on"
        )
    cfg = replace(cfg, data=replace(cfg.data, tasks=tasks))
    datasets = {
        task.name: as_trained_task(
            restrict_to_task(cfg, task.name), datasets[task.name], select_task(model, task.name).task
        )
        for task in tasks
    }
    selection = Selection(split=split, trajectories=trajectories, horizon=horizon)
    results = _evaluate_tasks(model, cfg, model.stage, run.main_stage(), selection, datasets, Console(quiet=True))
    meta = _run_meta(run, model.stage, model.checkpoint, results, split)
    values = evaluation_result([item.evaluation for item in results], meta)
    return cast(EvaluationResult, to_json_values(values))


def evaluate_run(
    path: Path,
    cfg: Config,
    *,
    stage: str | None = None,
    selection: Selection = Selection(),
    json_path: Path | None = None,
    track: bool = False,
    data: Mixture | None = None,
    models: JointModel | None = None,
    console: Console,
) -> EvaluationResult:
    """Evaluate the best checkpoint of a run, write JSON, plots and report, print a table, and return the result.

    The files are named `selection.name`; by default `<split>`, or `<stage>_<split>` if `stage` is not the main stage,
    with the suffix `-<data file>` for data that the run was not trained on.

    Args:
        cfg: The configuration, from `evaluation_config`.
        stage: The stage to evaluate; by default the run's main stage.
        json_path: A further file to write the JSON to.
        track: Whether to log the result to W&B and TensorBoard, if the configuration enables them.
        data: The data of the configuration, if it is already open.
        models: The flax modules of the stage, if they are already built.
    """
    require_determinism(cfg.deterministic)
    run = RunDirectory(path)
    main_stage = run.main_stage()
    stage = stage or main_stage
    if data is None:
        simulate.generate_missing(cfg)
    predictor = predictor_stage(path, stage)
    model = build_trained_model(path, predictor, best_weights(path, predictor), models if stage == predictor else None)
    results = _evaluate_tasks(model, cfg, stage, main_stage, selection, _reusable_datasets(data, model), console)
    evaluations = [item.evaluation for item in results]
    split = selection.split
    name = selection.name or _default_result_name(stage, main_stage, split, results)
    output = RunDirectory(selection.output or path)
    values = cast(
        EvaluationResult,
        to_json_values(evaluation_result(evaluations, _run_meta(run, stage, model.checkpoint, results, split))),
    )
    written = [output.evaluation_folder / f"{name}.json"]
    write_json(written[0], values)
    if json_path is not None:
        write_json(json_path, values)
    plots: list[Path] = []
    if cfg.evaluation.plots:
        # These modules load matplotlib, which an evaluation without plots does not need.
        from ups_jax.evaluation.plots.figures import write_plots
        from ups_jax.evaluation.plots.html_report import write_report

        records = read_jsonl(run.metrics_path) if run.metrics_path.exists() else []
        # The test split of the training data has the plain names; other evaluations have a folder and a report each.
        plots = write_plots(output.plots_folder if name == "test" else output.plots_folder / name, evaluations, records)
        report = "report.html" if name == "test" else f"report_{name}.html"
        written.append(output.path / report)
        write_report(written[-1], values, plots, run.read_record())
    if selection.film:
        _write_films(output.plots_folder / name, evaluations, console)
    if track:
        with close_on_exit(
            open_evaluation_writer(output.path, cfg.logging, name=name, run_config=to_dict(cfg))
        ) as writer:
            for index, evaluation in enumerate(evaluations):
                task_name = name if len(evaluations) == 1 else f"{name}/{evaluation.task.name}"
                # Plots and files belong to all tasks, and are logged once.
                shared = {"plots": plots, "files": written} if index == 0 else {"plots": (), "files": ()}
                track_evaluation(writer, task_name, evaluation, **shared)
    for evaluation in evaluations:
        print_table(console, evaluation)
    return values


@dataclass(frozen=True, kw_only=True)
class _TaskResult:
    """The evaluation of one task of a run.

    Attributes:
        model: The trained model of the task, without a corrector.
        weights: The best checkpoint of the evaluated stage.
        resolution_mode: Key in `RESOLUTION_MODES`.
        truth_digest: Hash of the evaluated trajectories.
        ensemble_stage: The stage whose corrector sampled the ensemble; None without an ensemble.
    """

    model: TrainedModel
    weights: Weights
    dataset: Dataset
    evaluation: TransientEvaluation | SteadyEvaluation
    resolution_mode: str
    truth_digest: str
    ensemble_stage: str | None
    notes: tuple[str, ...]


def _evaluate_tasks(
    joint_model: TrainedModel,
    cfg: Config,
    stage: str,
    main_stage: str,
    selection: Selection,
    datasets: Mapping[str, Dataset],
    console: Console,
) -> list[_TaskResult]:
    """Return the evaluation of every task of the configuration. Data that is not in `datasets` is opened."""
    path, has_several_tasks = joint_model.path, len(joint_model.tasks) > 1
    if not has_several_tasks:
        single_task(cfg)
    correctors: dict[str, Weights] = {}
    if stage in VARIANT_NAMES:
        correctors = {stage: load_corrector(path, stage)}
    elif stage == main_stage:
        correctors = load_correctors(path)
    results = []
    for task in configured_tasks(cfg):
        task_cfg = restrict_to_task(cfg, task.name)
        model = select_task(joint_model, task.name if has_several_tasks else None)
        dataset = datasets.get(model.task.name) or open_dataset(task_cfg, model.task)
        mode = predictor_for_grid(model, dataset.task)[1]
        trajectories = _select_trajectories(dataset, selection, cfg)
        grid_notes, splits_agree = _compare_grids(model, task_cfg, dataset, mode, selection.split)
        checkpoints = [model.checkpoint, *correctors.values()]
        trained_ids, unknown_notes = _find_trained_ids(RunDirectory(path), checkpoints, dataset, splits_agree)
        trained_on = np.intersect1d(trajectories.ids, trained_ids).tolist() or (None if unknown_notes else [])
        trained_notes = unknown_notes + _trained_on_notes(dataset, trajectories.ids, trained_on, selection.split)
        corrector_notes = [] if stage in VARIANT_NAMES else _omitted_corrector_notes(correctors, mode)
        corrector_notes += _candidate_notes(model, {} if mode == "restricted" else correctors, stage, task_cfg)
        notes = (*dataset.notes, *grid_notes, *trained_notes, *corrector_notes)
        for note in notes:
            print_line(console, f"note        {note}")
        evaluation = _evaluate_task(model, correctors, stage, dataset, trajectories, task_cfg)
        evaluation = replace(evaluation, meta=dict(evaluation.meta) | {"trained_on": trained_on})
        ensemble_stage = None
        if "ensemble" in evaluation.variants:
            ensemble_stage = stage if stage in correctors else next(reversed(correctors))
        results.append(
            _TaskResult(
                model=model,
                weights=correctors.get(stage, model.checkpoint),
                dataset=dataset,
                evaluation=evaluation,
                resolution_mode=mode,
                truth_digest=truth_digest(trajectories),
                ensemble_stage=ensemble_stage,
                notes=notes,
            )
        )
    return results


def _reusable_datasets(data: Mixture | None, joint_model: TrainedModel) -> dict[str, Dataset]:
    """Return, by task, the data sets of `data` that the run was trained on (same task and fingerprint)."""
    models = (select_task(joint_model, task.name) for task in joint_model.tasks)
    fingerprints = {model.task: model.checkpoint.fingerprint for model in models}
    datasets = () if data is None else data.datasets
    return {
        item.task.name: item
        for item in datasets
        if item.task in fingerprints and fingerprints[item.task] == item.fingerprint_like(fingerprints[item.task])
    }


def _default_result_name(stage: str, main_stage: str, split: str, results: Sequence[_TaskResult]) -> str:
    """Return the default name of the result files: `[<stage>_]<split>[-<data file>]`."""
    other_files = [
        Path(item.dataset.source.name).stem
        for item in results
        if item.model.checkpoint.fingerprint != item.dataset.fingerprint_like(item.model.checkpoint.fingerprint)
    ]
    return "-".join([split if stage == main_stage else f"{stage}_{split}", *other_files])


def _write_films(folder: Path, evaluations: Sequence[TransientEvaluation | SteadyEvaluation], console: Console) -> None:
    """Write a film of the median trajectory of every transient task on a grid."""
    from ups_jax.evaluation.plots.figures import safe_file_name
    from ups_jax.evaluation.plots.films import FILM_NAME, write_film

    point_tasks = [evaluation.task.name for evaluation in evaluations if evaluation.task.scattered]
    if point_tasks:
        print_line(console, f"note        no film of {', '.join(point_tasks)}: films are available for grids only")
    for evaluation in evaluations:
        prefix = "" if len(evaluations) == 1 else f"{safe_file_name(evaluation.task.name)}_"
        write_film(folder / f"{prefix}{FILM_NAME}", evaluation)


def _evaluate_task(
    model: TrainedModel,
    correctors: Mapping[str, Weights],
    stage: str,
    dataset: Dataset,
    trajectories: StoredTrajectories,
    cfg: Config,
) -> TransientEvaluation | SteadyEvaluation:
    """Return the evaluation of one task.

    If `stage` is a corrector, the model with this corrector is evaluated. Otherwise the model alone is evaluated; the
    model with each corrector is a variant.
    """
    if model.task.kind == "steady":
        return _evaluate_steady_task(model, correctors, stage, dataset, trajectories, cfg)
    predictor, mode = predictor_for_grid(model, dataset.task)
    # A corrector needs the grid that the model steps on.
    corrected_models = {
        name: CorrectedModel(model.on_grid_of(dataset.task), name, weights)
        for name, weights in correctors.items()
        if mode != "restricted"
    }
    if stage in correctors and stage not in corrected_models:
        raise DataError(
            f"{dataset.source.name}: cannot evaluate the corrector {stage} on this grid; use data on the grid that the "
            "model was trained on"
        )
    variants: dict[str, RolloutFunction] = {}
    if stage not in corrected_models:
        # Point clouds have no latent rollout: the decoder needs the previous values of the points.
        latent = {} if dataset.task.scattered else {"latent": predictor.latent_rollout}
        variants = latent | {VARIANT_NAMES[name]: item.rollout_arrays for name, item in corrected_models.items()}
    evaluation = evaluate_predictor(
        corrected_models.get(stage, predictor),
        trajectories,
        dataset.task,
        cfg.evaluation,
        context=cfg.data.context,
        seed=cfg.seed,
        variants=variants,
        ensembles=_requested_ensembles(corrected_models, stage, cfg),
    )
    corrected_model = _selected_corrector(corrected_models, stage)
    if cfg.evaluation.candidates < 2 or corrected_model is None or not corrected_model.is_stochastic:
        return evaluation
    score_name, score = candidate_score(cfg.data.tasks[0], corrected_model.trained_model.task)
    best_of_n_variants = evaluate_best_of_n(
        corrected_model.trained_model.model,
        corrected_model.trained_model.weights,
        corrected_model.corrector,
        corrected_model.corrector_weights.weights,
        SAMPLERS[corrected_model.stage],
        score,
        trajectories,
        candidates=cfg.evaluation.candidates,
        batch_size=cfg.evaluation.batch_size,
        context=cfg.data.context,
        seed=cfg.seed,
    )
    candidate_meta = {"candidates": cfg.evaluation.candidates, "candidates_scored_by": score_name}
    return replace(
        evaluation, variants=dict(evaluation.variants) | best_of_n_variants, meta=dict(evaluation.meta) | candidate_meta
    )


def _evaluate_steady_task(
    model: TrainedModel,
    correctors: Mapping[str, Weights],
    stage: str,
    dataset: Dataset,
    trajectories: StoredTrajectories,
    cfg: Config,
) -> SteadyEvaluation:
    """Return the evaluation of a steady task, with the corrector `stage` or with each corrector as a variant."""
    mean_field = mean_solution(dataset)
    corrected_models = {name: CorrectedModel(model, name, weights) for name, weights in correctors.items()}
    variants: dict[str, RolloutFunction] = {}
    if stage not in correctors:
        variants = {VARIANT_NAMES[name]: item.rollout_arrays for name, item in corrected_models.items()}
    return evaluate_steady(
        corrected_models.get(stage, model).rollout_arrays,
        trajectories,
        dataset.task,
        cfg.evaluation,
        mean_field=mean_field,
        seed=cfg.seed,
        variants=variants,
        ensembles=_requested_ensembles(corrected_models, stage, cfg),
    )


def _requested_ensembles(
    corrected_models: Mapping[str, CorrectedModel], stage: str, cfg: Config
) -> dict[str, EnsembleFunction]:
    """Return the selected corrector's ensemble function by name; empty if the corrector or the request has none."""
    corrected_model = _selected_corrector(corrected_models, stage)
    if corrected_model is None or not corrected_model.is_stochastic or cfg.evaluation.members < 2:
        return {}
    return {"ensemble": corrected_model.sample_members}


def _selected_corrector(correctors: Mapping[str, _Corrector], stage: str) -> _Corrector | None:
    """Return the corrector that `stage` trains, or the last corrector if it trains none; None without correctors."""
    return correctors.get(stage, list(correctors.values())[-1]) if correctors else None


def _select_trajectories(dataset: Dataset, selection: Selection, cfg: Config) -> StoredTrajectories:
    """Return the selected trajectories of a data set, cut to the selected horizon."""
    limit = cfg.evaluation.trajectories if selection.trajectories is None else selection.trajectories
    horizon = None if dataset.task.kind == "steady" else selection.horizon
    frames = None if horizon is None else cfg.data.context + horizon
    return dataset.stored_trajectories(selection.split, limit, frames)


def truth_digest(trajectories: StoredTrajectories) -> str:
    """Return a hash (twelve hex digits) of the true trajectories; only evaluations with equal hashes are comparable."""
    hashed = hashlib.sha256()
    parts = (trajectories.fields, trajectories.inputs, trajectories.time, trajectories.ids)
    for values in (*parts, *trajectories.point_arrays.values()):
        # Row by row: the bytes of the whole array, which may be larger than the memory.
        rows = (values[[row]] for row in range(len(values))) if isinstance(values, StoredRows) else (values,)
        for part in rows:
            hashed.update(np.ascontiguousarray(part).tobytes())
    return hashed.hexdigest()[:12]


def _compare_grids(
    model: TrainedModel, cfg: Config, dataset: Dataset, resolution_mode: str, split: Split
) -> tuple[list[str], bool | None]:
    """Return notes about data on another grid than the training data, and whether it has the splits of this data.

    If the grids are equal, there are no notes and the second result is None.
    """
    if resolution_mode == "own":
        return [], None
    notes = [f"{dataset.source.name}: {RESOLUTION_MODES[resolution_mode]}"]
    if resolution_mode == "native":
        return notes, False
    mismatch = split_mismatch_note(model, cfg, dataset, split)
    return ([*notes, mismatch], False) if mismatch else (notes, True)


def _find_trained_ids(
    run: RunDirectory, checkpoints: Sequence[Weights], dataset: Dataset, splits_agree: bool | None
) -> tuple[Int[np.ndarray, " n"], list[str]]:
    """Return the ids of the trajectories of a dataset that checkpoints of a run were trained on.

    Args:
        splits_agree: Whether data on another grid has the splits of the training data; None for data on the same grid,
            whose trajectories are compared by their content.

    Returns:
        The ids, and a note on each reason why there may be others.
    """
    name = dataset.source.name
    if splits_agree is not None:
        recorded = recorded_training_set(run) or TrainingSet()
        own_data = {part for item in checkpoints for part in item.fingerprint.split("+")}
        if splits_agree and recorded.fingerprints <= own_data:
            return dataset.splits.train, []
        reason = "another grid than the training data, so that it is not known which trajectories were trained on"
        return np.arange(0), [f"{name}: is on {reason}"]
    data = Mixture(datasets=(dataset,))
    training_set = TrainingSet.union(read_training_set(run, item.fingerprint, data) for item in checkpoints)
    notes = [
        f"{name}: it is not known which trajectories {unknown} was trained on, because an earlier version of ups_jax "
        "trained it"
        for unknown in sorted(training_set.unknown_runs)
    ]
    return training_set.trained_ids(dataset), notes


def _trained_on_notes(
    dataset: Dataset, ids: Int[np.ndarray, " n"], trained_on: list[int] | None, split: Split
) -> list[str]:
    """Return a note if trajectories in the training set are evaluated in another split than `train`."""
    if not trained_on or split == "train":
        return []
    return [
        f"{dataset.source.name}: the run was trained on {len(trained_on)} of the {len(ids)} evaluated trajectories "
        f"({list_first(trained_on)}), so that the errors are not those of new trajectories"
    ]


def _omitted_corrector_notes(correctors: Mapping[str, Weights], resolution_mode: str) -> list[str]:
    """Return a note on each corrector that is not evaluated because the data is not on the trained grid."""
    return [
        f"{name} is not evaluated: it needs data on the trained grid"
        for name in correctors
        if resolution_mode == "restricted"
    ]


def _candidate_notes(model: TrainedModel, correctors: Mapping[str, Weights], stage: str, cfg: Config) -> list[str]:
    """Return a note on why `evaluation.candidates` has no effect, or an empty list."""
    weights = _selected_corrector(correctors, stage)
    objective = None if weights is None else weights.config.diffusion.objective
    reason = no_candidates_reason(model.task.kind == "steady", objective) if cfg.evaluation.candidates >= 2 else None
    return [] if reason is None else [f"evaluation.candidates has no effect: {reason}"]


def _run_meta(
    run: RunDirectory, stage: str, joint_weights: Weights, results: Sequence[_TaskResult], split: str
) -> dict[str, Any]:
    """Return entries for `meta` of the evaluation JSON: checkpoint, model, data, grid and device."""
    record, first = run.read_record()["stages"].get(stage, {}), results[0]
    weights = first.weights
    data = {
        "file": " + ".join(item.dataset.source.name for item in results),
        "fingerprint": "+".join(item.dataset.fingerprint for item in results),
        "split": split,
        "truth": "+".join(item.truth_digest for item in results),
    }
    grids = {
        item.model.task.name: {
            "trained": item.model.task.shape,
            "data": item.dataset.task.shape,
            "way": item.resolution_mode,
            "meaning": RESOLUTION_MODES[item.resolution_mode],
        }
        for item in results
    }
    fingerprints = {
        item.model.task.name: architecture_fingerprint(item.weights.config, item.model.task, stage, item.weights.params)
        for item in results
    }
    return {
        "steps": weights.step,
        "seed": weights.config.seed,
        "parameters": optax.tree.size(weights.params if len(results) == 1 else joint_weights.params),
        "architecture": combined_fingerprint(fingerprints),
        "device": jax.devices()[0].device_kind,
        "seconds_per_step": record.get("seconds_per_step"),
        "checkpoint": f"checkpoints/{stage}/{weights.step}",
        "checkpoint_digest": weights.digest,
        "wall_clock": utc_now(),
        "data": data,
        "notes": [note for item in results for note in item.notes],
        "grid": next(iter(grids.values())) if len(grids) == 1 else grids,
    } | ({} if first.ensemble_stage is None else {"ensemble_of": first.ensemble_stage})
