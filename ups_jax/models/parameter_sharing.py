"""Which parameters the models of several tasks have in common, and where all of them lie in one tree.

The blocks that advance hidden tokens and read the conditions are shared where their shapes agree; what reads and writes
a task's fields is its own. Spectral weights and convolutions of another number of axes are of another shape: tasks of
one dimension share theirs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
from flax.traverse_util import flatten_dict, unflatten_dict

# What is no task's own, by an element of a parameter's path.
_SHARED = frozenset({"condition", "core"})
# Below this name of the joint tree lies, by task, what others than the first have for themselves.
_OWN = "tasks"

Path = tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Sharing:
    """`places` says for each task after the first where in the joint tree each of its parameters lies.

    The first task's parameters lie where they do in its model alone: of one task the joint tree is its own.
    """

    paths: tuple[Mapping[Path, Path], ...] = ()
    first: frozenset[Path] = frozenset()

    def view(self, params: Any, number: int) -> Any:
        """The parameters of a task's model."""
        if number == 0:
            return {name: tree for name, tree in params.items() if name != _OWN}
        flat = flatten_dict(params)
        return unflatten_dict({path: flat[place] for path, place in self.paths[number - 1].items()})

    def join(self, trees: Sequence[Any]) -> Any:
        """One tree of the parameters of all tasks; a shared one is that of the first task that has it."""
        joint = flatten_dict(trees[0])
        for places, tree in zip(self.paths, trees[1:], strict=True):
            flat = flatten_dict(tree)
            joint = {place: flat[path] for path, place in places.items()} | joint
        return unflatten_dict(joint)

    def subset(self, number: int) -> ParameterSubset:
        """Which parameters of the joint tree a task's model has."""
        used = [self.first, *(frozenset(places.values()) for places in self.paths)]
        return ParameterSubset(used=used[number], frozen=frozenset().union(*used) - used[number])


@dataclass(frozen=True, kw_only=True)
class ParameterSubset:
    """The places of the joint tree that a task's model has a use for, and those of other tasks alone."""

    used: frozenset[Path] = frozenset()
    frozen: frozenset[Path] = frozenset()

    def is_frozen(self, path: tuple[Any, ...]) -> bool:
        """Whether a leaf of a tree that holds joint trees, such as an optimizer's state, is of a foreign parameter."""
        names = tuple(jax.tree_util.keystr((part,), simple=True) for part in path)
        # The longest end that is a place: the first task's places are ends of the others'.
        ends = (names[start:] for start in range(len(names)))
        return next((end in self.frozen for end in ends if end in self.frozen or end in self.used), False)


def sharing_of(names: Sequence[str], trees: Sequence[Any]) -> Sharing:
    """That of the tasks `names`, whose models have (abstract) parameters `trees`."""
    shapes = [{path: leaf.shape for path, leaf in flatten_dict(tree).items()} for tree in trees]
    # Where each task's parameters lie, those of the first at their own places.
    lying: list[dict[Path, Path]] = [{path: path for path in shapes[0]}]
    for number in range(1, len(shapes)):
        lying.append(
            {
                path: next(
                    (
                        lying[earlier][path]
                        for earlier in range(number)
                        if _SHARED & set(path) and shapes[earlier].get(path) == shape
                    ),
                    (_OWN, names[number], *path),
                )
                for path, shape in shapes[number].items()
            }
        )
    return Sharing(paths=tuple(lying[1:]), first=frozenset(shapes[0]))
