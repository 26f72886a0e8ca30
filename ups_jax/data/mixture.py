"""The datasets of all tasks of a training, and the schedule that assigns each step to a task."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from jaxtyping import Int

from ups_jax.config import MixingConfig
from ups_jax.core.errors import ConfigError
from ups_jax.core.rng import philox_generator
from ups_jax.core.task import Task
from ups_jax.data.dataset import Dataset
from ups_jax.data.splits import split_record


@dataclass(frozen=True, eq=False, kw_only=True)
class Mixture:
    """The datasets of the tasks that one model is trained on: all transient, or all steady."""

    datasets: tuple[Dataset, ...]

    @property
    def tasks(self) -> tuple[Task, ...]:
        """The task of each dataset."""
        return tuple(dataset.task for dataset in self.datasets)

    @property
    def kind(self) -> str:
        """The kind of all tasks, `transient` or `steady`."""
        return self.tasks[0].kind

    @property
    def name(self) -> str:
        """The names of the tasks, joined by `+`."""
        return "+".join(task.name for task in self.tasks)

    @property
    def fingerprint(self) -> str:
        """The fingerprints of the datasets, joined by `+`."""
        return "+".join(dataset.fingerprint for dataset in self.datasets)

    def fingerprint_like(self, recorded: str) -> str:
        """Return the fingerprint in the version of a recorded one, so that the two can be compared."""
        parts = recorded.split("+")
        if len(parts) != len(self.datasets):
            return self.fingerprint
        return "+".join(item.fingerprint_like(part) for item, part in zip(self.datasets, parts, strict=True))

    def split_record(self) -> dict[str, Any]:
        """Return the content of a run's `split.json`: the split of the only task, or of several tasks by name."""
        records = {data.task.name: split_record(data.splits, data.source.trajectories) for data in self.datasets}
        return next(iter(records.values())) if len(records) == 1 else records


def as_mixture(data: Dataset | Mixture) -> Mixture:
    """Return a mixture unchanged; return a single dataset as a mixture with one member."""
    return data if isinstance(data, Mixture) else Mixture(datasets=(data,))


# Number of steps in a block of the schedule.
BLOCK_STEPS = 64


def task_shares(mixing: MixingConfig, train_counts: Mapping[str, int]) -> tuple[float, ...]:
    """Return the share of the training steps of each task; the shares sum to 1.

    Args:
        mixing: The method (`uniform`, `proportional`, `temperature` or `weights`) with its settings.
        train_counts: Number of training trajectories of each task, by name.

    Raises:
        ConfigError: `data.mixing.weights` does not contain one weight for each task.
    """
    counts = np.array(list(train_counts.values()), float)
    if mixing.method == "weights":
        if set(mixing.weights) != set(train_counts):
            raise ConfigError(
                f"key `data.mixing.weights`: names {', '.join(mixing.weights)}, but the tasks are "
                f"{', '.join(train_counts)}; give one weight for each task"
            )
        weights = np.array([mixing.weights[name] for name in train_counts])
    else:
        power = {"uniform": 0.0, "proportional": 1.0, "temperature": 1.0 / (mixing.temperature or 1.0)}[mixing.method]
        weights = (counts / counts.max()) ** power
    return tuple((weights / weights.sum()).tolist())


@dataclass(frozen=True)
class TaskSchedule:
    """The task of each training step, in shuffled blocks of 64 steps.

    In every block, a task has its share of the 64 steps to within one step.

    Attributes:
        key: Key of the random stream that shuffles each block.
        shares: Share of the steps of each task.
    """

    key: tuple[int, int]
    shares: tuple[float, ...]

    def task_and_number_at(self, n: int) -> tuple[int, int]:
        """Return the index of the task of step n, and the number of this task's steps before step n."""
        block, position = divmod(n, BLOCK_STEPS)
        order = _tasks_of_block(self.key, self.shares, block)
        task = int(order[position])
        steps_before = _step_counts_before(self.key, self.shares, block)[task] + np.sum(order[:position] == task)
        return task, int(steps_before)


@lru_cache(maxsize=256)
def _tasks_of_block(
    stream_key: tuple[int, int], task_shares: tuple[float, ...], block_number: int
) -> Int[np.ndarray, " n"]:
    """Return the index of the task of each step in one block of 64 steps, drawn from a random stream."""
    rng = philox_generator(stream_key, (0, block_number))
    # Evenly spaced points with one random offset: a share that is not a whole number of steps is met on average.
    points = (np.arange(BLOCK_STEPS) + rng.random()) / BLOCK_STEPS
    tasks = np.searchsorted(np.cumsum(task_shares)[:-1], points, side="right")
    return rng.permutation(tasks)


def _step_counts_before(key: tuple[int, int], shares: tuple[float, ...], block: int) -> Int[np.ndarray, " t"]:
    """Return each task's number of steps in all blocks before `block`, from counts of 2**k blocks, which are cached."""
    counts, start = np.zeros(len(shares), int), 0
    for power in reversed(range(block.bit_length())):
        if block >> power & 1:
            counts = counts + _step_counts_in_blocks(key, shares, start, power)
            start += 1 << power
    return counts


@lru_cache(maxsize=8192)
def _step_counts_in_blocks(
    key: tuple[int, int], shares: tuple[float, ...], start: int, power: int
) -> Int[np.ndarray, " t"]:
    """Return each task's number of steps in the `2**power` blocks from block `start` on."""
    if power == 0:
        return np.bincount(_tasks_of_block(key, shares, start), minlength=len(shares))
    half = 1 << (power - 1)
    first_half = _step_counts_in_blocks(key, shares, start, power - 1)
    return first_half + _step_counts_in_blocks(key, shares, start + half, power - 1)
