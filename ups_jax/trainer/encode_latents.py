"""All trajectories of a data set, encoded by the codec of a trained run into a folder of latents."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from ups_jax.config import Config, from_dict, load, merge, to_dict
from ups_jax.core.errors import ConfigError, DivergedError
from ups_jax.core.task import Task
from ups_jax.data import Dataset
from ups_jax.data.latent_cache.manifest import LatentManifest
from ups_jax.data.latent_cache.writer import trajectories_per_shard, write_latents
from ups_jax.models import Simulator, encode, normalize
from ups_jax.models.codec import newest_patch_width
from ups_jax.models.grid import patch_shape
from ups_jax.runs.best_weights import Weights
from ups_jax.trainer.frozen_codec import check_grid_task, codec_digest, latent_key
from ups_jax.training.build import build_model

_SHARD_BYTES = 64 * 2**20
_READ_BYTES = 64 * 2**20


def encode_dataset(
    weights: Weights,
    cfg: Config,
    dataset: Dataset,
    out: Path,
    dtype: str = "float32",
    *,
    chunk: int = 64,
    overwrite: bool = False,
    report: Callable[[int], None] = lambda _: None,
    shard_bytes: int = _SHARD_BYTES,
) -> LatentManifest | None:
    """Write the latents of all stored frames that have a whole context, `chunk` of them at a time on the device; None
    where they were there already. `report` is told how many trajectories are done.

    ConfigError where `dtype` cannot hold the numbers, DivergedError where they are not finite; besides that what
    `write_latents` raises.
    """
    check_grid_task(dataset.task)
    check_same_fields(weights.tasks[0], dataset.task)
    model = cast(Simulator, build_model(cfg, dataset.task, "operator"))
    plan = _plan(weights, cfg, dataset, dtype, shard_bytes)
    encoded = _encoder(model, weights.params, dtype)

    def of_trajectories(ids: Int[np.ndarray, " n"]) -> np.ndarray:
        rows = _contexts(dataset, cfg.data.context, ids)
        stored = []
        for number, part in enumerate(_chunks(rows, chunk)):
            latents, size = (np.asarray(item)[: len(rows) - number * chunk] for item in encoded(part))
            _check(size, plan, model, ids, number * chunk)
            stored.append(latents)
        return np.concatenate(stored).reshape(len(ids), *plan.trajectory_shape)

    frame = 4 * int(np.prod(plan.trajectory_shape)) + 4 * dataset.source.frames * dataset.task.points * len(
        dataset.task.channels
    )
    together = max(1, _READ_BYTES // frame)
    written = write_latents(out, plan, of_trajectories, chunk_trajectories=together, overwrite=overwrite, report=report)
    return plan if written else None


def encoding_config(weights: Weights, path: str | None, overrides: Sequence[str]) -> Config:
    """What a file and overrides say of the data to encode; without a file what the run was trained with."""
    if path is not None:
        cfg = load(path, list(overrides))
    else:
        cfg = from_dict(merge(to_dict(weights.config), list(overrides)))
    check_codec(weights, cfg)
    return cfg


def check_codec(weights: Weights, cfg: Config) -> None:
    """ConfigError where the configuration could not take the run's codec over."""
    if len(cfg.data.tasks) != 1 or cfg.data.tasks[0].kind != "transient":
        names = ", ".join(task.name for task in cfg.data.tasks)
        raise ConfigError(f"data.tasks: latents are of one task in time, not of {names}")
    theirs, ours = weights.config, cfg
    if len(weights.tasks) != 1:
        names = ", ".join(task.name for task in weights.tasks)
        raise ConfigError(f"--run-dir: was trained on several tasks ({names}); the latents of one alone can be encoded")
    pairs = {
        "latent.dim": (theirs.latent.dim, ours.latent.dim),
        "latent.patch_size": (theirs.latent.patch_size, ours.latent.patch_size),
        "data.context": (theirs.data.context, ours.data.context),
    }
    for key, (trained, wanted) in pairs.items():
        if trained != wanted:
            raise ConfigError(f"{key}={wanted}: the run's codec was trained with {trained}; set it to that")


