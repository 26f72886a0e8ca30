"""All checks before a stage is trained, in one function that returns the data, model, plan and losses it has built.

A command that may not go on in a run directory is refused before anything is written there.
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
from ups_jax.config import Config, digest, from_dict, relevant, to_dict
from ups_jax.core.commands import command
from ups_jax.core.errors import CheckpointError, ConfigError
from ups_jax.core.rng import stream
from ups_jax.core.task import Statistics, Task
from ups_jax.core.terminal import print_line
from ups_jax.core.xla import compiling, require_determinism
from ups_jax.data import Mixture, first_batches, open_mixture, windows_per_step
from ups_jax.distributed.mesh import check_rows, make_mesh
from ups_jax.distributed.processes import on_host0
from ups_jax.losses import StageLoss, StepContext, weight_key
from ups_jax.losses.spectral import BANDS
from ups_jax.models import Batch, normalize
from ups_jax.runs.best_weights import Weights, best_weights
from ups_jax.runs.directory import RunDirectory
from ups_jax.tracking import check_logging
from ups_jax.trainer.frozen_codec import check_latent_source, with_field_source, with_latents
from ups_jax.trainer.oom import batch_size_key, raise_on_oom, row_too_large_error
from ups_jax.training.build import JointModel, build_joint
from ups_jax.training.run_length import Plan, plan_of
from ups_jax.training.stages import stage_of
from ups_jax.training.stages.spec import StageSpec


@dataclass(frozen=True, kw_only=True)
class Preflight:
    """What a stage is trained on, opened, built and checked.

    Attributes:
        losses: The loss of each task's model.
        plan: The length of the stage; None where `max_seconds` has it measured later.
        weights: Weights of the run that `--init-from` names, for a fresh start.
    """

    data: Mixture
    model: JointModel
    losses: Sequence[StageLoss]
    plan: Plan | None
    init_weights: Weights | None


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
    """Open the data, build model, plan and losses, and check all that may be wrong. Nothing but embedded data is
    written. Raises ConfigError, DataError or CheckpointError."""
    spec = stage_of(stage)
    require_determinism(cfg.deterministic)
    check_logging(cfg.logging)
    check_resume(run, cfg, stage, resume)
    check_needs(run, spec, cfg.data.tasks[0].kind)
    check_latent_source(cfg, stage)
    if data is None:
        prepare_data(cfg, console)
    check_rows(make_mesh(cfg.parallel), windows_per_step(cfg, stage), batch_size_key(stage))
    data = open_mixture(cfg) if data is None else data
    model = build_joint(cfg, data.tasks, stage)
    plan = plan_of(cfg, data, stage) if getattr(cfg.stages, stage).max_seconds is None else None
    losses = model.losses(spec, cfg)
    with compiling(cfg.training.compile):
        # On fields, for the parameters that a term reaches, before latents are opened.
        check_all_term_gradients(model, with_field_source(cfg), stage, first_batches(data, cfg, stage))
    weights = None if init_from is None else best_weights(init_from, stage)
    if weights is not None:
        check_init_fold(cfg, data.fingerprint, weights)
    data = with_latents(cfg, stage, data, run, weights, init_from)
    return Preflight(data=data, model=model, losses=losses, plan=plan, init_weights=weights)


def prepare_data(cfg: Config, console: Console) -> None:
    """Generate the embedded data that is missing, in the first process, and print the files."""
    with console.status("") as status:
        written = on_host0(lambda: simulate.prepare(cfg, report=status.update))
    for file in written or ():
        print_line(console, f"generated   {file}")


def check_resume(run: RunDirectory, cfg: Config, stage: str, resume: str) -> None:
    """Refuse, before anything is written, a run directory that this command may not go on in."""
    if run.path.exists() and not run.path.is_dir():
        raise ConfigError(f"{run.path}: is a file; give a directory")
    if not run.exists():
        if resume == "must":
            raise CheckpointError(f"{run.path}: holds no run to go on with; leave out --resume must to start one")
        if run.holds_something_else():
            raise ConfigError(f"{run.path}: is not empty and holds no run; give a new directory")
        return
    if resume == "never":
        raise ConfigError(f"{run.path}: holds a run already; give a new --run-dir, or --resume auto to go on with it")
    record = run.read()
    for name in (*stage_of(stage).needs(cfg.data.tasks[0].kind), stage):
        if record["digests"].get(name, digest(cfg, name)) != digest(cfg, name):
            changed = "; ".join(_changes(record["config"], cfg, name))
            raise ConfigError(f"{run.path}: holds a run of another configuration ({changed}); give a new --run-dir")


def check_needs(run: RunDirectory, spec: StageSpec, kind: str) -> None:
    """Refuse a stage whose prerequisites, on a kind of task, have no checkpoint in the run."""
    for name in spec.needs(kind):
        if not run.checkpoints(name).is_dir():
            raise CheckpointError(
                f"{run.path}: stage {spec.name} needs a trained {name}; "
                f"train it with `{command('train')} --stage {name} --run-dir {run.path}`"
            )


def check_parents(run: RunDirectory, stage: str, checkpoints: dict[str, Any]) -> None:
    """Refuse to go on with a stage that was begun on other checkpoints of its parents than those of today."""
    if not run.checkpoints(stage).is_dir():
        return
    recorded = run.read()["stages"].get(stage, {}).get("parents", {})
    for name, now in checkpoints.items():
        if name in recorded and recorded[name]["digest"] != now["digest"]:
            raise ConfigError(
                f"{run.path}: {stage} was trained on step {recorded[name]['step']} of {name}, whose best checkpoint is "
                f"step {now['step']} by now; delete {run.checkpoints(stage)} to train it again, or give a new --run-dir"
            )


def check_fold(run: RunDirectory, cfg: Config, fingerprint: str, parents: Mapping[str, str]) -> None:
    """Refuse a stage that is trained on a fold of other data than its parents, by their fingerprints: they may have
    been fitted to what it holds."""
    others = [name for name, own in parents.items() if own != fingerprint]
    if cfg.diffusion.fold and others:
        raise ConfigError(
            f"{run.path}: diffusion.fold holds trajectories out of the data by now, {others[0]} was trained on other "
            "data; bring those back, or give a new --run-dir"
        )


def check_init_fold(cfg: Config, fingerprint: str, weights: Weights) -> None:
    """Refuse weights of another run that was trained on the same data, and may have been fitted to what is held out."""
    theirs, ours = ((own.diffusion.fold, own.data.split.seed) for own in (weights.config, cfg))
    if cfg.diffusion.fold and weights.fingerprint == fingerprint and theirs != ours:
        raise ConfigError(
            f"--init-from: that run was trained on these data with diffusion.fold={theirs[0]:g} and data.split.seed="
            f"{theirs[1]}, and may know what is held out here; train that one with diffusion.fold={ours[0]:g} and seed "
            f"{ours[1]} as well"
        )


def _changes(recorded: dict[str, Any], cfg: Config, stage: str) -> list[str]:
    """What a stage's recorded configuration, read as this version reads it, has otherwise."""
    try:
        old = to_dict(from_dict(recorded, "run.json"))
    except ConfigError:
        return ["of an earlier version, with keys that this one does not have"]
    found = _differences(relevant(old, stage), relevant(to_dict(cfg), stage), "")
    return found or ["of an earlier version, to which a key or a part of the model meant something else"]


