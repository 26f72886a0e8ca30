"""The computing steps of a pipeline run: validation, dry run, training, evaluation.

A training or evaluation is reused if any run already contains one with the same cache key and intact checkpoints.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from ups_jax.config import to_dict
from ups_jax.core.errors import CheckpointError, DataError
from ups_jax.core.files import read_json
from ups_jax.data.files import data_files
from ups_jax.pipeline.cache_keys import evaluation_key, json_digest, train_key
from ups_jax.pipeline.context import PipelineRun, copy_evaluation, move_to_backup
from ups_jax.pipeline.request import CONFIG_NAMES
from ups_jax.pipeline.scores import SECTIONS, Evaluation, finite_or_none
from ups_jax.pipeline.subprocess_step import Step
from ups_jax.pipeline.training_record import RecordedTraining, checkpoint_digests, find_training
from ups_jax.pipeline.wandb import write_wandb_info

# Values of --eval-device and the JAX platform of each.
PLATFORMS = {"cpu": "cpu", "cuda": "cuda", "gpu": "cuda", "tpu": "tpu"}


def validate(pipeline: PipelineRun) -> dict[str, str]:
    """Check the configurations and their data, and return the fingerprint of each configuration's data.

    Raises:
        DataError: If the result file of the data check cannot be read.
    """
    request, key = pipeline.request, json_digest([pipeline.resolved.to_dict(), pipeline.request.train_stage])
    configs = [argument for name in CONFIG_NAMES for argument in ("--config", str(pipeline.config_path(name)))]
    common = [*configs, "--stage", request.train_stage]
    if request.skip_validation:
        pipeline.mark_skipped("validate_config", "--skip-validation")
    elif not pipeline.was_done("validate_config", key):
        pipeline.run(Step(name="validate_config", command="validate", arguments=[*common, "--only", "config"]), key)
    if request.skip_data_check:
        pipeline.mark_skipped("validate_data", "--skip-data-check")
        return {name: _unchecked_fingerprint(pipeline, name) for name in CONFIG_NAMES}
    result_file = pipeline.directory / "artifacts" / "validation.json"
    step = Step(
        name="validate_data",
        command="validate",
        arguments=[*common, "--only", "data", "--json", str(result_file)],
        outputs=[result_file],
    )
    # Always run: the files may have changed, and a training on damaged data is wasted.
    pipeline.run(step, key)
    try:
        values = read_json(result_file)
        return {name: str(values[str(pipeline.config_path(name))]["fingerprint"]) for name in CONFIG_NAMES}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{result_file}: is not a result of the data check ({error!r}); run the same command again"
        ) from None


def train(pipeline: PipelineRun, fingerprint: str) -> list[RecordedTraining]:
    """Return the training of each seed; a training that cannot be reused is executed now, after a dry run.

    Args:
        fingerprint: Fingerprint of the training data.

    Raises:
        CheckpointError: If --skip-training is set and there is no training to reuse.
    """
    first = pipeline.resolved.train.seed
    seeds = range(first, first + pipeline.request.n_seeds)
    return [_train_seed(pipeline, seed, seed == first, fingerprint) for seed in seeds]


def _train_seed(pipeline: PipelineRun, seed: int, is_first_seed: bool, fingerprint: str) -> RecordedTraining:
    """Return the training of one seed, which is reused or executed now."""
    request, cfg = pipeline.request, pipeline.resolved.train_with_seed(seed)
    name = "train" if is_first_seed else f"train_seed_{seed}"
    training = RecordedTraining(pipeline.directory / name)
    key = train_key(cfg, request.train_stage, fingerprint, _arguments_for_key(request.train_arguments))
    forced = request.force_train and not (pipeline.resumed and name in pipeline.summary.values.get("forced", []))
    if not forced:
        if training.read().get("train_key") == key and training.find_problem() is None and pipeline.was_done(name, key):
            return training
        reusable = None if request.force_train else find_training(request.runs_root, key)
        if reusable is not None:
            pipeline.mark_reused(name, key, reusable.path)
            return reusable
    if request.skip_training:
        raise CheckpointError(
            "--skip-training: no run contains a finished training with this configuration, data and code, and with "
            "intact checkpoints; omit --skip-training"
        )
    is_different = pipeline.summary.values["steps"].get(name, {}).get("key") != key
    if training.path.exists() and (forced or training.read() or is_different):
        pipeline.print(f"{name:<16}moved the previous training to {move_to_backup(training.path)}")
    if forced:
        pipeline.summary.update(forced=[*pipeline.summary.values.get("forced", []), name])
    if is_first_seed:
        _dry_run(pipeline, key)
    step = Step(
        name=name,
        command="train",
        arguments=[
            *("--config", str(pipeline.config_path("train"))),
            *("--stage", request.train_stage),
            *("--run-dir", str(training.path)),
            *(f"seed={seed}", "evaluation.enabled=false"),
            *request.train_arguments,
        ],
        environment=pipeline.environment("" if is_first_seed else f"seed_{seed}"),
        outputs=[training.path / "run.json"],
    )
    pipeline.run(step, key)
    write_wandb_info(step.environment)
    cost = pipeline.summary.values["steps"][name]
    training.record_training(
        train_key=key,
        stage=request.train_stage,
        config_hash=json_digest(to_dict(cfg)),
        seconds=cost["seconds"],
        peak_memory_mib=cost["peak_memory_mib"],
    )
    return training


def _dry_run(pipeline: PipelineRun, key: str) -> None:
    """Run the training command with --dry-run, unless an earlier start did so or --skip-dry-run is set."""
    if pipeline.request.skip_dry_run:
        pipeline.mark_skipped("dry_run", "--skip-dry-run")
    elif not pipeline.was_done("dry_run", key):
        arguments = [
            "--config",
            str(pipeline.config_path("train")),
            "--stage",
            pipeline.request.train_stage,
            "--dry-run",
        ]
        pipeline.run(Step(name="dry_run", command="train", arguments=arguments), key)


def evaluate(pipeline: PipelineRun, step_name: str, trainings: list[RecordedTraining], fingerprint: str) -> Evaluation:
    """Return the evaluation of all seeds; the evaluation of each seed is reused or executed now.

    Args:
        step_name: `small_eval` or `full_eval`.
        trainings: The training of each seed.
        fingerprint: Fingerprint of the evaluation data.
    """
    return Evaluation.read(
        [_evaluate_seed(pipeline, step_name, training, index, fingerprint) for index, training in enumerate(trainings)]
    )


def _evaluate_seed(
    pipeline: PipelineRun, step_name: str, training: RecordedTraining, seed_index: int, fingerprint: str
) -> Path:
    """Return the evaluation file of one seed, which is reused or written now."""
    request, section, cfg = pipeline.request, SECTIONS[step_name], pipeline.config(step_name)
    folder = "" if seed_index == 0 else f"seed_{pipeline.resolved.train.seed + seed_index}"
    output = pipeline.directory / folder
    seed_step_name = step_name if seed_index == 0 else f"{step_name}_{seed_index}"
    file = output / "evaluation" / f"{section}.json"
    checkpoints = training.read()["checkpoints"]
    key = evaluation_key(checkpoints, cfg, section, fingerprint, request.eval_device)
    redo = request.redo_small_eval if section == "small" else request.redo_full_eval
    is_forced = redo and not (pipeline.resumed and seed_step_name in pipeline.summary.values.get("redone", []))
    reusable = None if is_forced else training.find_evaluation(key)
    if reusable is not None:
        if reusable.resolve() == file.resolve() and pipeline.was_done(seed_step_name, key):
            return file
        if reusable.resolve() != file.resolve():
            copy_evaluation(reusable, file)
        pipeline.mark_reused(seed_step_name, key, reusable)
        return file
    device = {} if request.eval_device == "auto" else {"JAX_PLATFORMS": PLATFORMS[request.eval_device]}
    environment = pipeline.environment(folder) | device
    step = Step(
        name=seed_step_name,
        command="evaluate",
        arguments=[
            *("--run-dir", str(training.path)),
            *("--config", str(pipeline.config_path(step_name))),
            *("--pipeline", section, "--output-dir", str(output)),
            "--film",
        ],
        environment=environment,
        outputs=[file],
    )
    file.unlink(missing_ok=True)
    pipeline.run(step, key)
    write_wandb_info(environment)
    if redo:
        pipeline.summary.update(redone=[*pipeline.summary.values.get("redone", []), seed_step_name])
    evaluation = Evaluation.read([file])
    training.record_evaluation(section, key, file, finite_or_none(evaluation.numbers), evaluation.meta["architecture"])
    return file


def _unchecked_fingerprint(pipeline: PipelineRun, config_name: str) -> str:
    """Return a data fingerprint from the sizes and modification times of the files, for --skip-data-check."""
    cfg = pipeline.config(config_name)
    files = [path for task in cfg.data.tasks for paths in data_files(cfg.data, task).values() for path in paths]
    entries = [[str(path), *_size_and_mtime_ns(path)] for path in files]
    return f"unchecked-{json_digest(entries)}"


def _size_and_mtime_ns(path: Path) -> tuple[int, int]:
    """Return the size and modification time (ns) of a file, or zeros if it does not exist."""
    try:
        status = path.stat()
    except FileNotFoundError:
        return 0, 0
    return status.st_size, status.st_mtime_ns


def _arguments_for_key(arguments: tuple[str, ...]) -> list[str]:
    """Return training arguments for the cache key, with the run of --init-from replaced by its checkpoints' digest."""
    identified = []
    for previous, text in zip(("", *arguments), arguments, strict=False):
        option, _, value = text.partition("=")
        run = value if option == "--init-from" else text if previous == "--init-from" else None
        identified.append(text if run in (None, "") else json_digest(checkpoint_digests(Path(str(run)))))
    return identified


def full_evaluation_scope(pipeline: PipelineRun, fingerprint: str) -> str:
    """Return a digest of the settings, tasks and data of the full evaluation.

    Args:
        fingerprint: Fingerprint of the evaluation data.
    """
    section = pipeline.config("full_eval").pipeline.full
    return json_digest([asdict(section), [task.name for task in pipeline.config("full_eval").data.tasks], fingerprint])[
        :12
    ]
