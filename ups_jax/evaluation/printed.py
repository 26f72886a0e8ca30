"""The table that a person sees at the end: the result next to what needs no training."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

from ups_jax.evaluation.result import Measured

# Columns by the section that a kind of task has: headline numbers of a predictor's sections, then bands of one section.
_HEADLINES = {
    "rollout": {
        "one-step": lambda sections: sections["one_step"]["nrmse"],
        "rollout": lambda sections: sections["rollout"]["nrmse"],
        "last frame": lambda sections: sections["rollout"]["nrmse_by_time"][-1],
    },
    "steady": {
        "nRMSE": lambda sections: sections["steady"]["nrmse"],
        "max error": lambda sections: sections["steady"]["max_error"],
        "boundary": lambda sections: sections["steady"]["boundary_rmse"],
    },
}


def print_table(console: Console, measured: Measured) -> None:
    """nRMSE, and fRMSE in three bands, of this model and of each baseline."""
    section = next(name for name in _HEADLINES if name in measured.metrics)
    table = Table(
        title=f"nRMSE and fRMSE of {measured.task.name}, {measured.meta['trajectories']} trajectories",
        title_justify="left",
    )
    table.add_column("", no_wrap=True)
    for column in (*_HEADLINES[section], "low", "mid", "high"):
        table.add_column(column, justify="right", no_wrap=True)
    rows: dict[str, Mapping[str, Any]] = {"this model": measured.metrics, **measured.baselines}
    for name, sections in rows.items():
        headline = (number(sections) for number in _HEADLINES[section].values())
        bands = (f"{sections[section][f'fourier_rmse_{band}']:.1e}" for band in ("low", "mid", "high"))
        table.add_row(name, *(f"{value:.3g}" for value in headline), *bands)
    console.print(table)