def _differences(old: Any, new: Any, where: str) -> list[str]:
    """Dotted keys whose values differ, as `key: old -> new`."""
    if isinstance(old, dict) and isinstance(new, dict):
        return [
            line
            for key in sorted(old.keys() | new.keys())
            for line in _differences(old.get(key), new.get(key), f"{where}.{key}".lstrip("."))
        ]
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        return [
            line
            for position, pair in enumerate(zip(old, new, strict=True))
            for line in _differences(*pair, f"{where}.{position}")
        ]
    # Their product is what was compared.
    where = where.replace("batch_size", "batch_size * accum_steps")
    return [] if old == new else [f"{where}: {old!r} -> {new!r}"]


# Rows that are looked at, standard deviation of the noise on the initial parameters (an untrained exit is zero and lets
# nothing through), and the gradient's norm below which it is round-off.
ROWS = 4
PERTURBATION = 0.05
ROUND_OFF = 1e-5
# Terms that compare the decoded prediction with data: no parameter is without an effect on it.
SURE = ("relative", "relative_mse", "h1", "forward", "rollout", "spectral", *(f"spectral_{band}" for band in BANDS))
WHY = {
    "inverse_encoding": "this codec carries the field in its tokens, so decoding gives it back by construction",
    "inverse_decoding": "this codec carries the field in its tokens, so encoding the decoded field gives them back",
    "conservation": "the model keeps the integrals of the task's conserved channels by itself",
}


