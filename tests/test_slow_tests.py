"""The table of slow tests names tests that exist, and for each of them one that runs always."""

from __future__ import annotations

import ast

from commands import ROOT
from slow_tests import SLOW


def test_every_slow_test_and_the_one_that_covers_it_exist() -> None:
    for name in {*SLOW, *SLOW.values()}:
        file, _, function = name.partition("::")
        path = ROOT / "tests" / file
        assert path.is_file(), name
        names = {node.name for node in ast.parse(path.read_text()).body if isinstance(node, ast.FunctionDef)}
        assert not function or function.partition("[")[0] in names, name
    assert not SLOW.keys() & set(SLOW.values())
