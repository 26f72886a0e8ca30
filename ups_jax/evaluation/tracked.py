"""An evaluation for the writers: its numbers as a summary, the headline table, the pictures, its files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ups_jax.evaluation.printed import headlines
from ups_jax.evaluation.result import Measured
from ups_jax.tracking import Writer


def track_evaluation(
    writer: Writer, name: str, measured: Measured, *, plots: Sequence[Path], files: Sequence[Path]
) -> None:
    """Hand the evaluation `name` of a task to a writer, all of it under `eval/<name>/`.

    The summary has every metric that is one number, of the model under the task's name and of the baselines under
    theirs; errors by time are in the plots and in the evaluation JSON, which is among the `files`.
    """
    sections = {measured.task.name: measured.metrics, "baselines": measured.baselines}
    writer.summary({"eval": {name: sections}})
    columns, rows = headlines(measured)
    writer.table(f"eval/{name}/headlines", ["", *columns], [[row, *numbers] for row, numbers in rows.items()])
    for plot in plots:
        writer.image(f"eval/{name}/{plot.stem}", plot)
    for file in files:
        writer.file(file)
