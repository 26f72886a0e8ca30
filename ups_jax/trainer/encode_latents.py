"""Encodes all trajectories of a data set with the codec of a trained run, and writes the latents to a folder."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from ups_jax.config import Config, apply_overrides, from_dict, load, to_dict
from ups_jax.core.errors import ConfigError, DivergedError
from ups_jax.core.task import Task
from ups_jax.data import Dataset
from ups_jax.data.latent_cache.manifest import LatentManifest
from ups_jax.data.latent_cache.writer import trajectories_per_shard, write_latents
from ups_jax.models import Simulator, encode, normalize
from ups_jax.models.codec import newest_patch_width
from ups_jax.models.patches import task_patches
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
    """Write the latents of a data set to a folder.

    A latent encodes a frame together with the context frames before it; the first frames, which lack some of these,
    have no latent.

    Args:
        weights: Weights of the operator of a trained run, which contain the codec.
        cfg: Configuration of the training that will use the latents.
        dtype: Storage type, `float32`, `bfloat16` or `float16`.
        chunk: Number of frames encoded at a time on the device.
        report: Callback with the number of encoded trajectories.
        shard_bytes: Approximate size of each file.

    Returns:
        The manifest of the latents, or None if the folder already holds the same latents.

    Raises:
        ConfigError: The data does not match the codec, or a latent exceeds the range of `dtype`.
        DivergedError: A latent is not finite.
        Also the errors of `write_latents`.
    """
    check_grid_task(dataset.task)
    counts = np.unique(dataset.record.frames).tolist()
    if len(counts) > 1:
        raise ConfigError(
            f"{dataset.source.name}: latents need the same number of frames in all files, but the trajectories have "
            f"{' or '.join(map(str, counts))}; cut the longer ones, or train on fields"
        )
    check_same_fields(weights.tasks[0], dataset.task)
    dataset = replace(dataset, task=replace(dataset.task, partition=weights.tasks[0].partition))
    model = cast(Simulator, build_model(cfg, dataset.task, "operator"))
    manifest = _latent_manifest(weights, cfg, dataset, dtype, shard_bytes)
    encode_chunk = _make_chunk_encoder(model, weights.params, dtype)

    def encode_trajectories(ids: Int[np.ndarray, " n"]) -> np.ndarray:
        rows = _context_windows(dataset, cfg.data.context, ids)
        encoded = []
        for number, contexts in enumerate(_padded_chunks(rows, chunk)):
            latents, magnitudes = (np.asarray(item)[: len(rows) - number * chunk] for item in encode_chunk(contexts))
            _check_latent_range(magnitudes, manifest, model, ids, number * chunk)
            encoded.append(latents)
        return np.concatenate(encoded).reshape(len(ids), *manifest.trajectory_shape)

    task = dataset.task
    latent_bytes = 4 * int(np.prod(manifest.trajectory_shape))
    field_bytes = 4 * dataset.source.frames * task.num_points * len(task.channels)
    chunk_trajectories = max(1, _READ_BYTES // (latent_bytes + field_bytes))
    written = write_latents(
        out, manifest, encode_trajectories, chunk_trajectories=chunk_trajectories, overwrite=overwrite, report=report
    )
    return manifest if written else None


def encoding_config(weights: Weights, path: str | None, overrides: Sequence[str]) -> Config:
    """Return the configuration for encoding: loaded from a file or taken from the run, with overrides applied.

    Args:
        path: Configuration file; None takes the configuration of the run.
        overrides: Overrides of the form `key=value`.

    Raises:
        ConfigError: The configuration does not match the codec of the run.
    """
    if path is not None:
        cfg = load(path, list(overrides))
    else:
        cfg = from_dict(apply_overrides(to_dict(weights.config), list(overrides)))
    check_codec_fits(weights, cfg)
    return cfg


def check_codec_fits(weights: Weights, cfg: Config) -> None:
    """Raise ConfigError if the codec of the run does not fit a training with this configuration."""
    if len(cfg.data.tasks) != 1 or cfg.data.tasks[0].kind != "transient":
        names = ", ".join(task.name for task in cfg.data.tasks)
        raise ConfigError(
            f"data.tasks: latents require a single transient task, but the tasks are {names}; select one transient task"
        )
    trained_cfg = weights.config
    if len(weights.tasks) != 1:
        names = ", ".join(task.name for task in weights.tasks)
        raise ConfigError(
            f"--run-dir: the run was trained on several tasks ({names}); latents require a run with a single task"
        )
    pairs = {
        "latent.dim": (trained_cfg.latent.dim, cfg.latent.dim),
        "latent.patch_size": (trained_cfg.latent.patch_size, cfg.latent.patch_size),
        "data.context": (trained_cfg.data.context, cfg.data.context),
    }
    for key, (trained, configured) in pairs.items():
        if trained != configured:
            raise ConfigError(
                f"{key}={configured}: the codec of the run was trained with {key}={trained}; set {key}={trained}"
            )


def check_same_fields(trained: Task, encoded: Task) -> None:
    """Raise ConfigError if the two tasks differ in their channels, axes or periodicity.

    Args:
        trained: Task on which the codec was trained.
        encoded: Task of the data to encode.
    """
    for attribute in ("channels", "axes", "periodic"):
        expected, actual = (", ".join(map(str, getattr(task, attribute))) for task in (trained, encoded))
        if expected != actual:
            raise ConfigError(
                f"data.tasks.{encoded.name}.{attribute}: is {actual}, but the codec of the run was trained with "
                f"{expected}; select matching data, or train a run on this task"
            )


def _latent_manifest(weights: Weights, cfg: Config, dataset: Dataset, dtype: str, shard_bytes: int) -> LatentManifest:
    """Return the manifest of the latents before they are encoded: shape, storage type, key, trajectories per file."""
    task, source, context = dataset.task, dataset.source, cfg.data.context
    tokens = task_patches(task, cfg.latent).counts
    carried, first = newest_patch_width(task, cfg.latent), (context - 1) * dataset.stride
    width = carried * context + cfg.latent.dim
    trajectory_shape = (source.frames - first, *tokens, width)
    return LatentManifest(
        key=latent_key(codec_digest(weights.params), cfg, dataset, dtype),
        task=task.name,
        trajectories=source.trajectories,
        frames=trajectory_shape[0],
        first=first,
        tokens=tokens,
        width=width,
        carried=carried,
        shard_trajectories=trajectories_per_shard(trajectory_shape, dtype, shard_bytes),
    )


class EncodedChunk(NamedTuple):
    """Latents in their storage type, and each latent's largest magnitude of every feature over the tokens."""

    latents: Array
    magnitudes: Array


