"""Checks before a stage is trained. `preflight` returns the data, model, plan and losses that it has checked.

All errors are raised before anything is written into the run directory.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from rich.console import Console

from ups_jax import simulate
from ups_jax.config import Config, digest, from_dict, relevant_values, to_dict
from ups_jax.core.commands import command
from ups_jax.core.errors import CheckpointError, ConfigError
from ups_jax.core.rng import jax_stream_key
from ups_jax.core.task import Statistics, Task
from ups_jax.core.terminal import print_line
from ups_jax.core.xla import jit_context, require_determinism
from ups_jax.data import Mixture, first_batches, open_mixture, windows_per_step
from ups_jax.distributed.mesh import check_rows, make_mesh
from ups_jax.distributed.processes import on_host0
from ups_jax.losses import StageLoss, StepContext, weight_key
from ups_jax.losses.spectral import BANDS
from ups_jax.models import Batch, normalize
from ups_jax.runs.best_weights import Weights, best_weights, tasks_of_run
from ups_jax.runs.checkpoint import recorded_tasks
from ups_jax.runs.directory import RunDirectory, newest_step
from ups_jax.runs.training_set import TrainingSet, check_unseen, read_training_set
from ups_jax.tracking import check_logging
from ups_jax.trainer.frozen_codec import check_latent_source, with_field_source, with_stored_latents
from ups_jax.trainer.oom import batch_size_key, raise_on_oom, row_too_large_error
from ups_jax.training.build import JointModel, build_joint_model
from ups_jax.training.run_length import Plan, make_plan
from ups_jax.training.stages import stage_spec
from ups_jax.training.stages.spec import StageSpec


@dataclass(frozen=True, kw_only=True)
class Preflight:
    """The checked components of a stage's training.

    Attributes:
        losses: Loss function of each task.
        plan: Number of steps; None if it follows from `max_seconds`, because the time per step is not measured yet.
        init_weights: Weights of the run in `--init-from`; None without this option.
        init_training_set: Trajectories that these weights were trained on; None if they are not used.
    """

    data: Mixture
    model: JointModel
    losses: Sequence[StageLoss]
    plan: Plan | None
    init_weights: Weights | None
    init_training_set: TrainingSet | None


def preflight(
    cfg: Config,
    stage: str,
    run: RunDirectory,
    *,
    resume: str = "auto",
    init_from: Path | None = None,
    data: Mixture | None = None,
    console: Console,
) -> Preflight:
    """Check the run directory, the configuration, the data, the model, the plan and the losses of a stage.

    No files are written except the missing data of built-in tasks.

    Args:
        resume: `auto`, `must` or `never`, as in `trainer.train.train`.
        init_from: Run from whose weights a new stage starts.
        data: The open data; by default the data of the configuration is opened.

    Raises:
        ConfigError: The configuration has an error, does not match the run directory, or splits the data such that the
            weights of `init_from` were trained on validation or test trajectories.
        CheckpointError: A required checkpoint is missing.
        Also the errors of `open_mixture`.
    """
    spec = stage_spec(stage)
    require_determinism(cfg.deterministic)
    check_logging(cfg.logging)
    check_resume(run, cfg, stage, resume)
    check_required_stages(run, spec, cfg.data.tasks[0].kind)
    check_latent_source(cfg, stage)
    if data is None:
        generate_missing_data(cfg, console)
    check_rows(make_mesh(cfg.parallel), windows_per_step(cfg, stage), batch_size_key(stage))
    data = open_mixture(cfg) if data is None else data
    weights = None if init_from is None else best_weights(init_from, stage)
    init_training_set = None
    # A stage with a checkpoint is resumed and ignores `--init-from`.
    if weights is not None and init_from is not None and not newest_step(run.checkpoint_folder(stage)):
        init_run = RunDirectory(init_from)
        init_training_set = read_training_set(init_run, weights.fingerprint, data)
        for note in check_unseen(init_training_set, data, init_run, "--init-from"):
            print_line(console, f"note        {note}")
    # A resumed stage keeps the meaning of its losses, and parameters fit to one division of the grid into patches only.
    data = with_recorded(data, recorded_tasks(run.checkpoint_folder(stage)), "loss_scales")
    recorded = tasks_of_run(run)
    data = with_recorded(data, recorded or (() if weights is None else weights.tasks), "partition")
    # The statistics of coefficients are inputs of the trained weights of this run.
    data = with_recorded(data, recorded, "coefficients")
    model = build_joint_model(cfg, data.tasks, stage)
    plan = make_plan(cfg, data, stage) if getattr(cfg.stages, stage).max_seconds is None else None
    losses = model.losses(spec, cfg)
    with jit_context(cfg.training.compile):
        # On fields: which parameters a loss term affects does not depend on latents, which are opened below.
        check_all_term_gradients(model, with_field_source(cfg), stage, first_batches(data, cfg, stage))
    if weights is not None:
        check_init_fold(cfg, data.fingerprint_like(weights.fingerprint), weights)
    data = with_stored_latents(cfg, stage, data, run, weights, init_from)
    return Preflight(
        data=data, model=model, losses=losses, plan=plan, init_weights=weights, init_training_set=init_training_set
    )


def with_recorded(data: Mixture, tasks: Sequence[Task], name: str) -> Mixture:
    """Return the data whose tasks have the attribute `name` of recorded tasks.

    It differs from the attribute of new data only for runs of earlier versions.

    Args:
        tasks: Recorded tasks in the order of the data; the data is returned unchanged if there are none.
    """
    if len(tasks) != len(data.datasets):
        return data
    pairs = zip(data.datasets, tasks, strict=True)
    return Mixture(
        datasets=tuple(
            replace(dataset, task=replace(dataset.task, **{name: getattr(task, name)})) for dataset, task in pairs
        )
    )


def generate_missing_data(cfg: Config, console: Console) -> None:
    """Generate the missing data of built-in tasks on host 0, and print the names of the generated files."""
    with console.status("") as status:
        written = on_host0(lambda: simulate.generate_missing(cfg, report=status.update))
    for file in written or ():
        print_line(console, f"generated   {file}")


def check_resume(run: RunDirectory, cfg: Config, stage: str, resume: str) -> None:
    """Raise an error if the training of a stage cannot be started or resumed in the run directory.

    Args:
        resume: `auto`, `must` or `never`, as in `trainer.train.train`.

    Raises:
        ConfigError: The directory holds files but no run, a run although `resume` is `never`, or a run with another
            configuration.
        CheckpointError: The directory holds no run although `resume` is `must`.
    """
    if run.path.exists() and not run.path.is_dir():
        raise ConfigError(f"{run.path}: is a file; give a directory as --run-dir")
    if not run.has_record():
        if resume == "must":
            raise CheckpointError(
                f"{run.path}: holds no run, which --resume must requires; give --resume auto to start a new run"
            )
        if run.contains_other_files():
            raise ConfigError(f"{run.path}: is not empty and is not a run directory; give a new --run-dir")
        return
    if resume == "never":
        raise ConfigError(f"{run.path}: already holds a run; give a new --run-dir, or --resume auto to resume it")
    record = run.read_record()
    for name in (*stage_spec(stage).required_stages(cfg.data.tasks[0].kind), stage):
        if record["digests"].get(name, digest(cfg, name)) != digest(cfg, name):
            changed = "; ".join(_describe_changes(record["config"], cfg, name))
            raise ConfigError(f"{run.path}: holds a run of another configuration ({changed}); give a new --run-dir")


def check_required_stages(run: RunDirectory, spec: StageSpec, task_kind: str) -> None:
    """Raise CheckpointError if a prerequisite of the stage `spec` has no checkpoint in the run."""
    for name in spec.required_stages(task_kind):
        if not run.checkpoint_folder(name).is_dir():
            raise CheckpointError(
                f"{run.path}: stage {spec.name} needs a checkpoint of stage {name}; "
                f"train {name} with `{command('train')} --stage {name} --run-dir {run.path}`"
            )


def check_parent_checkpoints(run: RunDirectory, stage: str, best_checkpoints: dict[str, Any]) -> None:
    """Raise ConfigError if a stage was trained on parent checkpoints that are no longer the best ones.

    Args:
        best_checkpoints: Step and digest of the best checkpoint of each parent.
    """
    if not run.checkpoint_folder(stage).is_dir():
        return
    recorded = run.read_record()["stages"].get(stage, {}).get("parents", {})
    for name, best in best_checkpoints.items():
        if name in recorded and recorded[name]["digest"] != best["digest"]:
            raise ConfigError(
                f"{run.path}: {stage} was trained on step {recorded[name]['step']} of {name}, whose best checkpoint is "
                f"now step {best['step']}; delete {run.checkpoint_folder(stage)} to train {stage} again, or give a new "
                "--run-dir"
            )


def check_parent_data(run: RunDirectory, cfg: Config, data: Mixture, parent_fingerprints: Mapping[str, str]) -> None:
    """Raise ConfigError if `diffusion.fold` is set and a parent was trained on other data than the stage.

    The parent may then have been trained on trajectories that the fold reserves for the stage.

    Args:
        data: The data of the stage.
    """
    if not cfg.diffusion.fold:
        return
    differing = [name for name, of in parent_fingerprints.items() if of != data.fingerprint_like(of)]
    if differing:
        raise ConfigError(
            f"{run.path}: diffusion.fold={cfg.diffusion.fold:g} requires that all stages use the same data, but "
            f"{differing[0]} was trained on other data; restore the data of {differing[0]}, or give a new --run-dir"
        )


def check_init_fold(cfg: Config, fingerprint: str, weights: Weights) -> None:
    """Raise ConfigError if the weights of `--init-from` may have been trained on trajectories that the fold holds out.

    Args:
        fingerprint: Fingerprint of the data of the new run.
        weights: Weights of the run in `--init-from`.
    """
    parent_fold, parent_seed = weights.config.diffusion.fold, weights.config.data.split.seed
    fold, seed = cfg.diffusion.fold, cfg.data.split.seed
    if fold and weights.fingerprint == fingerprint and (parent_fold, parent_seed) != (fold, seed):
        raise ConfigError(
            f"--init-from: its run was trained on the same data with diffusion.fold={parent_fold:g} and "
            f"data.split.seed={parent_seed}, so its training set may contain trajectories that this run holds out; "
            f"train the run of --init-from again with diffusion.fold={fold:g} and data.split.seed={seed}"
        )


def _describe_changes(recorded: dict[str, Any], cfg: Config, stage: str) -> list[str]:
    """Return a text for each key that differs between the configuration recorded for a stage and the present one."""
    try:
        old = to_dict(from_dict(recorded, "run.json"))
    except ConfigError:
        return ["written by an earlier version, with keys that this version does not have"]
    differences = _changed_values(relevant_values(old, stage), relevant_values(to_dict(cfg), stage), "")
    return differences or ["written by an earlier version, in which a key or a part of the model had another meaning"]


def _changed_values(old: Any, new: Any, key: str) -> list[str]:
    """Return a text `key: old -> new` for each dotted key whose value differs."""
    if isinstance(old, dict) and isinstance(new, dict):
        return [
            line
            for name in sorted(old.keys() | new.keys())
            for line in _changed_values(old.get(name), new.get(name), f"{key}.{name}".lstrip("."))
        ]
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        return [
            line
            for position, pair in enumerate(zip(old, new, strict=True))
            for line in _changed_values(*pair, f"{key}.{position}")
        ]
    # The digest of a configuration contains only the product of the two.
    key = key.replace("batch_size", "batch_size * accum_steps")
    return [] if old == new else [f"{key}: {old!r} -> {new!r}"]


# Number of rows on which gradients are measured.
ROWS = 4
# Standard deviation of the noise on the initial parameters: an untrained output layer is zero and blocks gradients.
PERTURBATION = 0.05
# Gradient norm below which a gradient counts as zero.
ROUND_OFF = 1e-5
# Terms that compare the decoded prediction with data: every parameter affects them, so they are not checked.
UNCHECKED_TERMS = (
    "relative",
    "relative_mse",
    "h1",
    "forward",
    "rollout",
    "spectral",
    *(f"spectral_{band}" for band in BANDS),
)
ZERO_GRADIENT_REASONS = {
    "inverse_encoding": "the tokens of this codec contain the field, so decoding returns it exactly",
    "inverse_decoding": "the tokens of this codec contain the field, so encoding the decoded field returns them",
    "conservation": "the model conserves the integrals of the task's conserved channels by construction",
}


def check_all_term_gradients(model: JointModel, cfg: Config, stage: str, batches: Sequence[Batch]) -> None:
    """Check the gradients of the loss terms of each task on a batch of this task; see `check_term_gradients`."""
    for task_model, batch in zip(model.models, batches, strict=True):
        check_term_gradients(task_model, cfg, stage, batch)


def check_term_gradients(model: Any, cfg: Config, stage: str, batch: Batch) -> None:
    """Raise ConfigError if a weighted loss term is undefined for the task, or its gradient is zero for all parameters.

    The gradient is measured at initial parameters with added noise, one row and one term at a time. This takes less
    memory than the smallest training step, so running out of memory raises ConfigError as well.

    Only a few rows of the batch are used.
    """
    spec = stage_spec(stage)
    spec.losses(model, cfg)
    checked_terms = [name for name in spec.loss_term_weights(cfg) if name not in UNCHECKED_TERMS]
    if not checked_terms:
        return
    with raise_on_oom(row_too_large_error(batch_size_key(stage))):
        norms = gradient_norms(model, cfg, stage, batch, checked_terms)
    for name, norm in norms.items():
        if not norm > ROUND_OFF:
            reason = ZERO_GRADIENT_REASONS.get(name, "its value does not depend on them")
            raise ConfigError(
                f"{weight_key(name)}: the gradient of the term {name} is zero for all trained parameters ({reason}); "
                f"set {weight_key(name)}=0"
            )


def gradient_norms(model: Any, cfg: Config, stage: str, batch: Batch, terms: list[str]) -> dict[str, float]:
    """Return each unweighted loss term's gradient norm: the root mean square of the norms on a few single rows.

    The fields are normalised to zero mean and unit standard deviation, so that one threshold fits all units, and so
    that terms that penalise negative values have a gradient even if the fields are positive in physical units.
    """
    spec = stage_spec(stage)
    normalised = model.clone(task=_with_normalised_units(model.task))
    # The prescribed value, which is in physical units, does not change which parameters a term depends on.
    priors = replace(cfg.training.physics_priors, bc_value=0.0)
    losses = spec.losses(normalised, replace(cfg, training=replace(cfg.training, physics_priors=priors)))
    key = jax.random.key(cfg.seed)

    def normalised_row(number: int) -> Batch:
        rows: Batch = jax.tree.map(lambda values: jnp.asarray(values[number : number + 1]), batch)
        return replace(rows, fields=normalize(rows.fields, model.task.statistics), mask=jnp.ones(1))

    @jax.jit
    def noisy_params(key: Any, first: Batch) -> Any:
        params = spec.init(normalised, jax_stream_key(key, "init"), first)
        leaves, structure = jax.tree.flatten(params)
        keys = jax.random.split(jax_stream_key(key, "reach"), len(leaves))
        perturbed = [
            leaf + PERTURBATION * jax.random.normal(leaf_key, leaf.shape, leaf.dtype)
            for leaf, leaf_key in zip(leaves, keys, strict=True)
        ]
        return jax.tree.unflatten(structure, perturbed)

    @jax.jit
    def squared_norm(params: Any, row: Batch, one_hot: Any) -> Any:
        """Return the squared gradient norm of the loss term that `one_hot` selects."""

        def term_values(params: Any) -> Any:
            values = losses(params, row, jax_stream_key(key, "loss"), StepContext(epoch=jnp.zeros(())))[1]
            return jnp.stack([values[name] for name in terms])

        _, pullback = jax.vjp(term_values, params)
        return jnp.square(optax.tree.norm(pullback(one_hot)[0]))

    params, rows = noisy_params(key, normalised_row(0)), min(ROWS, batch.num_rows)
    totals = [
        sum(float(squared_norm(params, normalised_row(number), one_hot)) for number in range(rows))
        for one_hot in np.eye(len(terms), dtype=np.float32)
    ]
    return {name: math.sqrt(total / rows) for name, total in zip(terms, totals, strict=True)}


def _with_normalised_units(task: Task) -> Task:
    """Return the task with the statistics of normalised fields: zero means and unit standard deviations."""
    channels = len(task.channels)
    delta_std = [delta / std for delta, std in zip(task.statistics.delta_std, task.statistics.std, strict=True)]
    return replace(
        task, statistics=Statistics(mean=(0.0,) * channels, std=(1.0,) * channels, delta_std=tuple(delta_std))
    )
