"""Batches of one stage: `batch_at` is batch n of a data set or of several mixed, each batch being of one of them;
`training_batches` prepares them in the background."""

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
from ups_jax.core.rng import stream_key
from ups_jax.core.stage_names import STAGE_NEEDS
from ups_jax.data import splits, windows
from ups_jax.data.batch import Batch
from ups_jax.data.dataset import Dataset, point_arrays
from ups_jax.data.mixture import Mixture, Schedule, mixture_of, shares
from ups_jax.data.sources.points import Scattered

# Batches that are read as one. A batch is some 190 calls of NumPy, which are all that a small one takes: 0.35 ms, and
# 0.1 where many share them.
MAX_GROUPED_BATCHES, MAX_GROUPED_BYTES = 32, 2**20


def steps_per_epoch(data: Dataset | Mixture, cfg: Config, stage: str) -> int:
    """Whole batches in an epoch (`windows_per_trajectory` windows of each of the stage's trajectories), 1 at the
    least."""
    trajectories = sum(len(stage_trajectories(dataset, cfg, stage)) for dataset in mixture_of(data).datasets)
    return max(1, trajectories * cfg.data.windows_per_trajectory // windows_per_step(cfg, stage))


def windows_per_step(cfg: Config, stage: str) -> int:
    """Windows of one optimizer step: `accum_steps` micro-batches of `batch_size`, drawn as one batch."""
    settings = getattr(cfg.stages, stage)
    return int(settings.batch_size * settings.accum_steps)


def stage_trajectories(dataset: Dataset, cfg: Config, stage: str) -> Int[np.ndarray, " n"]:
    """The trajectories that a stage draws its windows from: those of the training split, of which `diffusion.fold`
    keeps a share for the stages that are trained upon a predictor, which has the others. ConfigError where no such
    stage is for the task."""
    train, task = dataset.splits.train, dataset.task
    if not cfg.diffusion.fold:
        return train
    if task.scattered or task.siblings:
        why = "is of points" if task.scattered else "is one of several"
        raise ConfigError(f"key `diffusion.fold`: task {task.name} {why}, and no corrector is for such; set it to 0")
    own, held = splits.fold(train, cfg.diffusion.fold, cfg.data.split.seed, dataset.source.name)
    return held if stage in STAGE_NEEDS[task.kind] else own


def window_frames(cfg: Config, stage: str = "operator") -> int:
    """Frames of a transient task's window: the context, the steps of the pushforward and those that are scored. A stage
    that is trained upon others scores one step, after the predictor's own."""
    if stage in STAGE_NEEDS["transient"]:
        return cfg.data.context + cfg.diffusion.model_rollout_steps + 1
    return cfg.data.context + cfg.training.pushforward + cfg.training.rollout_horizon


def batch_at(
    data: Dataset | Mixture, cfg: Config, stage: str, n: int, process_index: int = 0, process_count: int = 1
) -> Batch:
    """This host's rows of batch n, in physical units: a pure function of the arguments and `cfg.seed`."""
    return StageBatches.from_config(data, cfg, stage, process_count).read(n, 1, process_index, process_count)[0]


def first_batches(
    data: Dataset | Mixture, cfg: Config, stage: str, process_index: int = 0, process_count: int = 1
) -> list[Batch]:
    """This host's rows of each task's own first batch, whatever its share of the steps."""
    batches = StageBatches.from_config(data, cfg, stage, process_count)
    return [batches.read_task(task, 0, 1, process_index, process_count)[0] for task in range(len(batches.datasets))]


@contextmanager
def training_batches(
    data: Dataset | Mixture, cfg: Config, stage: str, start: int = 0, process_index: int = 0, process_count: int = 1
) -> Iterator[Iterator[Batch]]:
    """Endless batches `start`, `start + 1`, ... as `batch_at` gives them, read ahead by `data.loader.threads`,
    without any in the caller's own.

    A resumed run needs nothing but its step. Leaving the context stops the reading.
    """
    # Imported here: grain imports jax, which a reader of data files has no use for.
    import grain

    planned = StageBatches.from_config(data, cfg, stage, process_count)
    host, loader = (process_index, process_count), cfg.data.loader
    size = planned.group_size(*host) if loader.threads else 1
    threads = min(loader.threads, loader.buffer)
    buffer = max(threads, math.ceil(loader.buffer / size)) if threads else 0
    groups = iter(
        grain.MapDataset.range(2**40)
        .map(lambda n: planned.read_group(start + int(n) * size, size, *host))
        .to_iter_dataset(grain.ReadOptions(num_threads=threads, prefetch_buffer_size=buffer))
    )

    def each() -> Generator[Batch, None, None]:
        for number, group in enumerate(groups):
            first = start + number * size
            # What is wrong with a batch is told when it is asked for, and not ahead of those before it.
            yield from group or (planned.read(n, 1, *host)[0] for n in range(first, first + size))

    batches = each()
    try:
        yield batches
    finally:
        batches.close()
        groups.close()


@dataclass(frozen=True, eq=False, kw_only=True)
class StageBatches:
    """All that the batches of a stage depend on: each task's own windows, and whose turn it is."""

    datasets: tuple[Dataset, ...]
    plans: tuple[windows.Plan, ...]
    schedule: Schedule

    @staticmethod
    def from_config(data: Dataset | Mixture, cfg: Config, stage: str, process_count: int) -> StageBatches:
        datasets = mixture_of(data).datasets
        sizes = {dataset.task.name: len(dataset.splits.train) for dataset in datasets}
        return StageBatches(
            datasets=datasets,
            plans=tuple(_plan(dataset, cfg, stage, process_count, task) for task, dataset in enumerate(datasets)),
            schedule=Schedule(stream_key(cfg.seed, f"mixing/{stage}"), shares(cfg.data.mixing, sizes)),
        )

    def group_size(self, process_index: int, process_count: int, most_bytes: int = MAX_GROUPED_BYTES) -> int:
        """Return how many small batches of one task, of `most_bytes` together, are read as one."""
        if len(self.datasets) > 1:
            return 1
        try:
            (batch,) = self.read_task(0, 0, 1, process_index, process_count)
        except DataError:
            # It may be one that is never asked for.
            return 1
        return max(1, min(MAX_GROUPED_BATCHES, most_bytes // batch.nbytes))

    def read_group(self, n: int, count: int, process_index: int, process_count: int) -> list[Batch]:
        """A host's rows of batches n, n + 1, ...; none where several are read and one of them cannot be."""
        try:
            return self.read(n, count, process_index, process_count)
        except DataError:
            if count == 1:
                raise
            # Grain leaves out what is None.
            return []

    def read(self, n: int, count: int, process_index: int, process_count: int) -> list[Batch]:
        """A host's rows of batches n, n + 1, ...; one at a time of several tasks."""
        task, number = self.schedule.at(n) if len(self.datasets) > 1 else (0, n)
        return self.read_task(task, number, count, process_index, process_count)

    def read_task(self, task: int, n: int, count: int, process_index: int, process_count: int) -> list[Batch]:
        """A host's rows of `count` batches of a task, from the n-th on."""
        rows = read_rows(self.datasets[task], self.plans[task], n, count, process_index, process_count)
        rows["task_id"] = np.full(len(rows["mask"]), task, np.int32)
        size = len(rows["mask"]) // count
        return [
            Batch(**{name: values[first : first + size] for name, values in rows.items()}, task=task)
            for first in range(0, count * size, size)
        ]


def _plan(dataset: Dataset, cfg: Config, stage: str, process_count: int, number: int) -> windows.Plan:
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
            f"training.rollout_horizon={cfg.training.rollout_horizon} (diffusion.model_rollout_steps={cfg.diffusion.model_rollout_steps} "
            "in the corrector's stages) and "
            f"training.time_stride={dataset.stride} need {offsets[-1] + 1} frames, there are {dataset.source.frames}"
        )
    # The windows of two tasks are drawn apart; those of the first are what they are without the others.
    stream = f"data/{stage}" + (f"/{task.name}" if number else "")
    plan = windows.Plan(
        key=stream_key(cfg.seed, stream),
        train=stage_trajectories(dataset, cfg, stage),
        per_trajectory=data.windows_per_trajectory,
        batch_size=windows_per_step(cfg, stage),
        offsets=offsets,
        starts=windows.start_distribution(
            dataset.change, starts, (data.context - 1) * dataset.stride, data.change_sampling
        ),
        shape=task.shape,
        rolled=task.periodic if data.augment and not task.scattered else (False,) * len(task.shape),
        channels=len(task.channels),
        symmetries=task.symmetries if data.augment else (),
    )
    return plan if dataset.latents is None else dataset.latents.plan(plan)


def read_rows(
    dataset: Dataset, plan: windows.Plan, n: int, count: int, process_index: int, process_count: int
) -> dict[str, Any]:
    """Return the arrays of `count` batches of a task as one, from the n-th on: the rows of one host."""
    drawn = windows.draw(plan, n, count).rows(process_index, process_count, count)
    task, rows = dataset.task, len(drawn.ids)
    if dataset.latents is None:
        batch: dict[str, Any] = {"fields": windows.augment(dataset.source.windows(drawn.ids, drawn.frames), drawn)}
    else:
        batch = dict(dataset.latents.read(drawn))
    batch |= {
        "mask": np.ones(rows, np.float32),
        "time": dataset.times[drawn.frames].astype(np.float32),
        "dt": np.full(rows, task.dt, np.float32),
        "cond": dataset.conditions[drawn.ids],
        "cond_mask": dataset.condition_mask[drawn.ids],
        "bc": np.tile(np.array(task.boundary, np.int32), (rows, 1, 1)),
        "trajectory_id": drawn.ids.astype(np.int32),
    }
    if task.scattered:
        places = cast(Scattered, dataset.source).places(drawn.ids)
        batch |= point_arrays(places, dataset.source.inputs(drawn.ids))
    elif task.inputs:
        batch["inputs"] = windows.augment_inputs(dataset.source.inputs(drawn.ids), drawn)
    return batch
