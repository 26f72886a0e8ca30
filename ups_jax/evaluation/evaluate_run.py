"""A run directory in; its evaluation JSON, plots and report out."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import jax
import numpy as np
import optax
from rich.console import Console

from ups_jax import simulate
from ups_jax.config import Config, FullEvaluationConfig, from_dict, load, merge, of_task, to_dict
from ups_jax.core.errors import ConfigError, DataError
from ups_jax.core.terminal import say
from ups_jax.core.xla import require_determinism
from ups_jax.data import Dataset, Mixture, Split, as_mixture, open_dataset
from ups_jax.data.dataset import Trajectories
from ups_jax.data.files import configured_tasks, single_task
from ups_jax.data.open import as_trained_task
from ups_jax.evaluation.best_of_n import candidate_variants, no_candidates_reason, candidate_score
from ups_jax.evaluation.console import print_table, track_evaluation
from ups_jax.evaluation.evaluate import Rollout, evaluate_predictor
from ups_jax.evaluation.model_fingerprint import architecture, architecture_of_all
from ups_jax.evaluation.result import TransientEvaluation, EvaluationResult, SteadyEvaluation, to_json_values, evaluation_result, write_json
from ups_jax.evaluation.steady import evaluate_steady, mean_solution
from ups_jax.inference.corrected import SAMPLERS, VARIANT_NAMES, CorrectedModel, load_corrector, load_correctors, predictor_stage
from ups_jax.inference.resolution import RESOLUTION_MODES, split_mismatch_note, predictor_for_grid
from ups_jax.inference.trained_model import TrainedModel, build_trained_model, select_task
from ups_jax.runs.best_weights import Weights, best_weights
from ups_jax.runs.directory import RunDirectory, now
from ups_jax.tracking import ending, evaluation_writer, read_jsonl
from ups_jax.training.build import JointModel

# What an evaluation may override: where data lies and how it is read, never what a trained run was trained on.
_OVERRIDABLE = ("data.tasks", "data.root", "data.loader", "evaluation", "logging", "pipeline")


@dataclass(frozen=True, kw_only=True)
class Selection:
    """Which trajectories are evaluated: the first `trajectories` of a split, and the first `horizon` predicted frames
    of each. `name`, where there is one, is the evaluation's, and its files go below `output` instead of the run."""

    split: Split = "test"
    trajectories: int | None = None
    horizon: int | None = None
    name: str | None = None
    output: Path | None = None
    film: bool = False

    def of_pipeline(self, name: str, section: FullEvaluationConfig) -> Selection:
        """The same with the trajectories and under the name of a section of `pipeline`."""
        return replace(self, name=name, split=section.split, trajectories=section.trajectories, horizon=section.horizon)


def run_config(path: Path, overrides: list[str], config: Path | None = None) -> Config:
    """The configuration that a run was trained with, with overrides of data files and evaluation applied.

    Of another `config` that is given the same sections hold instead of the run's own.
    """
    for override in overrides:
        if not override.startswith(tuple(f"{section}{end}" for section in _OVERRIDABLE for end in ".=")):
            raise ConfigError(
                f"override {override!r} would change what the run was trained on; an evaluation takes overrides of "
                f"{', '.join(_OVERRIDABLE)}"
            )
    values = RunDirectory(path).read()["config"]
    if config is not None:
        other = to_dict(load(config))
        values = values | {key: other[key] for key in ("evaluation", "logging", "pipeline")}
        values["data"] = values["data"] | {key: other["data"][key] for key in ("tasks", "root", "loader")}
    return from_dict(merge(values, overrides), str(path))


