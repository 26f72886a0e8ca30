"""Training on stored latents; the codec (encoder and decoder) that encoded them stays frozen.

The functions check that the configuration supports latents, and that the stored latents match the codec and the data.
"""

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
from ups_jax.training.build import trains_on_latents


def check_latent_source(cfg: Config, stage: str) -> None:
    """Raise ConfigError if `data.source` is `latents` but the stage or the tasks do not support latents."""
    if cfg.data.source == "fields":
        return
    names = ", ".join(task.name for task in cfg.data.tasks)
    if len(cfg.data.tasks) != 1:
        raise ConfigError(
            f"data.source=latents: supports a single task, but data.tasks has {len(cfg.data.tasks)} ({names}); select "
            "one task, or use data.source=fields"
        )
    if cfg.data.tasks[0].kind == "steady":
        raise ConfigError(
            f"data.source=latents: supports transient tasks only, but {names} is steady; use data.source=fields"
        )
    if stage not in ("operator", *STAGE_NEEDS["transient"]):
        raise ConfigError(f"data.source=latents: stage {stage} cannot be trained on latents; use data.source=fields")


def with_field_source(cfg: Config) -> Config:
    """Return the configuration with training on fields instead of latents."""
    return replace(cfg, data=replace(cfg.data, source="fields", latents=None))


def check_grid_task(task: Task) -> None:
    """Raise ConfigError if the task is on scattered points: their codec needs positions, which latents do not store."""
    if task.scattered:
        raise ConfigError(
            f"data.source=latents: supports grids only, but {task.name} is on scattered points; use data.source=fields"
        )


def latent_key(digest: str, cfg: Config, dataset: Dataset, dtype: str) -> LatentKey:
    """Return the key of stored latents, which contains everything that their values depend on.

    Args:
        digest: Digest of the codec's parameters.
        dtype: Storage type of the latents.
    """
    task = dataset.task
    encoder = {
        "dim": cfg.latent.dim,
        "patch_size": cfg.latent.patch_size,
        "context": cfg.data.context,
        # With a single context frame, latents do not depend on the stride.
        "time_stride": cfg.training.time_stride if cfg.data.context > 1 else None,
        "channels": list(task.channels),
        "periodic": list(task.periodic),
    }
    statistics = task.statistics
    normaliser = {"mode": cfg.data.normalize, "mean": list(statistics.mean), "std": list(statistics.std)}
    return LatentKey(weights=digest, encoder=encoder, normaliser=normaliser, data=dataset.fingerprint, dtype=dtype)


def codec_digest(params: Any) -> str:
    """Return the digest of the codec's part of the parameters."""
    leaves = jax.tree_util.tree_leaves_with_path(params[CODEC])
    return weights_digest({jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves})


def with_stored_latents(
    cfg: Config,
    stage: str,
    data: Mixture,
    run: RunDirectory | None,
    init_weights: Weights | None,
    init_run: Path | None,
) -> Mixture:
    """Add the latents of the folder `data.latents` to the data if the stage is trained on latents.

    The latents must come from the codec in the run's checkpoint; in a run without a checkpoint, from the codec in
    `init_weights`.

    Args:
        run: Run directory; None in a dry run.
        init_weights: Weights of the run in `--init-from`.
        init_run: Path of the run in `--init-from`.

    Raises:
        ConfigError: Neither a checkpoint nor `init_weights` provides a codec.
        DataError: The latents are damaged, or belong to another codec or other data.
    """
    if not trains_on_latents(cfg, stage):
        return data
    (dataset,) = data.datasets
    check_grid_task(dataset.task)
    recorded = _recorded_latent_key(run, stage)
    if recorded is None and run is not None and newest_step(run.checkpoint_folder(stage)) > 0:
        init_weights, init_run = best_weights(run.path, stage), run.path
    if recorded is None and init_weights is None:
        raise ConfigError(
            "data.source=latents: the codec that encoded the latents is missing; start the training with "
            "--stage operator --init-from RUN, where RUN is the run with this codec"
        )
    cache = LatentCache(str(cfg.data.latents), cfg.data.loader.memory_gib * 2**30)
    stored_key = cache.manifest.key
    digest = (
        codec_digest(init_weights.params)
        if recorded is None and init_weights is not None
        else str((recorded or {})["weights"])
    )
    expected_key = latent_key(digest, cfg, dataset, stored_key.dtype if recorded is None else str(recorded["dtype"]))
    expected_key = replace(expected_key, data=dataset.fingerprint_like(stored_key.data))
    if differing := stored_key.differences(expected_key):
        codec_run = run.path if recorded is not None and run is not None else init_run
        raise DataError(
            f"{cache.path}: the stored latents do not fit this training (different: {', '.join(differing)}); encode "
            f"them again with `{command('encode')} --run-dir {codec_run} --config CONFIG --out {cache.path} --dtype "
            f"{expected_key.dtype} --overwrite`, where CONFIG is the configuration of this training with its overrides"
        )
    windows = LatentWindows(cache=cache, context=cfg.data.context, pushforward=cfg.training.pushforward)
    return Mixture(datasets=(replace(dataset, latents=windows),))


def latents_record_entry(data: Mixture) -> dict[str, Any]:
    """Return the run.json entry with the key of the latents, which a resume compares; empty without latents."""
    latents = data.datasets[0].latents
    return {} if latents is None else {"latents": asdict(latents.cache.manifest.key)}


def describe_latents(cfg: Config, stage: str, data: Mixture) -> list[str]:
    """Return console lines about the latents, or why the stage reads fields although latents are selected."""
    dataset = data.datasets[0]
    if dataset.latents is None:
        if cfg.data.source != "latents":
            return []
        return [f"source      fields: only the operator is trained on latents, {stage} reads fields"]
    cache = dataset.latents.cache
    tokens = " x ".join(map(str, cache.manifest.tokens))
    where = "in memory" if cache.in_memory else "read from disk"
    lines = [
        f"latents     {cache.path}: {tokens} tokens of {cache.manifest.width}, {cache.manifest.key.dtype}, "
        f"{cache.manifest.bytes / 2**20:.3g} MiB, {where}; the codec is frozen"
    ]
    if cfg.data.augment and dataset.task.symmetries:
        lines.append(
            "note        data.augment applies periodic shifts only: the other symmetries cannot act on latents"
        )
    task = dataset.task
    axes = zip(task.axes, task.periodic, task.shape, cache.manifest.tokens, strict=True)
    undivided = [axis for axis, periodic, points, count in axes if periodic and points % count]
    if cfg.data.augment and undivided:
        lines.append(
            f"note        data.augment applies no shifts along {', '.join(undivided)}: patches of "
            f"latent.patch_size={cfg.latent.patch_size} do not divide the axis"
        )
    return lines


def _recorded_latent_key(run: RunDirectory | None, stage: str) -> dict[str, Any] | None:
    """Return the key of the latents in run.json; None if there is none, or no checkpoint of the stage."""
    if run is None or not run.has_record() or newest_step(run.checkpoint_folder(stage)) == 0:
        return None
    recorded: dict[str, Any] | None = run.read_record()["stages"].get(stage, {}).get("latents")
    return recorded
