"""Reject local names that say nothing and docstrings whose first line is not a sentence.

Usage: python tools/language_lint.py [PATH ...]    # the package, scripts, tests, benchmarks and tools by default
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("ups_jax", "scripts", "tests", "benchmarks", "tools")
# Participles and pronouns that do not say what a value is.
BARE_NAMES = frozenset(["own", "each", "found", "told", "given", "known", "here", "held", "begun", "made"])
# Openings of a first line without a verb.
OPENINGS = ("That of", "Of a", "Of the", "What", "The same", "Whose")


def findings(source: str) -> Iterator[tuple[int, str]]:
    """Yield the line and the message of every finding in a module's source."""
    for node in ast.walk(ast.parse(source)):
        for name in bound_names(node):
            if name in BARE_NAMES:
                yield node.lineno, f"the name `{name}` does not say what the value is; use a noun of the field"
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            first_line = (ast.get_docstring(node) or "").partition("\n")[0]
            for opening in OPENINGS:
                if first_line == opening or first_line.startswith(f"{opening} "):
                    line = node.body[0].lineno
                    yield line, f'the docstring opens with "{opening}"; begin with a verb or a subject'


def bound_names(node: ast.AST) -> tuple[str, ...]:
    """Return the names that a node assigns to or declares as parameters."""
    if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
        return (node.id,)
    if isinstance(node, ast.arg):
        return (node.arg,)
    if isinstance(node, ast.MatchAs | ast.MatchStar | ast.ExceptHandler) and node.name:
        return (node.name,)
    return ()


def main(paths: list[str]) -> int:
    """Print the findings in the given files and folders; return 1 if there are any."""
    roots = [Path(path) for path in paths] or [ROOT / folder for folder in FOLDERS]
    files = sorted(file for root in roots for file in ([root] if root.is_file() else root.rglob("*.py")))
    count = 0
    for file in files:
        for line, message in findings(file.read_text()):
            print(f"{file}:{line}: {message}")
            count += 1
    return int(count > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
