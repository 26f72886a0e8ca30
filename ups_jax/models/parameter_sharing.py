"""Sharing of parameters between the models of several tasks, and the joint tree that holds all of them.

Parameters of the condition embedding and of the architecture are shared between tasks if their shapes agree. The shapes
of spectral weights and convolutions agree only between tasks with the same number of axes. Layers that read and write a
task's fields are not shared.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import PyTree

# A parameter can be shared if its path contains one of these names.
_SHARED = frozenset({"condition", "core"})
# Subtree of the joint tree with the parameters that a task after the first does not share, by task name.
_NOT_SHARED = "tasks"

Path = tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Sharing:
    """Map from the parameters of each task's model to their paths in the joint tree.

    The parameters of the first task have the same paths in its own tree and in the joint tree, so the joint tree of a
    single task is its own tree.

    Attributes:
        later_paths: For each task after the first, a map from paths in the task's tree to paths in the joint tree.
        first_paths: Paths of the first task's parameters.
    """

    later_paths: tuple[Mapping[Path, Path], ...] = ()
    first_paths: frozenset[Path] = frozenset()

    def task_params(self, params: PyTree, number: int) -> PyTree:
        """Return the parameters of the model of task `number` as a tree of their own; `params` is the joint tree."""
        if number == 0:
            return {name: tree for name, tree in params.items() if name != _NOT_SHARED}
        flat = flatten_dict(params)
        return unflatten_dict({path: flat[joint_path] for path, joint_path in self.later_paths[number - 1].items()})

    def joint_params(self, trees: Sequence[PyTree]) -> PyTree:
        """Return the joint tree of the parameters of all tasks' models.

        Args:
            trees: Parameters of each task's model. A shared parameter is taken from the first task that has it.
        """
        joint = flatten_dict(trees[0])
        for paths, tree in zip(self.later_paths, trees[1:], strict=True):
            flat = flatten_dict(tree)
            joint = {joint_path: flat[path] for path, joint_path in paths.items()} | joint
        return unflatten_dict(joint)

    def parameter_subset(self, number: int) -> ParameterSubset:
        """Return which parameters of the joint tree the model of task `number` uses."""
        used = [self.first_paths, *(frozenset(paths.values()) for paths in self.later_paths)]
        return ParameterSubset(used=used[number], frozen=frozenset().union(*used) - used[number])


@dataclass(frozen=True, kw_only=True)
class ParameterSubset:
    """The paths of the joint tree's parameters: those that a training step of one task updates, and all others.

    Attributes:
        used: Paths of the parameters that the task's model uses, which the step updates.
        frozen: Paths of all other parameters, which the step leaves unchanged.
    """

    used: frozenset[Path] = frozenset()
    frozen: frozenset[Path] = frozenset()

    def is_frozen(self, path: tuple[Any, ...]) -> bool:
        """Return whether a leaf belongs to a frozen parameter.

        Args:
            path: Path of the leaf in any tree that contains joint trees, such as the state of an optimizer.
        """
        names = tuple(jax.tree_util.keystr((entry,), simple=True) for entry in path)
        # The longest suffix counts: a path of the first task can be a suffix of another task's path.
        suffixes = (names[start:] for start in range(len(names)))
        return next(
            (suffix in self.frozen for suffix in suffixes if suffix in self.frozen or suffix in self.used), False
        )


def plan_sharing(names: Sequence[str], trees: Sequence[PyTree]) -> Sharing:
    """Return which parameters the models of several tasks share.

    Args:
        trees: Parameters of each task's model, or their abstract shapes.
    """
    shapes = [{path: leaf.shape for path, leaf in flatten_dict(tree).items()} for tree in trees]
    # For each task, the joint path of each of its parameters.
    joint_paths: list[dict[Path, Path]] = [{path: path for path in shapes[0]}]
    for number in range(1, len(shapes)):
        joint_paths.append(
            {
                path: next(
                    (
                        joint_paths[earlier][path]
                        for earlier in range(number)
                        if _SHARED & set(path) and shapes[earlier].get(path) == shape
                    ),
                    (_NOT_SHARED, names[number], *path),
                )
                for path, shape in shapes[number].items()
            }
        )
    return Sharing(later_paths=tuple(joint_paths[1:]), first_paths=frozenset(shapes[0]))