def check_same_fields(trained: Task, wanted: Task) -> None:
    """ConfigError where the data are not of the channels, axes and periods that the run's codec was trained on."""
    for what in ("channels", "axes", "periodic"):
        theirs, ours = (", ".join(map(str, getattr(task, what))) for task in (trained, wanted))
        if theirs != ours:
            raise ConfigError(
                f"data.tasks.{wanted.name}: its {what} are {ours}, the run's codec was trained with {theirs}; give "
                "data of these, or train a run on this task"
            )


def _plan(weights: Weights, cfg: Config, dataset: Dataset, dtype: str, shard_bytes: int) -> LatentManifest:
    task, source, context = dataset.task, dataset.source, cfg.data.context
    patch = patch_shape(task.shape, cfg.latent.patch_size)
    tokens = tuple(points // size for points, size in zip(task.shape, patch, strict=True))
    carried, first = newest_patch_width(task, cfg.latent), (context - 1) * dataset.stride
    width = carried * context + cfg.latent.dim
    each = (source.frames - first, *tokens, width)
    return LatentManifest(
        key=latent_key(codec_digest(weights.params), cfg, dataset, dtype),
        task=task.name,
        trajectories=source.trajectories,
        frames=each[0],
        first=first,
        tokens=tokens,
        width=width,
        carried=carried,
        shard_trajectories=trajectories_per_shard(each, dtype, shard_bytes),
    )


def _encoder(model: Simulator, params: Any, dtype: str) -> Callable[[np.ndarray], tuple[Array, Array]]:
    """Contexts -> their latents as they are stored, and the largest magnitude of each number of a row's tokens.

    Products are as exact as they can be, whatever the training has them.
    """
    exact = model.clone(matmul_precision="highest")

    @jax.jit
    def encoded(fields: Float[Array, "b k *s c"], params: Any) -> tuple[Array, Array]:
        z = encode(exact, params, normalize(fields, model.task.statistics))
        stored = z.astype(dtype)
        if dtype == "bfloat16":
            stored = jax.lax.bitcast_convert_type(stored, jnp.uint16)
        # XLA's maximum on a CPU passes over NaN.
        return stored, jnp.where(jnp.isfinite(z), jnp.abs(z), jnp.inf).max(1)

    return lambda fields: encoded(fields, params)


def _contexts(dataset: Dataset, context: int, ids: Int[np.ndarray, " n"]) -> Float[np.ndarray, "m k *s c"]:
    """The context of every latent of some trajectories, one after the other."""
    first = (context - 1) * dataset.stride
    newest = np.arange(first, dataset.source.frames)
    frames = newest[:, None] - dataset.stride * np.arange(context)[::-1]
    fields = dataset.source.windows(
        ids, np.broadcast_to(np.arange(dataset.source.frames), (len(ids), dataset.source.frames))
    )
    return fields[:, frames].reshape(-1, context, *fields.shape[2:])


def _chunks(rows: np.ndarray, chunk: int) -> Iterator[np.ndarray]:
    """The rows in equal parts, the last filled up with its own last row, so that one program does them all."""
    for start in range(0, len(rows), chunk):
        part = rows[start : start + chunk]
        yield np.concatenate([part, np.repeat(part[-1:], chunk - len(part), axis=0)])


def _check(size: np.ndarray, plan: LatentManifest, model: Simulator, ids: Int[np.ndarray, " n"], first: int) -> None:
    """Refuse what is not finite, or not in the type that it is stored in; `first` is the place of the first row."""
    largest = float(jnp.finfo(plan.key.dtype).max)
    bad = np.argwhere(~(size <= largest))
    if not len(bad):
        return
    row, number = (int(value) for value in bad[0])
    trajectory, frame = ids[(first + row) // plan.frames], plan.first + (first + row) % plan.frames
    where = f"frame {frame} of trajectory {trajectory}, {_name(number, plan, model)}"
    if not np.isfinite(size[row, number]):
        raise DivergedError(f"{where}: the latents are not finite; train the run's codec again")
    raise ConfigError(
        f"{where}: the latent is {size[row, number]:.4g} and {plan.key.dtype} ends at {largest:.4g}; "
        "take --dtype bfloat16 or float32"
    )


def _name(number: int, plan: LatentManifest, model: Simulator) -> str:
    """What a number of a token is called: a channel that it carries, or a learned feature."""
    carried, channels = plan.carried * model.context, model.task.channels
    if number < carried:
        return f"channel {channels[number % len(channels)]}"
    return f"learned feature {number - carried} of channels {', '.join(channels)}"
