"""What a command may not do in a run directory, told before anything is written there."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ups_jax.config import Config, digest, from_dict, relevant, to_dict
from ups_jax.errors import CheckpointError, ConfigError
from ups_jax.training.run_directory import RunDirectory
from ups_jax.training.stages import stage_of
from ups_jax.training.stages.spec import StageSpec
from ups_jax.training.weights import Weights


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
                f"train it with scripts/train.py --stage {name} --run-dir {run.path}"
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
