"""The data of all tasks of a training. Which of them a step draws is `mixing`, its batches are `batches`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ups_jax.data.dataset import Dataset
from ups_jax.data.splits import as_list
from ups_jax.task import Task


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