def evaluate(
    model: TrainedModel,
    data: Dataset | Mixture,
    *,
    split: Split = "test",
    trajectories: int | None = None,
    horizon: int | None = None,
) -> EvaluationResult:
    """Return the evaluation of a trained model: the values that the command `evaluate` writes as JSON.

    Nothing is written or printed: what the command prints as notes is in `result["meta"]["notes"]`. Metrics are of
    decoded fields in physical units.

    Args:
        model: The model of a run, from `load_run`.
        data: The data, opened by `open_dataset` or `open_mixture` or made by `from_arrays`. Of a model of several
            tasks, those tasks are evaluated that the data has.
        split: Trajectories that are evaluated: those of `train`, `val` or `test`.
        trajectories: Number of trajectories, from the first on; all by default.
        horizon: Number of predicted frames, from the first on; all by default.

    Raises:
        ConfigError: The data has none of the model's tasks.
        DataError: The data has other channels or axes than the model's task, or too few frames.
    """
    run = RunDirectory(model.path)
    datasets = {dataset.task.name: dataset for dataset in as_mixture(data).datasets}
    if len(model.tasks) == len(datasets) == 1:
        # A model of one task takes data of any task name.
        datasets = {model.task.name: next(iter(datasets.values()))}
    cfg = run_config(model.path, [])
    names = [task.name for task in model.tasks]
    tasks = tuple(task for task in cfg.data.tasks if task.name in datasets and task.name in names)
    if not tasks:
        raise ConfigError(
            f"{model.path}: this model is of {', '.join(names)}, the data is of {', '.join(datasets)}; "
            "open the data of one of the model's tasks"
        )
    cfg = replace(cfg, data=replace(cfg.data, tasks=tasks))
    datasets = {
        task.name: as_trained_task(of_task(cfg, task.name), datasets[task.name], select_task(model, task.name).task)
        for task in tasks
    }
    selection = Selection(split=split, trajectories=trajectories, horizon=horizon)
    each = _of_tasks(model, cfg, model.stage, run.main_stage(), selection, datasets, Console(quiet=True))
    meta = _meta(run, model.stage, model.checkpoint, each, split)
    return cast(EvaluationResult, to_json_values(evaluation_result([task.measured for task in each], meta)))


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
    """Evaluate the best checkpoint on a split: evaluation/<name>.json, plots and report, and a printed table.

    Where `selection` gives no name it is the split, after the name of a `stage` that is not the run's main one; for
    other data than the run's own, the data file's name follows. `track` hands the result to W&B and TensorBoard as
    well, where they are on. `data` is the configuration's data and `models` the
    models of the stage, where the caller has trained the run with them.
    """
    require_determinism(cfg.deterministic)
    run = RunDirectory(path)
    main = run.main_stage()
    stage = stage or main
    if data is None:
        simulate.prepare(cfg)
    predictor = predictor_stage(path, stage)
    whole = build_trained_model(path, predictor, best_weights(path, predictor), models if stage == predictor else None)
    each = _of_tasks(whole, cfg, stage, main, selection, _opened(data, whole), console)
    split = selection.split
    name = split if stage == main else f"{stage}_{split}"
    foreign = [
        Path(own.dataset.source.name).stem
        for own in each
        if own.dataset.fingerprint != own.trained.checkpoint.fingerprint
    ]
    name, place = selection.name or "-".join([name, *foreign]), RunDirectory(selection.output or path)
    evaluations = [own.measured for own in each]
    values = cast(EvaluationResult, to_json_values(evaluation_result(evaluations, _meta(run, stage, whole.checkpoint, each, split))))
    written = [place.evaluation / f"{name}.json"]
    write_json(written[0], values)
    if json_path is not None:
        write_json(json_path, values)
    plots: list[Path] = []
    if cfg.evaluation.plots:
        # These load matplotlib, which an evaluation without plots does not need.
        from ups_jax.evaluation.plots.figures import write_plots
        from ups_jax.evaluation.plots.html_report import write_report

        records = read_jsonl(run.metrics_path) if run.metrics_path.exists() else []
        # The test split of the run's own data is its result; the others get a folder and a report of their own.
        plots = write_plots(place.plots if name == "test" else place.plots / name, evaluations, records)
        report = "report.html" if name == "test" else f"report_{name}.html"
        written.append(place.path / report)
        write_report(written[-1], values, plots, run.read())
    names = _names(name, evaluations)
    if selection.film:
        from ups_jax.evaluation.plots.figures import file_name
        from ups_jax.evaluation.plots.films import FILM, write_film

        scattered = [measured.task.name for measured in evaluations if measured.task.scattered]
        if scattered:
            say(console, f"note        {', '.join(scattered)}: is of points, there is no film of it")
        for measured in evaluations:
            film = FILM if len(evaluations) == 1 else f"{file_name(measured.task.name)}_{FILM}"
            write_film(place.plots / name / film, measured)
    if track:
        with ending(evaluation_writer(place.path, cfg.logging, name=name, run_config=to_dict(cfg))) as writer:
            for number, (own, measured) in enumerate(zip(names, evaluations, strict=True)):
                # Pictures and files are of all tasks.
                first = {"plots": plots, "files": written} if number == 0 else {"plots": (), "files": ()}
                track_evaluation(writer, own, measured, **first)
    for measured in evaluations:
        print_table(console, measured)
    return values


