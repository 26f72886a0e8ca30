"""Which checkpoint is the best: the validation metrics that they were saved with, as the files have them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from ups_jax.errors import CheckpointError
from ups_jax.files import read_json
from ups_jax.training import checksums

# Where orbax keeps the metrics of a step.
_FILE = "metrics/metrics"


def validation_of(folder: Path) -> float | None:
    """The validation metric that a checkpoint was saved with, None for none; CheckpointError where it is damaged."""
    if not (folder / _FILE).exists() and not checksums.has(folder, _FILE):
        return None
    try:
        value = read_json(folder / _FILE)["validation"]
    except (OSError, ValueError, KeyError, TypeError):
        value = None
    if not isinstance(value, float | int) or not checksums.is_as_written(folder, _FILE):
        raise CheckpointError(f"{folder}: {_FILE} is not what was written")
    return float(value)


def ranked(directory: Path, steps: Iterable[int]) -> list[int]:
    """The best first, by their metrics, of equal ones the latest; at the end those that were saved with none, the
    latest first. One whose metric is damaged may have been the best: it comes ahead."""

    def place(step: int) -> tuple[int, float, int]:
        try:
            value = validation_of(directory / str(step))
        except CheckpointError:
            return 0, 0.0, -step
        return (2, 0.0, -step) if value is None else (1, value, -step)

    return sorted(steps, key=place)
