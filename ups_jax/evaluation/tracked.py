"""An evaluation for the writers: its numbers as a summary, its tables, the pictures, its files."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import zip_longest
from numbers import Real
from pathlib import Path
from typing import Any

from ups_jax.evaluation.printed import headlines, named_sections
from ups_jax.evaluation.result import Measured, finite
from ups_jax.tracking import Writer, flat


def track_evaluation(
    writer: Writer, name: str, measured: Measured, *, plots: Sequence[Path], files: Sequence[Path]
) -> None:
    """Hand the evaluation `name` of a task to a writer, all of it under `eval/<name>/`.

    The summary has every metric that is one number: of the model under the task's name, of its variants and of the
    baselines under theirs. A metric that is a list, such as the error by time, is a table with a row an entry.
    """
    sections = {measured.task.name: measured.metrics, "variants": measured.variants, "baselines": measured.baselines}
    numbers = {metric: value for metric, value in flat(sections).items() if isinstance(value, Real)}
    writer.summary({"eval": {name: numbers}})
    columns, rows = headlines(measured)
    writer.table(f"eval/{name}/headlines", ["", *columns], [[row, *cells] for row, cells in rows.items()])
    for metric, lists in _lists(measured).items():
        lines = enumerate(zip_longest(*lists.values()), 1)
        writer.table(f"eval/{name}/{metric}", ["step", *lists], [[step, *cells] for step, cells in lines])
    for plot in plots:
        writer.image(f"eval/{name}/{plot.stem}", plot)
    for file in files:
        writer.file(file)


def _lists(measured: Measured) -> dict[str, dict[str, list[Any]]]:
    """Every metric that is a list, as `section/metric`: the lists of the headline table's rows that have it."""
    found: dict[str, dict[str, list[Any]]] = {}
    for row, sections in named_sections(measured).items():
        for metric, value in flat(finite(sections)).items():
            if isinstance(value, list):
                found.setdefault(metric, {})[row] = value
    return found
