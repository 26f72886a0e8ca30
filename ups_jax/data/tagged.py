"""A batch that knows which of several tasks its rows are of, as a part of its structure and not of its numbers.

A compiled function of batches is thereby compiled once for each task, and may do for each what is its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class TaggedBatch(dict[str, Any]):
    """The batch of another task than the first, whose batches are plain dictionaries. `ups_jax.parallel` makes jax
    know it."""

    def __init__(self, values: Mapping[str, Any], task: int) -> None:
        super().__init__(values)
        self.task = task


def tagged(values: dict[str, Any], task: int) -> dict[str, Any]:
    """The values as a batch of a task, by its number."""
    return values if task == 0 else TaggedBatch(values, task)


def task_number(batch: Mapping[str, Any]) -> int:
    """The task of a batch."""
    return batch.task if isinstance(batch, TaggedBatch) else 0
