"""Batches of a training stage.

`batch_at` returns batch n of a dataset or of a mixture of datasets; `training_batches` reads batches ahead in
background threads. Every batch belongs to one dataset.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import cast

import numpy as np
from jaxtyping import Int

from ups_jax.config import Config
from ups_jax.core.errors import ConfigError, DataError
from ups_jax.core.rng import philox_key
from ups_jax.core.stage_names import STAGE_NEEDS
from ups_jax.data import splits, windows
from ups_jax.data.batch import Batch, BatchArray
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
    trajectories = sum(len(stage_trajectory_ids(dataset, cfg, stage)) for dataset in as_mixture(data).datasets)
    return max(1, trajectories * cfg.data.windows_per_trajectory // windows_per_step(cfg, stage))


def windows_per_step(cfg: Config, stage: str) -> int:
    """Return the number of windows of one optimizer step, which is `batch_size * accum_steps` of the stage."""
    settings = getattr(cfg.stages, stage)
    return int(settings.batch_size * settings.accum_steps)


def stage_trajectory_ids(dataset: Dataset, cfg: Config, stage: str) -> Int[np.ndarray, " n"]:
    """Return the ids of the training trajectories that a stage draws its windows from.

    If `diffusion.fold` is positive, stages that train a corrector draw from this share of the training split, and all
    other stages from the rest.

    Raises:
        ConfigError: `diffusion.fold` is positive, but the task is on a point cloud or is one of several tasks.
    """
    train, task = dataset.splits.train, dataset.task
    if not cfg.diffusion.fold:
        return train
    if task.scattered or task.siblings:
        reason = "is on a point cloud" if task.scattered else "is one of several tasks"
        raise ConfigError(
            f"key `diffusion.fold`: no corrector can be trained for task {task.name}, which {reason}; set the key to 0"
        )
    predictor, corrector = splits.split_predictor_and_corrector(
        train, cfg.diffusion.fold, cfg.data.split.seed, dataset.source.name
    )
    return corrector if stage in STAGE_NEEDS[task.kind] else predictor


def window_frames(cfg: Config, stage: str = "operator") -> int:
    """Return the number of frames in a window of a transient task.

    A window has the context, then the pushforward steps, then the scored steps. In a stage that trains a corrector, the
    context is followed by the predictor's `diffusion.model_rollout_steps` and one scored step.
    """
    if stage in STAGE_NEEDS["transient"]:
        return cfg.data.context + cfg.diffusion.model_rollout_steps + 1
    return cfg.data.context + cfg.training.pushforward + cfg.training.rollout_horizon


def batch_at(
    data: Dataset | Mixture, cfg: Config, stage: str, n: int, process_index: int = 0, process_count: int = 1
) -> Batch:
    """Return this host's rows of batch n, which depend on nothing but the arguments.

    Args:
        stage: Name of the stage, such as `operator`.
        n: Number of the batch, from 0.
        process_index: Index of this host.
        process_count: Number of hosts, which must divide the windows of a step.

    Raises:
        ConfigError: A window is longer than the trajectories, or the windows of a step cannot be divided equally.
        DataError: The data cannot be read.
    """
    return StageBatches.from_config(data, cfg, stage, process_count).read(n, 1, process_index, process_count)[0]


def first_batches(
    data: Dataset | Mixture, cfg: Config, stage: str, process_index: int = 0, process_count: int = 1
) -> list[Batch]:
    """Return this host's rows of the first batch of each task, in the order of the tasks."""
    batches = StageBatches.from_config(data, cfg, stage, process_count)
    return [batches.read_task(task, 0, 1, process_index, process_count)[0] for task in range(len(batches.datasets))]