@dataclass(frozen=True, kw_only=True)
class _OfTask:
    """What a run makes of the data of one of its tasks; `weights` are those of the evaluated stage, `random` the stage
    whose ensemble is scored."""

    trained: TrainedModel
    weights: Weights
    dataset: Dataset
    measured: TransientEvaluation | SteadyEvaluation
    way: str
    truth: str
    random: str | None
    notes: tuple[str, ...]


def _of_tasks(
    whole: TrainedModel,
    cfg: Config,
    stage: str,
    main: str,
    selection: Selection,
    data: Mapping[str, Dataset],
    console: Console,
) -> list[_OfTask]:
    """Every task of the configuration, on its `data` where that is opened already; ConfigError where the run was not
    trained on one of them."""
    path, several = whole.path, len(whole.tasks) > 1
    if not several:
        single_task(cfg)
    found = {stage: load_corrector(path, stage)} if stage in VARIANT_NAMES else load_correctors(path) if stage == main else {}
    result = []
    for task in configured_tasks(cfg):
        own = of_task(cfg, task.name)
        trained = select_task(whole, task.name if several else None)
        dataset = data.get(trained.task.name) or open_dataset(own, trained.task)
        way = predictor_for_grid(trained, dataset.task)[1]
        left_out = [] if stage in VARIANT_NAMES else _left_out(found, way)
        left_out += _no_candidates(trained, {} if way == "restricted" else found, stage, own)
        notes = (*dataset.notes, *_grid_notes(trained, own, dataset, way, selection.split), *left_out)
        for note in notes:
            say(console, f"note        {note}")
        held = _held(dataset, selection, cfg.data.context)
        measured = _measure(trained, found, stage, dataset, held, own)
        drawn = (stage if stage in found else next(reversed(found))) if "ensemble" in measured.variants else None
        result.append(
            _OfTask(
                trained=trained,
                weights=found.get(stage, trained.checkpoint),
                dataset=dataset,
                measured=measured,
                way=way,
                truth=truth_of(held),
                random=drawn,
                notes=notes,
            )
        )
    return result


def _opened(data: Mixture | None, whole: TrainedModel) -> dict[str, Dataset]:
    """Return the data sets of `data` that the run was trained on, by task."""
    models = (select_task(whole, task.name) for task in whole.tasks)
    trained = {(model.task, model.checkpoint.fingerprint) for model in models}
    datasets = () if data is None else data.datasets
    return {item.task.name: item for item in datasets if (item.task, item.fingerprint) in trained}


def _names(name: str, evaluations: Sequence[TransientEvaluation | SteadyEvaluation]) -> list[str]:
    """What the result of each task is called by writers: as the evaluation, of several with the task's name."""
    if len(evaluations) == 1:
        return [name]
    return [f"{name}/{measured.task.name}" for measured in evaluations]