def _make_chunk_encoder(model: Simulator, params: Any, dtype: str) -> Callable[[np.ndarray], EncodedChunk]:
    """Return a function that encodes a chunk of context windows with the highest matmul precision."""
    exact = model.clone(matmul_precision="highest")

    @jax.jit
    def encode_fields(fields: Float[Array, "b k *s c"], params: Any) -> EncodedChunk:
        z = encode(exact, params, normalize(fields, model.task.statistics))
        stored = z.astype(dtype)
        if dtype == "bfloat16":
            stored = jax.lax.bitcast_convert_type(stored, jnp.uint16)
        # XLA's maximum on CPU ignores NaN, so non-finite values are mapped to infinity first.
        return EncodedChunk(stored, jnp.where(jnp.isfinite(z), jnp.abs(z), jnp.inf).max(1))

    return lambda fields: encode_fields(fields, params)


def _context_windows(dataset: Dataset, context: int, ids: Int[np.ndarray, " n"]) -> Float[np.ndarray, "m k *s c"]:
    """Return the `context` frames that each latent encodes, for all latents of these trajectories in turn."""
    first = (context - 1) * dataset.stride
    newest = np.arange(first, dataset.source.frames)
    frames = newest[:, None] - dataset.stride * np.arange(context)[::-1]
    fields = dataset.source.read(
        ids, np.broadcast_to(np.arange(dataset.source.frames), (len(ids), dataset.source.frames))
    )
    return fields[:, frames].reshape(-1, context, *fields.shape[2:])


def _padded_chunks(rows: np.ndarray, chunk: int) -> Iterator[np.ndarray]:
    """Yield `rows` in chunks of equal size, for one compiled program; copies of the last row fill the last chunk."""
    for start in range(0, len(rows), chunk):
        chunk_rows = rows[start : start + chunk]
        yield np.concatenate([chunk_rows, np.repeat(chunk_rows[-1:], chunk - len(chunk_rows), axis=0)])


def _check_latent_range(
    magnitudes: np.ndarray, manifest: LatentManifest, model: Simulator, ids: Int[np.ndarray, " n"], first_latent: int
) -> None:
    """Raise an error if a latent of a chunk is not finite or exceeds the range of its storage type.

    Args:
        magnitudes: `EncodedChunk.magnitudes` of the chunk.
        first_latent: Position of the chunk's first latent among all latents of the trajectories `ids`.
    """
    largest = float(jnp.finfo(manifest.key.dtype).max)
    bad = np.argwhere(~(magnitudes <= largest))
    if not len(bad):
        return
    row, number = (int(value) for value in bad[0])
    trajectory_index, latent_index = divmod(first_latent + row, manifest.frames)
    trajectory, frame = ids[trajectory_index], manifest.first + latent_index
    where = f"frame {frame} of trajectory {trajectory}, {_feature_name(number, manifest, model)}"
    if not np.isfinite(magnitudes[row, number]):
        raise DivergedError(f"{where}: the latent value is not finite; train the run with the codec again")
    raise ConfigError(
        f"{where}: the latent value {magnitudes[row, number]:.4g} exceeds the range of {manifest.key.dtype} "
        f"({largest:.4g}); use --dtype bfloat16 or float32"
    )


def _feature_name(number: int, manifest: LatentManifest, model: Simulator) -> str:
    """Return a name for feature `number` of the tokens: a channel copied into the tokens, or a learned feature."""
    carried, channels = manifest.carried * model.context, model.task.channels
    if number < carried:
        return f"channel {channels[number % len(channels)]}"
    return f"learned feature {number - carried} of channels {', '.join(channels)}"
