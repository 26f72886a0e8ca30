"""Print docstrings, messages and signatures of the package that are drawn at random, for a reader to judge.

Usage: python tools/language_sample.py [--seed N] [--docstrings 40] [--messages 20] [--signatures 20]
"""

from __future__ import annotations

import argparse
import ast
import random
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# Calls whose texts a user reads, beside those of exceptions.
MESSAGE_CALLS = ("print", "print_line", "warn", "error", "add_argument")
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


def docstrings(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Yield line and text of the docstrings of a module, its classes and its functions."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node)
            if text:
                name = "module" if isinstance(node, ast.Module) else node.name
                yield node.body[0].lineno, f"{name}:\n{text}"


def messages(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Yield line and source of the texts that are raised, printed or shown as help."""
    for node in ast.walk(tree):
        call = node.exc if isinstance(node, ast.Raise) else node
        if not isinstance(call, ast.Call):
            continue
        name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
        if not isinstance(node, ast.Raise) and name not in MESSAGE_CALLS:
            continue
        texts = [*call.args, *(keyword.value for keyword in call.keywords if keyword.arg == "help")]
        for text in texts:
            source = ast.unparse(text)
            if isinstance(text, ast.JoinedStr | ast.Constant | ast.BinOp) and len(source) > 30 and " " in source:
                yield text.lineno, source


def signatures(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Yield line and source of the signatures of functions and methods."""
    for node in ast.walk(tree):
        if isinstance(node, FUNCTIONS) and not node.name.startswith("__"):
            result = f" -> {ast.unparse(node.returns)}" if node.returns else ""
            yield node.lineno, f"def {node.name}({ast.unparse(node.args)}){result}"


KINDS = {"docstrings": docstrings, "messages": messages, "signatures": signatures}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0, help="seed of the draw (default: %(default)s)")
    for kind, count in (("docstrings", 40), ("messages", 20), ("signatures", 20)):
        parser.add_argument(f"--{kind}", type=int, default=count, help="number of texts (default: %(default)s)")
    args = parser.parse_args()
    generator = random.Random(args.seed)
    trees = {path: ast.parse(path.read_text()) for path in sorted((ROOT / "ups_jax").rglob("*.py"))}
    for kind, collect in KINDS.items():
        texts = [(path, line, text) for path, tree in trees.items() for line, text in collect(tree)]
        print(f"# {kind}: {getattr(args, kind)} of {len(texts)}\n")
        for number, (path, line, text) in enumerate(generator.sample(texts, getattr(args, kind)), 1):
            print(f"{number}. {path.relative_to(ROOT)}:{line}\n{text}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
