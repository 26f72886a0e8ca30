"""The optimizer and the weight decay of each parameter, determined by its path and its number of axes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import optax
from jaxtyping import Array, PyTree
from rich.table import Table

from ups_jax.config import StageConfig

# Path elements of matrices that AdamW updates instead of Muon, with the reason.
_ADAMW = {
    "spectrum": "spectral weights: few samples per mode and step; Muon took 60 % more time without a gain",
    "condition": "acts on the conditions, not on hidden activations",
    "modulation": "acts on the conditions, not on hidden activations",
    "write": "output head of the field, for which Muon's author recommends Adam",
}
_NO_DECAY = frozenset({"bias", "scale"})


class ParameterGroup(NamedTuple):
    """The optimizer that updates a parameter.

    Attributes:
        name: `muon`, `adamw` or another optimizer.
        reason: Why Muon does not update this parameter although it is a matrix; otherwise empty.
    """

    name: str
    reason: str = ""


def muon_group(path: tuple[Any, ...], ndim: int) -> ParameterGroup:
    """Return the group of a parameter if the configured optimizer is `muon`.

    Muon updates all (in, out) matrices, or stacks of them, that map hidden activations to hidden activations. The
    kernel of a convolution (`GridConv`) is a matrix of shape (taps * in, out).
    """
    names = path_names(path)
    for name in names:
        if name in _ADAMW:
            return ParameterGroup("adamw", _ADAMW[name] if ndim >= 2 else "")
    return ParameterGroup("muon" if names[-1] == "kernel" and ndim >= 2 else "adamw")


def muon_labels(params: PyTree) -> PyTree:
    """Return the name of the optimizer (`muon` or `adamw`) of each parameter, as a tree like `params`."""
    return jax.tree_util.tree_map_with_path(lambda path, leaf: muon_group(path, leaf.ndim).name, params)


def has_weight_decay(path: tuple[Any, ...], ndim: int) -> bool:
    """Return whether weight decay applies to a parameter: not to biases, scales of norms and other vectors."""
    return ndim >= 2 and path_names(path)[-1] not in _NO_DECAY


def add_decayed_weights(weight_decay: float) -> optax.GradientTransformation:
    """Return `optax.add_decayed_weights`, limited to the parameters for which `has_weight_decay` is true.

    The `mask` argument of optax would add a level to the optimizer state and make older checkpoints unreadable.
    """

    def add_decay(path: tuple[Any, ...], update: Array, param: Array) -> Array:
        return update + weight_decay * param if has_weight_decay(path, param.ndim) else update

    def update(
        updates: PyTree, state: optax.EmptyState, params: PyTree | None = None
    ) -> tuple[PyTree, optax.EmptyState]:
        if params is None:
            raise ValueError(optax.NO_PARAMS_MSG)
        if weight_decay == 0.0:
            return updates, state
        return jax.tree_util.tree_map_with_path(add_decay, updates, params), state

    return optax.GradientTransformation(lambda _: optax.EmptyState(), update)


def path_names(path: tuple[Any, ...]) -> list[str]:
    """Return the elements of a parameter's path as strings."""
    return [jax.tree_util.keystr((key,), simple=True) for key in path]


@dataclass(frozen=True, kw_only=True)
class ParameterRow:
    """A row of the parameter table, which describes one parameter array.

    Attributes:
        path: Path of the parameter, separated by slashes.
        count: Number of scalars in the array.
        optimizer: Name of the optimizer that updates the parameter.
        decayed: Whether weight decay applies.
        reason: `ParameterGroup.reason`.
    """

    path: str
    shape: tuple[int, ...]
    count: int
    optimizer: str
    decayed: bool
    reason: str


def parameter_table(params: PyTree, config: StageConfig) -> list[ParameterRow]:
    """Return a row for each parameter, in the order of the tree.

    Args:
        params: Parameters or their abstract shapes.
    """
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


def summarize_optimizers(rows: Sequence[ParameterRow]) -> str:
    """Return a line that states how many arrays and how many scalars each optimizer updates, most scalars first."""
    totals = {row.optimizer: [0, 0] for row in rows}
    for row in rows:
        totals[row.optimizer][0] += 1
        totals[row.optimizer][1] += row.count
    ordered = sorted(totals.items(), key=lambda item: -item[1][1])
    return "; ".join(f"{name} {arrays} arrays, {numbers:,} numbers" for name, (arrays, numbers) in ordered)


def render_table(rows: Sequence[ParameterRow]) -> Table:
    """Return the rows as a `rich` table, whose caption is the result of `summarize_optimizers`."""
    table = Table("parameter", "shape", "numbers", "optimizer", "decay", "why", caption=summarize_optimizers(rows))
    # Wrap long paths instead of truncating them: their end identifies the parameter.
    table.columns[0].overflow = "fold"
    table.columns[2].justify = "right"
    for row in rows:
        shape = " x ".join(map(str, row.shape)) or "1"
        table.add_row(row.path, shape, f"{row.count:,}", row.optimizer, "yes" if row.decayed else "", row.reason)
    return table
