"""The table of slow tests names tests that exist, and for each of them a test that runs always."""

from __future__ import annotations

import ast
from pathlib import Path

from commands import ROOT
from slow_tests import SLOW_TESTS, is_slow


def functions(file: str) -> set[str]:
    tree = ast.parse(Path(ROOT / "tests" / file).read_text())
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef)} | {""}


def test_every_slow_test_and_the_one_that_covers_it_exist() -> None:
    for file, tests in SLOW_TESTS.items():
        for test, cover in tests.items():
            covering_file, _, covering_test = cover.partition("::") if ".py" in cover else (file, "", cover)
            assert test.partition("[")[0] in functions(file), (file, test)
            assert covering_test.partition("[")[0] in functions(covering_file), cover
            assert not is_slow(f"tests/{covering_file}::{covering_test}"), (file, test, cover)