@contextmanager
def training_batches(
    data: Dataset | Mixture, cfg: Config, stage: str, start: int = 0, process_index: int = 0, process_count: int = 1
) -> Iterator[Iterator[Batch]]:
    """Yield an endless iterator over the batches `start`, `start + 1`, ..., equal to those of `batch_at`.

    The batches are read ahead by `data.loader.threads` background threads, or in the calling thread if there are 0.
    Leaving the context stops the threads.

    Args:
        stage: Name of the stage, such as `operator`.
        start: Number of the first batch; for a resumed run, the number of steps that it has trained.
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

    def iterate_batches() -> Generator[Batch, None, None]:
        for number, group in enumerate(groups):
            first = start + number * size
            # An empty group contains an unreadable batch. Reading one by one raises its error only after the batches
            # before it.
            yield from group or (stage_batches.read(n, 1, *host)[0] for n in range(first, first + size))

    batches = iterate_batches()
    try:
        yield batches
    finally:
        batches.close()
        groups.close()


@dataclass(frozen=True, eq=False, kw_only=True)
class StageBatches:
    """All batches of a stage, with methods that read them by number.

    Attributes:
        datasets: Dataset of each task.
        window_plans: Settings by which the windows of each task are drawn.
        schedule: Task of each step.
    """

    datasets: tuple[Dataset, ...]
    window_plans: tuple[windows.WindowPlan, ...]
    schedule: TaskSchedule

    @staticmethod
    def from_config(data: Dataset | Mixture, cfg: Config, stage: str, process_count: int) -> StageBatches:
        """Return the batches of the stage with the name `stage`, for training on `process_count` hosts."""
        datasets = as_mixture(data).datasets
        sizes = {dataset.task.name: len(dataset.splits.train) for dataset in datasets}
        return StageBatches(
            datasets=datasets,
            window_plans=tuple(
                _window_plan(dataset, cfg, stage, process_count, task) for task, dataset in enumerate(datasets)
            ),
            schedule=TaskSchedule(philox_key(cfg.seed, f"mixing/{stage}"), task_shares(cfg.data.mixing, sizes)),
        )

    def group_size(self, process_index: int, process_count: int, max_bytes: int = MAX_GROUPED_BYTES) -> int:
        """Return how many batches to read at once: as many as fit into `max_bytes`, but 1 for several tasks."""
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

        If a batch cannot be read, return an empty list, or raise `DataError` if `count` is 1.
        """
        try:
            return self.read(n, count, process_index, process_count)
        except DataError:
            if count == 1:
                raise
            # Not None, which grain would skip.
            return []

    def read(self, n: int, count: int, process_index: int, process_count: int) -> list[Batch]:
        """Return a host's rows of the batches n to n + count - 1; `count` must be 1 if there are several tasks."""
        task, number = self.schedule.task_and_number_at(n) if len(self.datasets) > 1 else (0, n)
        return self.read_task(task, number, count, process_index, process_count)

    def read_task(self, task: int, n: int, count: int, process_index: int, process_count: int) -> list[Batch]:
        """Return a host's rows of the batches n to n + count - 1, counting only the batches of the task `task`."""
        rows = read_rows(self.datasets[task], self.window_plans[task], n, count, process_index, process_count)
        rows["task_id"] = np.full(len(rows["mask"]), task, np.int32)
        size = len(rows["mask"]) // count
        return [
            Batch(**{name: values[first : first + size] for name, values in rows.items()}, task=task)
            for first in range(0, count * size, size)
        ]


def _window_plan(dataset: Dataset, cfg: Config, stage: str, process_count: int, task_index: int) -> windows.WindowPlan:
    """Return the settings by which the windows of one task are drawn in a stage."""
    task, data = dataset.task, cfg.data
    rows = windows_per_step(cfg, stage)
    if rows % process_count:
        raise ConfigError(
            f"key `stages.{stage}.batch_size`: the {rows} windows of a step cannot be divided equally among "
            f"{process_count} processes; set the key to a multiple of {process_count}"
        )
    # A steady solution is a window of one frame.
    length = 1 if task.kind == "steady" else window_frames(cfg, stage)
    offsets = np.arange(length) * dataset.stride
    starts = dataset.frames("train") - int(offsets[-1])
    if starts < 1:
        raise ConfigError(
            f"stage {stage}: a window needs {offsets[-1] + 1} frames, but the trajectories of {task.name} have "
            f"{dataset.frames('train')}; lower `data.context={data.context}`, `training.time_stride={dataset.stride}`, "
            f"`training.pushforward={cfg.training.pushforward}` or "
            f"`training.rollout_horizon={cfg.training.rollout_horizon}` (in the stages of a corrector "
            f"`diffusion.model_rollout_steps={cfg.diffusion.model_rollout_steps}`)"
        )
    # Each task has its own random stream. The stream of the first task is the one of a training on this task alone.
    stream = f"data/{stage}" + (f"/{task.name}" if task_index else "")
    plan = windows.WindowPlan(
        key=philox_key(cfg.seed, stream),
        train_ids=stage_trajectory_ids(dataset, cfg, stage),
        windows_per_trajectory=data.windows_per_trajectory,
        batch_size=windows_per_step(cfg, stage),
        offsets=offsets,
        start_probabilities=windows.start_distribution(
            dataset.relative_change, starts, (data.context - 1) * dataset.stride, data.change_sampling
        ),
        shape=task.shape,
        roll_axes=task.periodic if data.augment and not task.scattered else (False,) * len(task.shape),
        channels=len(task.channels),
        symmetries=task.symmetries if data.augment else (),
    )
    return plan if dataset.latents is None else dataset.latents.adapt_plan(plan)


def read_rows(
    dataset: Dataset, plan: windows.WindowPlan, n: int, count: int, process_index: int, process_count: int
) -> dict[str, BatchArray]:
    """Return the arrays of a host's rows of the batches n to n + count - 1 of a task, by their names in `Batch`.

    The rows of all batches are concatenated.
    """
    draw = windows.draw_windows(plan, n, count).rows_of_host(process_index, process_count, count)
    task, rows = dataset.task, len(draw.ids)
    if dataset.latents is None:
        batch = {"fields": windows.augment(dataset.source.read(draw.ids, draw.frames), draw)}
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
