"""The film of an evaluation: the rollout of its median trajectory beside the truth, for a page that plays it."""

from __future__ import annotations

from pathlib import Path

from ups_jax.evaluation.images import ERROR_MAP, FIELD_MAP, error_limits, field_limits, planes
from ups_jax.evaluation.result import Evaluation, Measured
from ups_jax.evaluation.state_images import WRITERS, Panel
from ups_jax.files import whole_file

# Its name in the folder of an evaluation's plots.
FILM = "film.gif"
_MOST_FRAMES = 60


def write_film(path: Path, measured: Measured) -> bool:
    """A GIF of the median test trajectory's first channel; False for a task without time, or of points. Raises
    `StorageError`."""
    if not isinstance(measured, Evaluation) or measured.task.scattered:
        return False
    task = measured.task
    example = next(item for item in measured.examples if item.label == "median")
    truth, prediction = planes(task, example, 0)
    stride = -(-len(truth) // _MOST_FRAMES)
    truth, prediction = truth[::stride], prediction[::stride]
    limits, name = field_limits(truth), task.channels[0]
    panels = [
        Panel(title=f"{name}, predicted", values=prediction, colours=FIELD_MAP, norm=limits),
        Panel(title=f"{name}, truth", values=truth, colours=FIELD_MAP, norm=limits),
        Panel(
            title="prediction − truth",
            values=prediction - truth,
            colours=ERROR_MAP,
            norm=error_limits(truth, prediction),
        ),
    ]
    with whole_file(path) as partial:
        WRITERS["gif"](partial, task, example.time[::stride], panels)
    return True
