"""The table that a person sees at the end: the result next to what needs no training."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from operator import itemgetter
from typing import Any

from rich.console import Console
from rich.table import Table

from ups_jax.evaluation.result import Measured

# Headline columns by the section that a kind of task has: the section that each is taken from, and its number.
_HEADLINES: Mapping[str, Mapping[str, tuple[str, Callable[[Mapping[str, Any]], float]]]] = {
    "rollout": {
        "one-step": ("one_step", itemgetter("nrmse")),
        "rollout": ("rollout", itemgetter("nrmse")),
        "last": ("rollout", lambda values: values["nrmse_by_time"][-1]),
    },
    "steady": {
        "nRMSE": ("steady", itemgetter("nrmse")),
        "max error": ("steady", itemgetter("max_error")),
        "boundary": ("steady", itemgetter("boundary_rmse")),
    },
}


def print_table(console: Console, measured: Measured) -> None:
    """nRMSE, and fRMSE in three bands, of this model, its variants and each baseline."""
    section = next(name for name in _HEADLINES if name in measured.metrics)
    table = Table(
        title=f"nRMSE and fRMSE of {measured.task.name}, {measured.meta['trajectories']} trajectories",
        title_justify="left",
        # A terminal of 80 columns holds it.
        show_edge=False,
        pad_edge=False,
    )
    table.add_column("", no_wrap=True)
    for column in (*_HEADLINES[section], "low", "mid", "high"):
        table.add_column(column, justify="right", no_wrap=True)
    variants = {f"{name} rollout": sections for name, sections in measured.variants.items()}
    rows: dict[str, Mapping[str, Any]] = {"this model": measured.metrics, **variants, **measured.baselines}
    for name, sections in rows.items():
        # A variant differs from the model's own rollout from the second step on, and has no one-step section.
        headline = (
            f"{number(sections[own]):.3g}" if own in sections else "" for own, number in _HEADLINES[section].values()
        )
        bands = (f"{sections[section][f'fourier_rmse_{band}']:.1e}" for band in ("low", "mid", "high"))
        table.add_row(name, *headline, *bands)
    console.print(table)
