"""Parameters of several tasks in one tree: each task's model gets its own, and what can be shared is there once."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from ups_jax.models.parameter_sharing import Sharing, plan_sharing

LINE = {
    "features": {"stem": {"kernel": np.zeros((9, 4))}},
    "operator": {
        "core": {"block": {"spectrum": np.zeros((8, 4, 8)), "out": np.zeros((4, 4))}},
        "condition": {"values": np.zeros((2, 4))},
        "field_exit": {"write": np.zeros((12, 2))},
    },
}
# The same shape of what reads the fields, another exit.
OTHER_LINE = LINE | {"operator": LINE["operator"] | {"field_exit": {"write": np.zeros((12, 4))}}}
PLANE = LINE | {
    "operator": LINE["operator"] | {"core": {"block": {"spectrum": np.zeros((8, 15, 4, 8)), "out": np.zeros((4, 4))}}}
}


def filled(tree, value):
    return {
        name: filled(item, value) if isinstance(item, dict) else np.full_like(item, value)
        for name, item in tree.items()
    }


def values(tree, *path):
    for name in path:
        tree = tree[name]
    return set(np.unique(tree).tolist())


@pytest.fixture
def sharing() -> Sharing:
    return plan_sharing(("line", "other", "plane", "plane2"), (LINE, OTHER_LINE, PLANE, PLANE))


def test_alone_a_task_s_tree_is_the_joint_one():
    sharing = plan_sharing(("line",), (LINE,))
    tree = filled(LINE, 1)
    assert sharing.joint_params([tree]).keys() == tree.keys() and sharing.task_params(tree, 0) == tree
    assert Sharing().task_params(tree, 0) == tree
    assert not sharing.parameter_subset(0).frozen


def test_a_view_has_the_shapes_of_its_model_and_what_is_shared_is_there_once(sharing):
    trees = [filled(tree, number) for number, tree in enumerate((LINE, OTHER_LINE, PLANE, PLANE))]
    joint = sharing.joint_params(trees)
    for number, tree in enumerate(trees):
        view = sharing.task_params(joint, number)
        assert view.keys() == tree.keys()
        assert view["operator"]["field_exit"]["write"].shape == tree["operator"]["field_exit"]["write"].shape
        assert values(view, "features", "stem", "kernel") == {number}
        assert values(view, "operator", "condition", "values") == {0}
        assert values(view, "operator", "core", "block", "out") == {0}
        # Spectral weights belong to a number of axes.
        assert values(view, "operator", "core", "block", "spectrum") == {0 if number < 2 else 2}


def test_what_a_task_lacks_is_told_in_any_tree_of_such_trees(sharing):
    joint = sharing.joint_params([filled(tree, 0) for tree in (LINE, OTHER_LINE, PLANE, PLANE)])
    paths = jax.tree_util.tree_leaves_with_path({"mu": [joint], "count": 0})
    for number, task in ((0, "line"), (1, "other"), (3, "plane2")):
        part = sharing.parameter_subset(number)
        lacking = {jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in paths if part.is_frozen(path)}
        stems = {"mu/0/features/stem/kernel"} | {
            f"mu/0/tasks/{name}/features/stem/kernel" for name in ("other", "plane", "plane2")
        }
        mine = "mu/0/features/stem/kernel" if number == 0 else f"mu/0/tasks/{task}/features/stem/kernel"
        assert stems - lacking == {mine}
        assert "mu/0/operator/core/block/out" not in lacking and "count" not in lacking
        spectra = {"mu/0/operator/core/block/spectrum", "mu/0/tasks/plane/operator/core/block/spectrum"}
        assert len(spectra & lacking) == 1