def check_all_term_gradients(model: JointModel, cfg: Config, stage: str, batches: Sequence[Batch]) -> None:
    """`check_reach` of each task's model, with a batch of it."""
    for own, batch in zip(model.models, batches, strict=True):
        check_term_gradients(own, cfg, stage, batch)


def check_term_gradients(model: Any, cfg: Config, stage: str, batch: Batch) -> None:
    """ConfigError where a weighted term cannot be had of the task, or has no gradient for any parameter of the stage.

    The gradient is measured on a few rows of `batch`, at initial parameters with noise on them; one row and one term
    at a time, so that it takes less memory than the smallest step. ConfigError where even that is too much.
    """
    spec = stage_of(stage)
    spec.losses(model, cfg)
    in_doubt = [name for name in spec.terms(cfg) if name not in SURE]
    if not in_doubt:
        return
    with raise_on_oom(row_too_large_error(batch_size_key(stage))):
        norms = gradient_norms(model, cfg, stage, batch, in_doubt)
    for name, norm in norms.items():
        if not norm > ROUND_OFF:
            why = WHY.get(name, "it is the same whatever they are")
            raise ConfigError(f"{weight_key(name)}: the term {name} reaches no trained parameter ({why}); set it to 0")


def gradient_norms(model: Any, cfg: Config, stage: str, batch: Batch, names: list[str]) -> dict[str, float]:
    """Norm of the gradients of each term, without its weight, for the parameters of a stage: root mean square of those
    of single rows.

    Fields are in standard deviations about their mean, so that one threshold fits any unit, and a field that is
    positive by far still meets the terms that are of negative values.
    """
    spec = stage_of(stage)
    scaled = model.clone(task=_in_deviations(model.task))
    losses = spec.losses(scaled, cfg)
    key = jax.random.key(cfg.seed)

    def row(number: int) -> Batch:
        rows: Batch = jax.tree.map(lambda values: jnp.asarray(values[number : number + 1]), batch)
        return replace(rows, fields=normalize(rows.fields, model.task.statistics), mask=jnp.ones(1))

    @jax.jit
    def noisy(key: Any, first: Batch) -> Any:
        params = spec.init(scaled, stream(key, "init"), first)
        leaves, structure = jax.tree.flatten(params)
        keys = jax.random.split(stream(key, "reach"), len(leaves))
        moved = [
            leaf + PERTURBATION * jax.random.normal(own, leaf.shape, leaf.dtype)
            for leaf, own in zip(leaves, keys, strict=True)
        ]
        return jax.tree.unflatten(structure, moved)

    @jax.jit
    def squares(params: Any, row: Batch, which: Any) -> Any:
        """The squared norm of the gradient of a term, which is told by a one among zeros."""

        def terms(params: Any) -> Any:
            values = losses(params, row, stream(key, "loss"), StepContext(epoch=jnp.zeros(())))[1]
            return jnp.stack([values[name] for name in names])

        _, pull = jax.vjp(terms, params)
        return jnp.square(optax.tree.norm(pull(which)[0]))

    params, rows = noisy(key, row(0)), min(ROWS, batch.rows)
    totals = [
        sum(float(squares(params, row(number), one)) for number in range(rows))
        for one in np.eye(len(names), dtype=np.float32)
    ]
    return {name: math.sqrt(total / rows) for name, total in zip(names, totals, strict=True)}


def _in_deviations(task: Task) -> Task:
    """The task whose physical fields are the normalised ones of `task`."""
    channels = len(task.channels)
    change = [delta / std for delta, std in zip(task.statistics.delta_std, task.statistics.std, strict=True)]
    return replace(task, statistics=Statistics(mean=(0.0,) * channels, std=(1.0,) * channels, delta_std=tuple(change)))
