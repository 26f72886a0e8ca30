"""The parameter table: every parameter, its size, and which optimizer moves it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
from rich.table import Table

from ups_jax.config import StageConfig
from ups_jax.optim.groups import Group, decays, muon_group, path_names


@dataclass(frozen=True, kw_only=True)
class ParameterRow:
    """One parameter: its path in words, which optimizer moves it, whether it decays, and why it is not Muon's."""

    path: str
    shape: tuple[int, ...]
    count: int
    optimizer: str
    decayed: bool
    reason: str


def parameter_table(params: Any, config: StageConfig) -> list[ParameterRow]:
    """A row a parameter, in the order of the tree; `params` may be abstract shapes."""
    optimizer = config.optimizer
    rows = []
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        group = muon_group(path, leaf.ndim) if optimizer.name == "muon" else Group(optimizer.name)
        rows.append(
            ParameterRow(
                path="/".join(path_names(path)),
                shape=tuple(leaf.shape),
                count=math.prod(leaf.shape),
                optimizer=group.name,
                decayed=optimizer.weight_decay > 0 and decays(path, leaf.ndim),
                reason=group.reason,
            )
        )
    return rows


def summary(rows: Sequence[ParameterRow]) -> str:
    """How many arrays and numbers each optimizer moves, in one line, largest first."""
    totals = {row.optimizer: [0, 0] for row in rows}
    for row in rows:
        totals[row.optimizer][0] += 1
        totals[row.optimizer][1] += row.count
    ordered = sorted(totals.items(), key=lambda item: -item[1][1])
    return "; ".join(f"{name} {arrays} arrays, {numbers:,} numbers" for name, (arrays, numbers) in ordered)


def render(rows: Sequence[ParameterRow]) -> Table:
    """The table for a console of rich, with its totals."""
    table = Table("parameter", "shape", "numbers", "optimizer", "decay", "why", caption=summary(rows))
    # A path that does not fit goes on below: its end says which parameter it is.
    table.columns[0].overflow = "fold"
    table.columns[2].justify = "right"
    for row in rows:
        shape = " x ".join(map(str, row.shape)) or "1"
        table.add_row(row.path, shape, f"{row.count:,}", row.optimizer, "yes" if row.decayed else "", row.reason)
    return table
