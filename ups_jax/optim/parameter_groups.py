"""Which parameters Muon steps, and which decay: decided by a parameter's name and its number of axes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import optax
from rich.table import Table

from ups_jax.config import StageConfig

# Why a matrix is not Muon's, by an element of its path.
_ADAMW = {
    "spectrum": "spectral weights: each mode sees few samples a step; Muon took 60 % more time and gained nothing",
    "condition": "reads the conditions, not hidden activations",
    "modulation": "reads the conditions, not hidden activations",
    "write": "writes the field: a head, left to Adam as Muon's author advises",
}
_NO_DECAY = frozenset({"bias", "scale"})


class ParameterGroup(NamedTuple):
    """`muon` or `adamw`, and the reason where a matrix is not Muon's."""

    name: str
    reason: str = ""


def muon_group(path: tuple[Any, ...], ndim: int) -> ParameterGroup:
    """The group of a parameter under `muon`: every (in, out) matrix, or stack of them, between hidden activations.

    The kernel of a convolution (`GridConv`) is a matrix already, its taps times its inputs being one axis.
    """
    names = path_names(path)
    for name in names:
        if name in _ADAMW:
            return ParameterGroup("adamw", _ADAMW[name] if ndim >= 2 else "")
    return ParameterGroup("muon" if names[-1] == "kernel" and ndim >= 2 else "adamw")


def muon_labels(params: Any) -> Any:
    """The name of each parameter's group, in the tree of `params`."""
    return jax.tree_util.tree_map_with_path(lambda path, leaf: muon_group(path, leaf.ndim).name, params)


def has_weight_decay(path: tuple[Any, ...], ndim: int) -> bool:
    """Whether weight decay acts on a parameter: on all but biases and norm scales, whose size regularises nothing."""
    return ndim >= 2 and path_names(path)[-1] not in _NO_DECAY


def add_decayed_weights(weight_decay: float) -> optax.GradientTransformation:
    """`optax.add_decayed_weights` on the parameters that decay.

    A mask of optax does the same with one more layer of state, in which older checkpoints could not be read.
    """

    def add(path: tuple[Any, ...], update: Any, param: Any) -> Any:
        return update + weight_decay * param if has_weight_decay(path, param.ndim) else update

    def update(updates: Any, state: optax.EmptyState, params: Any = None) -> tuple[Any, optax.EmptyState]:
        if params is None:
            raise ValueError(optax.NO_PARAMS_MSG)
        if weight_decay == 0.0:
            return updates, state
        return jax.tree_util.tree_map_with_path(add, updates, params), state

    return optax.GradientTransformation(lambda _: optax.EmptyState(), update)


def path_names(path: tuple[Any, ...]) -> list[str]:
    """The elements of a parameter's path as words."""
    return [jax.tree_util.keystr((part,), simple=True) for part in path]


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
        group = muon_group(path, leaf.ndim) if optimizer.name == "muon" else ParameterGroup(optimizer.name)
        rows.append(
            ParameterRow(
                path="/".join(path_names(path)),
                shape=tuple(leaf.shape),
                count=math.prod(leaf.shape),
                optimizer=group.name,
                decayed=optimizer.weight_decay > 0 and has_weight_decay(path, leaf.ndim),
                reason=group.reason,
            )
        )
    return rows


def summarize(rows: Sequence[ParameterRow]) -> str:
    """How many arrays and numbers each optimizer moves, in one line, largest first."""
    totals = {row.optimizer: [0, 0] for row in rows}
    for row in rows:
        totals[row.optimizer][0] += 1
        totals[row.optimizer][1] += row.count
    ordered = sorted(totals.items(), key=lambda item: -item[1][1])
    return "; ".join(f"{name} {arrays} arrays, {numbers:,} numbers" for name, (arrays, numbers) in ordered)


def render_table(rows: Sequence[ParameterRow]) -> Table:
    """The table for a console of rich, with its totals."""
    table = Table("parameter", "shape", "numbers", "optimizer", "decay", "why", caption=summarize(rows))
    # A path that does not fit goes on below: its end says which parameter it is.
    table.columns[0].overflow = "fold"
    table.columns[2].justify = "right"
    for row in rows:
        shape = " x ".join(map(str, row.shape)) or "1"
        table.add_row(row.path, shape, f"{row.count:,}", row.optimizer, "yes" if row.decayed else "", row.reason)
    return table
