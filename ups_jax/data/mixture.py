"""The data of all tasks of a training. `Schedule` says which task a step is of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from jaxtyping import Int

from ups_jax.config import MixingConfig
from ups_jax.core.errors import ConfigError
from ups_jax.core.rng import generator
from ups_jax.core.task import Task
from ups_jax.data.dataset import Dataset
from ups_jax.data.splits import as_list


@dataclass(frozen=True, eq=False, kw_only=True)
class Mixture:
    """One data set or more, a task each, of one kind."""

    datasets: tuple[Dataset, ...]

    @property
    def tasks(self) -> tuple[Task, ...]:
        """Their tasks."""
        return tuple(dataset.task for dataset in self.datasets)

    @property
    def kind(self) -> str:
        """The kind of all tasks."""
        return self.tasks[0].kind

    @property
    def name(self) -> str:
        """The names of all tasks."""
        return "+".join(task.name for task in self.tasks)

    @property
    def fingerprint(self) -> str:
        """Those of all data, in order."""
        return "+".join(dataset.fingerprint for dataset in self.datasets)

    def split(self) -> dict[str, Any]:
        """What a split file holds, of several tasks under their names."""
        each = {data.task.name: as_list(data.splits, data.source.trajectories) for data in self.datasets}
        return next(iter(each.values())) if len(each) == 1 else each


def mixture_of(data: Dataset | Mixture) -> Mixture:
    """A mixture, also of one data set."""
    return data if isinstance(data, Mixture) else Mixture(datasets=(data,))


# Steps of a block: in each the tasks have their shares to within one step.
BLOCK = 64


def shares(mixing: MixingConfig, trajectories: Mapping[str, int]) -> tuple[float, ...]:
    """The share of the steps that each task has, of tasks with so many training trajectories. ConfigError where the
    weights are of other tasks."""
    counts = np.array(list(trajectories.values()), float)
    if mixing.method == "weights":
        if set(mixing.weights) != set(trajectories):
            raise ConfigError(
                f"key `data.mixing.weights`: is of {', '.join(mixing.weights)}, the tasks are "
                f"{', '.join(trajectories)}; give each a number"
            )
        parts = np.array([mixing.weights[name] for name in trajectories])
    else:
        power = {"uniform": 0.0, "proportional": 1.0, "temperature": 1.0 / (mixing.temperature or 1.0)}[mixing.method]
        parts = (counts / counts.max()) ** power
    return tuple((parts / parts.sum()).tolist())


@dataclass(frozen=True)
class Schedule:
    """The tasks of the steps: in blocks, each with the tasks by their shares in an order of its own."""

    key: tuple[int, int]
    shares: tuple[float, ...]

    def at(self, n: int) -> tuple[int, int]:
        """The task of step n, by number, and how many steps before it were of the same one."""
        block, place = divmod(n, BLOCK)
        order = _order(self.key, self.shares, block)
        task = int(order[place])
        return task, int(_counts_before(self.key, self.shares, block)[task] + np.sum(order[:place] == task))


@lru_cache(maxsize=256)
def _order(key: tuple[int, int], shares: tuple[float, ...], block: int) -> Int[np.ndarray, " n"]:
    drawn = generator(key, (0, block))
    # Evenly spaced points with one random offset: a share that is not a whole number of steps is met on average.
    points = (np.arange(BLOCK) + drawn.random()) / BLOCK
    tasks = np.searchsorted(np.cumsum(shares)[:-1], points, side="right")
    return drawn.permutation(tasks)


def _counts_before(key: tuple[int, int], shares: tuple[float, ...], block: int) -> Int[np.ndarray, " t"]:
    """Steps of each task in all blocks before one, by runs of blocks whose lengths are powers of two."""
    counts, start = np.zeros(len(shares), int), 0
    for power in reversed(range(block.bit_length())):
        if block >> power & 1:
            counts = counts + _counts(key, shares, start, power)
            start += 1 << power
    return counts


@lru_cache(maxsize=8192)
def _counts(key: tuple[int, int], shares: tuple[float, ...], start: int, power: int) -> Int[np.ndarray, " t"]:
    """Steps of each task in `2**power` blocks."""
    if power == 0:
        return np.bincount(_order(key, shares, start), minlength=len(shares))
    half = 1 << (power - 1)
    return _counts(key, shares, start, power - 1) + _counts(key, shares, start + half, power - 1)