def _measure(
    trained: TrainedModel, found: Mapping[str, Weights], stage: str, dataset: Dataset, held: Trajectories, cfg: Config
) -> TransientEvaluation | SteadyEvaluation:
    """The result of a stage: of a corrector's that of the predictor with it, of the main one that of the predictor
    alone, with the correctors `found` as variants."""
    if trained.task.kind == "steady":
        mean_field = mean_solution(dataset)
        solvers = {name: CorrectedModel(trained, name, weights) for name, weights in found.items()}
        return evaluate_steady(
            solvers.get(stage, trained).rollout_arrays,
            held,
            dataset.task,
            cfg.evaluation,
            mean_field=mean_field,
            seed=cfg.seed,
            variants={} if stage in found else {VARIANT_NAMES[name]: way.rollout_arrays for name, way in solvers.items()},
            ensembles=_ensemble(solvers, stage, cfg),
        )
    predictor, met = predictor_for_grid(trained, dataset.task)
    # A corrector acts on the grid that the model steps on.
    here = {
        name: CorrectedModel(trained.on(dataset.task), name, weights)
        for name, weights in found.items()
        if met != "restricted"
    }
    if stage in found and stage not in here:
        raise DataError(f"{dataset.source.name}: {RESOLUTION_MODES[met]}; {stage} is evaluated on the trained grid only")
    variants: dict[str, Rollout] = {}
    if stage not in here:
        # Points are encoded anew at each step: their own values are no part of the tokens.
        latent = {} if dataset.task.scattered else {"latent": predictor.latent_rollout}
        variants = latent | {VARIANT_NAMES[name]: way.rollout_arrays for name, way in here.items()}
    measured = evaluate_predictor(
        here.get(stage, predictor),
        held,
        dataset.task,
        cfg.evaluation,
        context=cfg.data.context,
        seed=cfg.seed,
        variants=variants,
        ensembles=_ensemble(here, stage, cfg),
    )
    last = _last(here, stage)
    if cfg.evaluation.candidates < 2 or last is None or not last.is_stochastic:
        return measured
    name, score = candidate_score(cfg.data.tasks[0], last.trained_model.task)
    chosen = candidate_variants(
        last.trained_model.model,
        last.trained_model.weights,
        last.corrector,
        last.corrector_weights.weights,
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
    last = _last(here, stage)
    return {"ensemble": last.sample_members} if last is not None and last.is_stochastic and cfg.evaluation.members >= 2 else {}


def _last(of: Mapping[str, Any], stage: str) -> Any:
    """What belongs to the corrector that is evaluated, or to the run's last one; None where there is none."""
    return of.get(stage, list(of.values())[-1]) if of else None


def _held(dataset: Dataset, selection: Selection, context: int) -> Trajectories:
    """The trajectories that are evaluated, as long as they are."""
    held = dataset.trajectories(selection.split, selection.trajectories)
    if selection.horizon is None or dataset.task.kind == "steady":
        return held
    frames = context + selection.horizon
    return replace(held, fields=held.fields[:, :frames], time=held.time[:frames])


def truth_of(held: Trajectories) -> str:
    """Twelve hex digits over what is to be predicted: two evaluations with the same ones can be compared."""
    hashed = hashlib.sha256(np.ascontiguousarray(held.fields).data)
    for values in (held.inputs, held.time, held.ids, *held.point_arrays.values()):
        hashed.update(np.ascontiguousarray(values).tobytes())
    return hashed.hexdigest()[:12]


def _grid_notes(trained: TrainedModel, cfg: Config, dataset: Dataset, way: str, split: Split) -> list[str]:
    if way == "own":
        return []
    notes = [f"{dataset.source.name}: {RESOLUTION_MODES[way]}"]
    different = split_mismatch_note(trained, cfg, dataset, split) if way != "native" else None
    return [*notes, different] if different else notes


def _left_out(found: Mapping[str, Weights], way: str) -> list[str]:
    """What is to be said of correctors that an evaluation of their predictor has no variants of."""
    return [f"{name}: is left out, as it acts on the trained grid only" for name in found if way == "restricted"]


def _no_candidates(trained: TrainedModel, found: Mapping[str, Weights], stage: str, cfg: Config) -> list[str]:
    """What is to be said where candidates are asked for and there are none."""
    last = _last(found, stage)
    objective = None if last is None else last.config.diffusion.objective
    reason = no_candidates_reason(trained.task.kind == "steady", objective) if cfg.evaluation.candidates >= 2 else None
    return [] if reason is None else [f"evaluation.candidates: are left out, as {reason}"]


def _meta(run: RunDirectory, stage: str, whole: Weights, each: Sequence[_OfTask], split: str) -> dict[str, Any]:
    record, first = run.read()["stages"].get(stage, {}), each[0]
    trained = first.weights
    data = {
        "file": " + ".join(own.dataset.source.name for own in each),
        "fingerprint": "+".join(own.dataset.fingerprint for own in each),
        "split": split,
        "truth": "+".join(own.truth for own in each),
    }
    grids = {
        own.trained.task.name: {
            "trained": own.trained.task.shape,
            "data": own.dataset.task.shape,
            "way": own.way,
            "meaning": RESOLUTION_MODES[own.way],
        }
        for own in each
    }
    found = {
        own.trained.task.name: architecture(own.weights.config, own.trained.task, stage, own.weights.params)
        for own in each
    }
    return {
        "steps": trained.step,
        "seed": trained.config.seed,
        "parameters": optax.tree.size(trained.params if len(each) == 1 else whole.params),
        "architecture": architecture_of_all(found),
        "device": jax.devices()[0].device_kind,
        "seconds_per_step": record.get("seconds_per_step"),
        "checkpoint": f"checkpoints/{stage}/{trained.step}",
        "checkpoint_digest": trained.digest,
        "wall_clock": now(),
        "data": data,
        "notes": [note for task in each for note in task.notes],
        "grid": next(iter(grids.values())) if len(grids) == 1 else grids,
    } | ({} if first.random is None else {"ensemble_of": first.random})
