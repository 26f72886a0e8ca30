"""Which parameters Muon steps, and which decay: decided by a parameter's name and its number of axes."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import optax

# Why a matrix is not Muon's, by an element of its path.
_ADAMW = {
    "spectrum": "spectral weights: each mode sees few samples a step; Muon took 60 % more time and gained nothing",
    "condition": "reads the conditions, not hidden activations",
    "modulation": "reads the conditions, not hidden activations",
    "write": "writes the field: a head, left to Adam as Muon's author advises",
}
_NO_DECAY = frozenset({"bias", "scale"})


class Group(NamedTuple):
    """`muon` or `adamw`, and the reason where a matrix is not Muon's."""

    name: str
    reason: str = ""


def muon_group(path: tuple[Any, ...], ndim: int) -> Group:
    """The group of a parameter under `muon`: every (in, out) matrix, or stack of them, between hidden activations.

    The kernel of a convolution (`GridConv`) is a matrix already, its taps times its inputs being one axis.
    """
    names = path_names(path)
    for name in names:
        if name in _ADAMW:
            return Group("adamw", _ADAMW[name] if ndim >= 2 else "")
    return Group("muon" if names[-1] == "kernel" and ndim >= 2 else "adamw")


def muon_labels(params: Any) -> Any:
    """The name of each parameter's group, in the tree of `params`."""
    return jax.tree_util.tree_map_with_path(lambda path, leaf: muon_group(path, leaf.ndim).name, params)


def decays(path: tuple[Any, ...], ndim: int) -> bool:
    """Whether weight decay acts on a parameter: on all but biases and norm scales, whose size regularises nothing."""
    return ndim >= 2 and path_names(path)[-1] not in _NO_DECAY


def add_decayed_weights(weight_decay: float) -> optax.GradientTransformation:
    """`optax.add_decayed_weights` on the parameters that decay.

    A mask of optax does the same with one more layer of state, in which older checkpoints could not be read.
    """

    def add(path: tuple[Any, ...], update: Any, param: Any) -> Any:
        return update + weight_decay * param if decays(path, param.ndim) else update

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
