"""The chapters of a pipeline run that compute: validation, dry run, training, evaluation. Each is skipped where its key
is found again and its checkpoints verify, in this run or in any other."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from ups_jax.config import to_dict
from ups_jax.core.errors import CheckpointError, DataError
from ups_jax.core.files import read_json
from ups_jax.data.files import data_files
from ups_jax.pipeline.cache_keys import digest_of, evaluation_key, train_key
from ups_jax.pipeline.context import Work, copy_evaluation, set_aside
from ups_jax.pipeline.request import CONFIG_NAMES
from ups_jax.pipeline.scores import SECTIONS, Evaluation, plain
from ups_jax.pipeline.subprocess_step import Step
from ups_jax.pipeline.training_record import RecordedTraining, checkpoint_digests, find_training
from ups_jax.pipeline.wandb import write_info

# JAX's names of the devices that an evaluation may ask for.
PLATFORMS = {"cpu": "cpu", "cuda": "cuda", "gpu": "cuda", "tpu": "tpu"}


def validate(work: Work) -> dict[str, str]:
    """Check configurations and data; the fingerprint of the data of each configuration by its name."""
    request, key = work.request, digest_of([work.resolved.to_dict(), work.request.train_stage])
    configs = [argument for name in CONFIG_NAMES for argument in ("--config", str(work.config_path(name)))]
    common = [*configs, "--stage", request.train_stage]
    if request.skip_validation:
        work.skipped("validate_config", "--skip-validation")
    elif not work.done("validate_config", key):
        work.run(Step(name="validate_config", command="validate", arguments=[*common, "--only", "config"]), key)
    if request.skip_data_check:
        work.skipped("validate_data", "--skip-data-check")
        return {name: _unchecked(work, name) for name in CONFIG_NAMES}
    found = work.directory / "artifacts" / "validation.json"
    step = Step(
        name="validate_data",
        command="validate",
        arguments=[*common, "--only", "data", "--json", str(found)],
        outputs=[found],
    )
    # Always: files may have changed since, and who trains on damaged data waits for nothing.
    work.run(step, key)
    try:
        values = read_json(found)
        return {name: str(values[str(work.config_path(name))]["fingerprint"]) for name in CONFIG_NAMES}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{found}: does not hold what the data check writes ({error!r}); start again") from None


def train(work: Work, fingerprint: str) -> list[RecordedTraining]:
    """A training for each seed, which is one that is known, or made now after a dry run."""
    first = work.resolved.train.seed
    seeds = range(first, first + work.request.n_seeds)
    return [_train_seed(work, seed, seed == first, fingerprint) for seed in seeds]


def _train_seed(work: Work, seed: int, is_first: bool, fingerprint: str) -> RecordedTraining:
    request, cfg = work.request, work.resolved.of_seed(seed)
    name = "train" if is_first else f"train_seed_{seed}"
    own = RecordedTraining(work.directory / name)
    key = train_key(cfg, request.train_stage, fingerprint, _identified(request.train_arguments))
    forced = request.force_train and not (work.resumed and name in work.summary.values.get("forced", []))
    if not forced:
        if own.read().get("train_key") == key and own.fault() is None and work.done(name, key):
            return own
        known = None if request.force_train else find_training(request.runs_root, key)
        if known is not None:
            work.reused(name, key, known.path)
            return known
    if request.skip_training:
        raise CheckpointError(
            "no finished training of this configuration, data and code was found, or its checkpoints are damaged; "
            "leave out --skip-training"
        )
    unlike = work.summary.values["steps"].get(name, {}).get("key") != key
    if own.path.exists() and (forced or own.read() or unlike):
        work.say(f"{name:<16}the former one is kept in {set_aside(own.path)}")
    if forced:
        work.summary.update(forced=[*work.summary.values.get("forced", []), name])
    if is_first:
        _dry_run(work, key)
    step = Step(
        name=name,
        command="train",
        arguments=[
            *("--config", str(work.config_path("train"))),
            *("--stage", request.train_stage),
            *("--run-dir", str(own.path)),
            *(f"seed={seed}", "evaluation.enabled=false"),
            *request.train_arguments,
        ],
        environment=work.environment("" if is_first else f"seed_{seed}"),
        outputs=[own.path / "run.json"],
    )
    work.run(step, key)
    write_info(step.environment)
    cost = work.summary.values["steps"][name]
    own.record(
        train_key=key,
        stage=request.train_stage,
        config_hash=digest_of(to_dict(cfg)),
        seconds=cost["seconds"],
        peak_memory_mib=cost["peak_memory_mib"],
    )
    return own


def _dry_run(work: Work, key: str) -> None:
    if work.request.skip_dry_run:
        work.skipped("dry_run", "--skip-dry-run")
    elif not work.done("dry_run", key):
        arguments = ["--config", str(work.config_path("train")), "--stage", work.request.train_stage, "--dry-run"]
        work.run(Step(name="dry_run", command="train", arguments=arguments), key)


def evaluate(work: Work, name: str, trainings: list[RecordedTraining], fingerprint: str) -> Evaluation:
    """The evaluation `small_eval` or `full_eval` of every training."""
    return Evaluation.read(
        [_evaluate_one(work, name, training, number, fingerprint) for number, training in enumerate(trainings)]
    )


def _evaluate_one(work: Work, name: str, training: RecordedTraining, number: int, fingerprint: str) -> Path:
    request, section, cfg = work.request, SECTIONS[name], work.config(name)
    folder = "" if number == 0 else f"seed_{work.resolved.train.seed + number}"
    output = work.directory / folder
    step_name = name if number == 0 else f"{name}_{number}"
    file = output / "evaluation" / f"{section}.json"
    checkpoints = training.read()["checkpoints"]
    key = evaluation_key(checkpoints, cfg, section, fingerprint, request.eval_device)
    redo = request.redo_small_eval if section == "small" else request.redo_full_eval
    again = redo and not (work.resumed and step_name in work.summary.values.get("redone", []))
    known = None if again else training.evaluation(key)
    if known is not None:
        if known.resolve() == file.resolve() and work.done(step_name, key):
            return file
        if known.resolve() != file.resolve():
            copy_evaluation(known, file)
        work.reused(step_name, key, known)
        return file
    device = {} if request.eval_device == "auto" else {"JAX_PLATFORMS": PLATFORMS[request.eval_device]}
    environment = work.environment(folder) | device
    step = Step(
        name=step_name,
        command="evaluate",
        arguments=[
            *("--run-dir", str(training.path)),
            *("--config", str(work.config_path(name))),
            *("--pipeline", section, "--output-dir", str(output)),
            "--film",
        ],
        environment=environment,
        outputs=[file],
    )
    file.unlink(missing_ok=True)
    work.run(step, key)
    write_info(environment)
    if redo:
        work.summary.update(redone=[*work.summary.values.get("redone", []), step_name])
    evaluated = Evaluation.read([file])
    training.note_evaluation(section, key, file, plain(evaluated.numbers), evaluated.meta["architecture"])
    return file


def _unchecked(work: Work, name: str) -> str:
    """What stands for the fingerprint where the data is not read: all of its files by size and time."""
    cfg = work.config(name)
    files = [path for task in cfg.data.tasks for own in data_files(cfg.data, task).values() for path in own]
    known = [[str(path), *_size_and_time(path)] for path in files]
    return f"unchecked-{digest_of(known)}"


def _size_and_time(path: Path) -> tuple[int, int]:
    try:
        found = path.stat()
    except FileNotFoundError:
        return 0, 0
    return found.st_size, found.st_mtime_ns


def _identified(arguments: tuple[str, ...]) -> list[str]:
    """Arguments of the training; a run that it starts from by the content of its checkpoints."""
    found = []
    for before, text in zip(("", *arguments), arguments, strict=False):
        option, _, value = text.partition("=")
        run = value if option == "--init-from" else text if before == "--init-from" else None
        found.append(text if run in (None, "") else digest_of(checkpoint_digests(Path(str(run)))))
    return found


def full_scope(work: Work, fingerprint: str) -> str:
    """A digest over what the full evaluation is of, known before it was made."""
    section = work.config("full_eval").pipeline.full
    return digest_of([asdict(section), [task.name for task in work.config("full_eval").data.tasks], fingerprint])[:12]
