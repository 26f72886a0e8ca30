"""Training on latents: what cannot be trained so, which latents belong to a codec and its data, and their opening."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import jax
import numpy as np

from ups_jax.config import Config
from ups_jax.core.commands import command
from ups_jax.core.errors import ConfigError, DataError
from ups_jax.core.stage_names import STAGE_NEEDS
from ups_jax.core.task import Task
from ups_jax.data import Dataset, Mixture
from ups_jax.data.latent_cache.cache import LatentCache, LatentWindows
from ups_jax.data.latent_cache.manifest import LatentKey, weights_digest
from ups_jax.models.codec import CODEC
from ups_jax.runs.best_weights import Weights, best_weights
from ups_jax.runs.directory import RunDirectory, newest_step
from ups_jax.training.build import holds_codec


def check_latent_source(cfg: Config, stage: str) -> None:
    """ConfigError where the configuration wants latents for what has none."""
    if cfg.data.source == "fields":
        return
    names = ", ".join(task.name for task in cfg.data.tasks)
    if len(cfg.data.tasks) != 1:
        raise ConfigError(f"data.source=latents: is for one task, data.tasks has {len(cfg.data.tasks)} ({names})")
    if cfg.data.tasks[0].kind == "steady":
        raise ConfigError(f"data.source=latents: is for tasks in time, and {names} is steady; use data.source=fields")
    if stage not in ("operator", *STAGE_NEEDS["transient"]):
        raise ConfigError(f"data.source=latents: stage {stage} reads fields; use data.source=fields")


def with_field_source(cfg: Config) -> Config:
    """The configuration of the same training on fields."""
    return replace(cfg, data=replace(cfg.data, source="fields", latents=None))


def check_grid_task(task: Task) -> None:
    """ConfigError of a set of points, whose encoder sees where they lie."""
    if task.scattered:
        raise ConfigError(f"data.source=latents: is for grids, and {task.name} is of points; use data.source=fields")


def latent_key(weights: str, cfg: Config, dataset: Dataset, dtype: str) -> LatentKey:
    """What latents depend on: `weights` is the digest of the codec's parameters. The statistics are those of the data's
    training split, which every training normalises by."""
    task = dataset.task
    encoder = {
        "dim": cfg.latent.dim,
        "patch_size": cfg.latent.patch_size,
        "context": cfg.data.context,
        # Without frames before the newest a token knows of no stride.
        "time_stride": cfg.training.time_stride if cfg.data.context > 1 else None,
        "channels": list(task.channels),
        "periodic": list(task.periodic),
    }
    statistics = task.statistics
    normaliser = {"mode": cfg.data.normalize, "mean": list(statistics.mean), "std": list(statistics.std)}
    return LatentKey(weights=weights, encoder=encoder, normaliser=normaliser, data=dataset.fingerprint, dtype=dtype)


def codec_digest(params: Any) -> str:
    """What names the parameters of a codec."""
    leaves = jax.tree_util.tree_leaves_with_path(params[CODEC])
    return weights_digest({jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves})


def with_latents(
    cfg: Config, stage: str, data: Mixture, run: RunDirectory | None, weights: Weights | None, parent: Path | None
) -> Mixture:
    """The data with the latents of `data.latents`, where the stage is trained on such: those of the codec that `run`
    has by now, else of the codec of `weights`, which are `parent`'s.

    ConfigError where there is no codec, DataError for latents of another one, of other data or damaged.
    """
    if not holds_codec(cfg, stage):
        return data
    (dataset,) = data.datasets
    check_grid_task(dataset.task)
    recorded = _recorded(run, stage)
    if recorded is None and run is not None and newest_step(run.checkpoints(stage)) > 0:
        weights, parent = best_weights(run.path, stage), run.path
    if recorded is None and weights is None:
        raise ConfigError(
            "data.source=latents: needs the codec that made them; train the operator first, with --stage operator "
            "--init-from RUN"
        )
    cache = LatentCache(str(cfg.data.latents), cfg.data.loader.memory_gib * 2**30)
    found = cache.manifest.key
    own = codec_digest(weights.params) if recorded is None and weights is not None else str((recorded or {})["weights"])
    wanted = latent_key(own, cfg, dataset, found.dtype if recorded is None else str(recorded["dtype"]))
    if differing := found.differences(wanted):
        maker = run.path if recorded is not None and run is not None else parent
        raise DataError(
            f"{cache.path}: these latents are of other {', '.join(differing)} than this training's; make them again: "
            f"`{command('encode')} --run-dir {maker} --config CONFIG --out {cache.path} --dtype {wanted.dtype} "
            "--overwrite`, with the CONFIG and overrides of this training"
        )
    own_windows = LatentWindows(cache=cache, context=cfg.data.context, pushforward=cfg.training.pushforward)
    return Mixture(datasets=(replace(dataset, latents=own_windows),))


def latents_record(data: Mixture) -> dict[str, Any]:
    """What the record of a stage keeps of its latents, for a resume: nothing where there are none."""
    latents = data.datasets[0].latents
    return {} if latents is None else {"latents": asdict(latents.cache.manifest.key)}


def describe_latents(cfg: Config, stage: str, data: Mixture) -> list[str]:
    """What is told of the source before the first step."""
    dataset = data.datasets[0]
    if dataset.latents is None:
        of_others = cfg.data.source == "latents"
        return [f"source      fields: the latents are of the operator, {stage} reads none"] if of_others else []
    cache = dataset.latents.cache
    tokens = " x ".join(map(str, cache.manifest.tokens))
    where = "in memory" if cache.in_memory else "read from the disk"
    told = [
        f"latents     {cache.path}: {tokens} tokens of {cache.manifest.width}, {cache.manifest.key.dtype}, "
        f"{cache.manifest.bytes / 2**20:.3g} MiB, {where}; the codec is held"
    ]
    if cfg.data.augment and dataset.task.symmetries:
        told.append("note        the symmetries are of fields and not applied to latents, which are rolled at the most")
    return told


def _recorded(run: RunDirectory | None, stage: str) -> dict[str, Any] | None:
    """The key of the latents that a run was begun on and has checkpoints of."""
    if run is None or not run.exists() or newest_step(run.checkpoints(stage)) == 0:
        return None
    found: dict[str, Any] | None = run.read()["stages"].get(stage, {}).get("latents")
    return found
