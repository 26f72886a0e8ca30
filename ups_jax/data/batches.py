"""Batches of a training stage.

`batch_at` returns batch n of a dataset or of a mixture of datasets; `training_batches` reads batches ahead in
background threads. Every batch belongs to one dataset.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from jaxtyping import Int

from ups_jax.config import Config
from ups_jax.core.errors import ConfigError, DataError
from ups_jax.core.rng import philox_key
from ups_jax.core.stage_names import STAGE_NEEDS
from ups_jax.data import splits, windows
from ups_jax.data.batch import Batch
from ups_jax.data.dataset import Dataset, point_arrays
from ups_jax.data.mixture import Mixture, TaskSchedule, as_mixture, task_shares
from ups_jax.data.sources.points import ScatteredSource

# Limits of a group of small batches that are read together. A batch takes about 190 NumPy calls, which dominate the
# time of a small batch: 0.35 ms alone, 0.1 ms in a group.
MAX_GROUPED_BATCHES, MAX_GROUPED_BYTES = 32, 2**20


def steps_per_epoch(data: Dataset | Mixture, cfg: Config, stage: str) -> int:
    """Return the number of full batches in an epoch, at least 1.

    An epoch has `data.windows_per_trajectory` windows of each training trajectory of the stage.
    """
    trajectories = sum(len(stage_trajectories(dataset, cfg, stage)) for dataset in as_mixture(data).datasets)
    return max(1, trajectories * cfg.data.windows_per_trajectory // windows_per_step(cfg, stage))


def windows_per_step(cfg: Config, stage: str) -> int:
    """Return the number of windows of one optimizer step, which is `batch_size * accum_steps` of the stage."""
    settings = getattr(cfg.stages, stage)
    return int(settings.batch_size * settings.accum_steps)


def stage_trajectories(dataset: Dataset, cfg: Config, stage: str) -> Int[np.ndarray, " n"]:
    """Return the ids of the training trajectories that a stage draws its windows from.

    With `diffusion.fold`, that share of the training split is reserved for the stages that train on the results of a
    predictor, and the predictor is trained on the rest.

    Raises:
        ConfigError: `diffusion.fold` is set for a task that has no such stages.
    """
    train, task = dataset.splits.train, dataset.task
    if not cfg.diffusion.fold:
        return train
    if task.scattered or task.siblings:
        reason = "is a point cloud" if task.scattered else "is one of several tasks"
        raise ConfigError(
            f"key `diffusion.fold`: task {task.name} {reason}, for which no corrector can be trained; set it to 0"
        )
    predictor, corrector = splits.split_off_fold(train, cfg.diffusion.fold, cfg.data.split.seed, dataset.source.name)
    return corrector if stage in STAGE_NEEDS[task.kind] else predictor


def window_frames(cfg: Config, stage: str = "operator") -> int:
    """Return the number of frames in a window of a transient task.

    A window has the context, then the pushforward steps, then the scored steps. In a stage that trains on the results
    of a predictor, the predictor's `diffusion.model_rollout_steps` and one scored step follow the context.
    """
    if stage in STAGE_NEEDS["transient"]:
        return cfg.data.context + cfg.diffusion.model_rollout_steps + 1
    return cfg.data.context + cfg.training.pushforward + cfg.training.rollout_horizon


def batch_at(
    data: Dataset | Mixture, cfg: Config, stage: str, n: int, process_index: int = 0, process_count: int = 1
) -> Batch:
    """Return this host's rows of batch n, a pure function of the arguments and of `cfg.seed`.

    Args:
        data: Dataset or mixture.
        cfg: The configuration.
        stage: Name of the stage, such as `operator`.
        n: Number of the batch, from 0.
        process_index: Index of this host.
        process_count: Number of hosts, which must divide the windows of a step.

    Raises:
        ConfigError: The windows do not fit the trajectories or the hosts.
        DataError: The data cannot be read.
    """
    return StageBatches.from_config(data, cfg, stage, process_count).read(n, 1, process_index, process_count)[0]


def first_batches(
    data: Dataset | Mixture, cfg: Config, stage: str, process_index: int = 0, process_count: int = 1
) -> list[Batch]:
    """Return this host's rows of the first batch of each task, independent of the task schedule."""
    batches = StageBatches.from_config(data, cfg, stage, process_count)
    return [batches.read_task(task, 0, 1, process_index, process_count)[0] for task in range(len(batches.datasets))]


