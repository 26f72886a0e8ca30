"""Encoding of all trajectories of a data set with the codec of a trained run into a folder of latents."""

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
    """Write the latents of all frames that have a complete context, and return their manifest.

    Args:
        weights: Weights of the operator of a trained run.
        cfg: Configuration of the later training on latents.
        dataset: Data to encode.
        out: Output folder.
        dtype: Storage type, `float32`, `bfloat16` or `float16`.
        chunk: Number of frames encoded at a time on the device.
        overwrite: Whether to replace existing latents.
        report: Callback with the number of encoded trajectories.
        shard_bytes: Approximate size of a file.

    Returns:
        The manifest, or None if these latents exist already.

    Raises:
        ConfigError: The data does not match the codec, or a latent exceeds the range of `dtype`.
        DivergedError: A latent is not finite.
        Also the errors of `write_latents`.
    """
    check_grid_task(dataset.task)
    check_same_fields(weights.tasks[0], dataset.task)
    model = cast(Simulator, build_model(cfg, dataset.task, "operator"))
    plan = _plan(weights, cfg, dataset, dtype, shard_bytes)
    encode_chunk = _encoder(model, weights.params, dtype)

    def encode_trajectories(ids: Int[np.ndarray, " n"]) -> np.ndarray:
        rows = _contexts(dataset, cfg.data.context, ids)
        encoded = []
        for number, contexts in enumerate(_chunks(rows, chunk)):
            latents, magnitude = (np.asarray(item)[: len(rows) - number * chunk] for item in encode_chunk(contexts))
            _check_range(magnitude, plan, model, ids, number * chunk)
            encoded.append(latents)
        return np.concatenate(encoded).reshape(len(ids), *plan.trajectory_shape)

    task = dataset.task
    latent_bytes = 4 * int(np.prod(plan.trajectory_shape))
    field_bytes = 4 * dataset.source.frames * task.points * len(task.channels)
    chunk_trajectories = max(1, _READ_BYTES // (latent_bytes + field_bytes))
    written = write_latents(
        out, plan, encode_trajectories, chunk_trajectories=chunk_trajectories, overwrite=overwrite, report=report
    )
    return plan if written else None


def encoding_config(weights: Weights, path: str | None, overrides: Sequence[str]) -> Config:
    """Return the configuration of the data to encode, from a file or from the run, with overrides.

    Args:
        weights: Weights of the run, with its configuration.
        path: Configuration file, or None for the configuration of the run.
        overrides: Overrides of the form `key=value`.

    Raises:
        ConfigError: The configuration does not match the codec of the run.
    """
    if path is not None:
        cfg = load(path, list(overrides))
    else:
        cfg = from_dict(merge(to_dict(weights.config), list(overrides)))
    check_codec(weights, cfg)
    return cfg


def check_codec(weights: Weights, cfg: Config) -> None:
    """Raise ConfigError if a training with this configuration could not use the codec of the run."""
    if len(cfg.data.tasks) != 1 or cfg.data.tasks[0].kind != "transient":
        names = ", ".join(task.name for task in cfg.data.tasks)
        raise ConfigError(f"data.tasks: latents require a single transient task, but the tasks are {names}")
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
                f"{key}={configured}: the codec of the run was trained with {trained}; set it to {trained}"
            )


def check_same_fields(trained: Task, encoded: Task) -> None:
    """Raise ConfigError if the channels, axes or periodicity of the data differ from those of the codec's training.

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


def _plan(weights: Weights, cfg: Config, dataset: Dataset, dtype: str, shard_bytes: int) -> LatentManifest:
    """Return the manifest of the latents to write: their shape, storage type, key and shard size."""
    task, source, context = dataset.task, dataset.source, cfg.data.context
    patch = patch_shape(task.shape, cfg.latent.patch_size)
    tokens = tuple(points // size for points, size in zip(task.shape, patch, strict=True))
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


def _encoder(model: Simulator, params: Any, dtype: str) -> Callable[[np.ndarray], tuple[Array, Array]]:
    """Return a function from contexts to their stored latents and to the maximum magnitude of each feature over tokens.

    It uses the highest matmul precision, independent of the precision of the training.
    """
    exact = model.clone(matmul_precision="highest")

    @jax.jit
    def encode_fields(fields: Float[Array, "b k *s c"], params: Any) -> tuple[Array, Array]:
        z = encode(exact, params, normalize(fields, model.task.statistics))
        stored = z.astype(dtype)
        if dtype == "bfloat16":
            stored = jax.lax.bitcast_convert_type(stored, jnp.uint16)
        # XLA's maximum on CPU ignores NaN, so non-finite values are mapped to infinity first.
        return stored, jnp.where(jnp.isfinite(z), jnp.abs(z), jnp.inf).max(1)

    return lambda fields: encode_fields(fields, params)


def _contexts(dataset: Dataset, context: int, ids: Int[np.ndarray, " n"]) -> Float[np.ndarray, "m k *s c"]:
    """Return the context frames of every latent of these trajectories, with all latents on the first axis."""
    first = (context - 1) * dataset.stride
    newest = np.arange(first, dataset.source.frames)
    frames = newest[:, None] - dataset.stride * np.arange(context)[::-1]
    fields = dataset.source.windows(
        ids, np.broadcast_to(np.arange(dataset.source.frames), (len(ids), dataset.source.frames))
    )
    return fields[:, frames].reshape(-1, context, *fields.shape[2:])


def _chunks(rows: np.ndarray, chunk: int) -> Iterator[np.ndarray]:
    """Yield chunks of equal size, so that one compiled program handles all; the last is padded with its last row."""
    for start in range(0, len(rows), chunk):
        rows_left = rows[start : start + chunk]
        yield np.concatenate([rows_left, np.repeat(rows_left[-1:], chunk - len(rows_left), axis=0)])


def _check_range(
    magnitude: np.ndarray, plan: LatentManifest, model: Simulator, ids: Int[np.ndarray, " n"], first: int
) -> None:
    """Raise an error if a latent is not finite or exceeds the range of its storage type.

    `first` is the index of the first row in the latents of the trajectories `ids`.
    """
    largest = float(jnp.finfo(plan.key.dtype).max)
    bad = np.argwhere(~(magnitude <= largest))
    if not len(bad):
        return
    row, number = (int(value) for value in bad[0])
    trajectory, frame = ids[(first + row) // plan.frames], plan.first + (first + row) % plan.frames
    where = f"frame {frame} of trajectory {trajectory}, {_feature_name(number, plan, model)}"
    if not np.isfinite(magnitude[row, number]):
        raise DivergedError(f"{where}: the latent value is not finite; train the run with the codec again")
    raise ConfigError(
        f"{where}: the latent value {magnitude[row, number]:.4g} exceeds the range of {plan.key.dtype} "
        f"({largest:.4g}); use --dtype bfloat16 or float32"
    )


def _feature_name(number: int, plan: LatentManifest, model: Simulator) -> str:
    """Return the name of a token's feature: a channel that the codec copies into the token, or a learned feature."""
    carried, channels = plan.carried * model.context, model.task.channels
    if number < carried:
        return f"channel {channels[number % len(channels)]}"
    return f"learned feature {number - carried} of channels {', '.join(channels)}"
