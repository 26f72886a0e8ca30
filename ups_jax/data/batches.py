"""Batches of one stage: `batch_at` is batch n of a data set, `training_batches` prepares them in the background."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from ups_jax.config import STAGE_NEEDS, Config
from ups_jax.data import windows
from ups_jax.data.dataset import Dataset
from ups_jax.errors import ConfigError
from ups_jax.seeding import stream_key

PERIODIC, OPEN = 2, 1


def steps_per_epoch(dataset: Dataset, cfg: Config, stage: str) -> int:
    """Whole batches in an epoch (`windows_per_trajectory` windows of every training trajectory), 1 at the least."""
    total = len(dataset.splits.train) * cfg.data.windows_per_trajectory
    return max(1, total // windows_per_step(cfg, stage))


def windows_per_step(cfg: Config, stage: str) -> int:
    """Windows of one optimizer step: `accum_steps` micro-batches of `batch_size`, drawn as one batch."""
    settings = getattr(cfg.stages, stage)
    return int(settings.batch_size * settings.accum_steps)


def window_frames(cfg: Config, stage: str = "operator") -> int:
    """Frames of a transient task's window: the context, the steps of the pushforward and those that are scored. A stage
    that is trained upon others scores one step, after the predictor's own."""
    if stage in STAGE_NEEDS["transient"]:
        return cfg.data.context + cfg.diffusion.own_steps + 1
    return cfg.data.context + cfg.training.pushforward + cfg.training.rollout_horizon


def batch_at(
    dataset: Dataset, cfg: Config, stage: str, n: int, process_index: int = 0, process_count: int = 1
) -> dict[str, np.ndarray]:
    """This host's rows of batch n, in physical units: a pure function of the arguments and `cfg.seed`."""
    return _read(dataset, _plan(dataset, cfg, stage, process_count), n, process_index, process_count)


@contextmanager
def training_batches(
    dataset: Dataset, cfg: Config, stage: str, start: int = 0, process_index: int = 0, process_count: int = 1
) -> Iterator[Iterator[dict[str, np.ndarray]]]:
    """Endless batches `start`, `start + 1`, ... as `batch_at` gives them, read ahead by `data.loader.threads`.

    A resumed run needs nothing but its step. Leaving the context stops the reading.
    """
    # Imported here: grain imports jax, which a reader of data files has no use for.
    import grain

    plan = _plan(dataset, cfg, stage, process_count)
    loader = cfg.data.loader
    batches = iter(
        grain.MapDataset.range(2**40)
        .map(lambda n: _read(dataset, plan, int(n), process_index, process_count))[start:]
        .to_iter_dataset(
            grain.ReadOptions(num_threads=min(loader.threads, loader.buffer), prefetch_buffer_size=loader.buffer)
        )
    )
    try:
        yield batches
    finally:
        batches.close()


def _plan(dataset: Dataset, cfg: Config, stage: str, process_count: int) -> windows.Plan:
    task, data = dataset.task, cfg.data
    rows = windows_per_step(cfg, stage)
    if rows % process_count:
        raise ConfigError(
            f"stages.{stage}.batch_size: {rows} windows a step cannot be shared by {process_count} processes; "
            f"make it a multiple of {process_count}"
        )
    # A steady solution is a window of one frame.
    length = 1 if task.kind == "steady" else window_frames(cfg, stage)
    offsets = np.arange(length) * dataset.stride
    starts = dataset.source.frames - int(offsets[-1])
    if starts < 1:
        raise ConfigError(
            f"data.context={data.context}, training.pushforward={cfg.training.pushforward}, "
            f"training.rollout_horizon={cfg.training.rollout_horizon} (diffusion.own_steps={cfg.diffusion.own_steps} "
            "in the corrector's stages) and "
            f"training.time_stride={dataset.stride} need {offsets[-1] + 1} frames, there are {dataset.source.frames}"
        )
    return windows.Plan(
        key=stream_key(cfg.seed, f"data/{stage}"),
        train=dataset.splits.train,
        per_trajectory=data.windows_per_trajectory,
        batch_size=windows_per_step(cfg, stage),
        offsets=offsets,
        starts=windows.start_distribution(
            dataset.change, starts, (data.context - 1) * dataset.stride, data.change_sampling
        ),
        shape=task.shape,
        rolled=task.periodic if data.augment else (False,) * len(task.shape),
        channels=len(task.channels),
        symmetries=task.symmetries if data.augment else (),
    )


def _read(
    dataset: Dataset, plan: windows.Plan, n: int, process_index: int, process_count: int
) -> dict[str, np.ndarray]:
    drawn = windows.draw(plan, n).rows(process_index, process_count)
    task, count = dataset.task, len(drawn.ids)
    sides = np.where(np.array(task.periodic), PERIODIC, OPEN).astype(np.int32)
    batch = {
        "fields": windows.augment(dataset.source.windows(drawn.ids, drawn.frames), drawn),
        "mask": np.ones(count, np.float32),
        "time": dataset.times[drawn.frames].astype(np.float32),
        "dt": np.full(count, task.dt, np.float32),
        "cond": dataset.conditions[drawn.ids],
        "cond_mask": dataset.condition_mask[drawn.ids],
        "bc": np.tile(sides[:, None], (count, 1, 2)),
        "task_id": np.zeros(count, np.int32),
        "trajectory_id": drawn.ids.astype(np.int32),
    }
    if task.inputs:
        batch["inputs"] = windows.augment_inputs(dataset.source.inputs(drawn.ids), drawn)
    return batch