@contextmanager
def training_batches(
    data: Dataset | Mixture, cfg: Config, stage: str, start: int = 0, process_index: int = 0, process_count: int = 1
) -> Iterator[Iterator[Batch]]:
    """Yield an endless iterator over the batches `start`, `start + 1`, ..., equal to those of `batch_at`.

    The batches are read ahead by `data.loader.threads` background threads, or in the calling thread if that is 0.
    Leaving the context stops the threads. A resumed run only needs the number of its step as `start`.

    Args:
        data: Dataset or mixture.
        cfg: The configuration.
        stage: Name of the stage, such as `operator`.
        start: Number of the first batch.
        process_index: Index of this host.
        process_count: Number of hosts, which must divide the windows of a step.
    """
    # Imported here: grain imports jax, which reading data does not need.
    import grain

    stage_batches = StageBatches.from_config(data, cfg, stage, process_count)
    host, loader = (process_index, process_count), cfg.data.loader
    size = stage_batches.group_size(*host) if loader.threads else 1
    threads = min(loader.threads, loader.buffer)
    buffer = max(threads, math.ceil(loader.buffer / size)) if threads else 0
    groups = iter(
        grain.MapDataset.range(2**40)
        .map(lambda n: stage_batches.read_group(start + int(n) * size, size, *host))
        .to_iter_dataset(grain.ReadOptions(num_threads=threads, prefetch_buffer_size=buffer))
    )

    def iterate() -> Generator[Batch, None, None]:
        for number, group in enumerate(groups):
            first = start + number * size
            # An empty group contains an unreadable batch. Reading one by one raises its error only after the batches
            # before it.
            yield from group or (stage_batches.read(n, 1, *host)[0] for n in range(first, first + size))

    batches = iterate()
    try:
        yield batches
    finally:
        batches.close()
        groups.close()


@dataclass(frozen=True, eq=False, kw_only=True)
class StageBatches:
    """All batches of a stage, determined by the datasets, the window plan of each dataset, and the schedule of tasks.

    Attributes:
        datasets: Dataset of each task.
        plans: Window plan of each task.
        schedule: Task of each step.
    """

    datasets: tuple[Dataset, ...]
    plans: tuple[windows.WindowPlan, ...]
    schedule: TaskSchedule

    @staticmethod
    def from_config(data: Dataset | Mixture, cfg: Config, stage: str, process_count: int) -> StageBatches:
        """Return the batches of a configured stage."""
        datasets = as_mixture(data).datasets
        sizes = {dataset.task.name: len(dataset.splits.train) for dataset in datasets}
        return StageBatches(
            datasets=datasets,
            plans=tuple(_plan(dataset, cfg, stage, process_count, task) for task, dataset in enumerate(datasets)),
            schedule=TaskSchedule(philox_key(cfg.seed, f"mixing/{stage}"), task_shares(cfg.data.mixing, sizes)),
        )

    def group_size(self, process_index: int, process_count: int, max_bytes: int = MAX_GROUPED_BYTES) -> int:
        """Return the number of batches to read together: 1 for several tasks, otherwise limited by `max_bytes`."""
        if len(self.datasets) > 1:
            return 1
        try:
            (batch,) = self.read_task(0, 0, 1, process_index, process_count)
        except DataError:
            # Batch 0 may never be requested, so its error is not raised here.
            return 1
        return max(1, min(MAX_GROUPED_BATCHES, max_bytes // batch.nbytes))

    def read_group(self, n: int, count: int, process_index: int, process_count: int) -> list[Batch]:
        """Return a host's rows of the batches n to n + count - 1.

        If a batch is unreadable, its `DataError` is raised for `count` 1; otherwise the result is an empty list.
        """
        try:
            return self.read(n, count, process_index, process_count)
        except DataError:
            if count == 1:
                raise
            # Not None, which grain would skip.
            return []

    def read(self, n: int, count: int, process_index: int, process_count: int) -> list[Batch]:
        """Return a host's rows of the batches n to n + count - 1; `count` must be 1 for several tasks."""
        task, number = self.schedule.at(n) if len(self.datasets) > 1 else (0, n)
        return self.read_task(task, number, count, process_index, process_count)

    def read_task(self, task: int, n: int, count: int, process_index: int, process_count: int) -> list[Batch]:
        """Return a host's rows of the batches n to n + count - 1 of one task."""
        rows = read_rows(self.datasets[task], self.plans[task], n, count, process_index, process_count)
        rows["task_id"] = np.full(len(rows["mask"]), task, np.int32)
        size = len(rows["mask"]) // count
        return [
            Batch(**{name: values[first : first + size] for name, values in rows.items()}, task=task)
            for first in range(0, count * size, size)
        ]


def _plan(dataset: Dataset, cfg: Config, stage: str, process_count: int, number: int) -> windows.WindowPlan:
    """Return the plan of a task's windows; `number` is the index of the task."""
    task, data = dataset.task, cfg.data
    rows = windows_per_step(cfg, stage)
    if rows % process_count:
        raise ConfigError(
            f"stages.{stage}.batch_size: {rows} windows per step cannot be divided among {process_count} processes; "
            f"make it a multiple of {process_count}"
        )
    # A steady solution is a window of one frame.
    length = 1 if task.kind == "steady" else window_frames(cfg, stage)
    offsets = np.arange(length) * dataset.stride
    starts = dataset.source.frames - int(offsets[-1])
    if starts < 1:
        raise ConfigError(
            f"data.context={data.context}, training.pushforward={cfg.training.pushforward}, "
            f"training.rollout_horizon={cfg.training.rollout_horizon} (in the corrector's stages "
            f"diffusion.model_rollout_steps={cfg.diffusion.model_rollout_steps}) and "
            f"training.time_stride={dataset.stride} need {offsets[-1] + 1} frames, but the trajectories have "
            f"{dataset.source.frames}; lower one of them"
        )
    # Each task has its own random stream. The stream of the first task is the one of a training on this task alone.
    stream = f"data/{stage}" + (f"/{task.name}" if number else "")
    plan = windows.WindowPlan(
        key=philox_key(cfg.seed, stream),
        train=stage_trajectories(dataset, cfg, stage),
        windows_per_trajectory=data.windows_per_trajectory,
        batch_size=windows_per_step(cfg, stage),
        offsets=offsets,
        start_probabilities=windows.start_distribution(
            dataset.change, starts, (data.context - 1) * dataset.stride, data.change_sampling
        ),
        shape=task.shape,
        roll_axes=task.periodic if data.augment and not task.scattered else (False,) * len(task.shape),
        channels=len(task.channels),
        symmetries=task.symmetries if data.augment else (),
    )
    return plan if dataset.latents is None else dataset.latents.adapt_plan(plan)


def read_rows(
    dataset: Dataset, plan: windows.WindowPlan, n: int, count: int, process_index: int, process_count: int
) -> dict[str, Any]:
    """Return a host's rows of the batches n to n + count - 1 of a task, as arrays by name, batch after batch."""
    draw = windows.draw_windows(plan, n, count).rows(process_index, process_count, count)
    task, rows = dataset.task, len(draw.ids)
    if dataset.latents is None:
        batch: dict[str, Any] = {"fields": windows.augment(dataset.source.read(draw.ids, draw.frames), draw)}
    else:
        batch = dict(dataset.latents.read_batch(draw))
    batch |= {
        "mask": np.ones(rows, np.float32),
        "time": dataset.times[draw.frames].astype(np.float32),
        "dt": np.full(rows, task.dt, np.float32),
        "cond": dataset.conditions[draw.ids],
        "cond_mask": dataset.condition_mask[draw.ids],
        "bc": np.tile(np.array(task.boundary_codes, np.int32), (rows, 1, 1)),
        "trajectory_id": draw.ids.astype(np.int32),
    }
    if task.scattered:
        points = cast(ScatteredSource, dataset.source).points(draw.ids)
        batch |= point_arrays(points, dataset.source.read_input_fields(draw.ids))
    elif task.inputs:
        batch["inputs"] = windows.augment_inputs(dataset.source.read_input_fields(draw.ids), draw)
    return batch
