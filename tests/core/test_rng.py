"""Every random number comes from a named stream of a seed, and no stream moves another."""

from __future__ import annotations

import ast
from pathlib import Path

import numpy as np

import ups_jax
from ups_jax.core.rng import philox_generator, philox_key

SOURCES = sorted(Path(ups_jax.__file__).parent.rglob("*.py"))


def test_streams_differ_by_seed_by_name_and_by_place() -> None:
    names = ("data/operator", "data/steady_prior", "evaluation/bootstrap")
    keys = {philox_key(seed, name) for seed in (0, 1, 17, -1) for name in names}
    assert len(keys) == 4 * len(names)
    draws = {
        tuple(philox_generator(philox_key(17, "data/operator"), (purpose, index)).integers(0, 2**62, 4))
        for purpose in (0, 1)
        for index in range(3)
    }
    assert len(draws) == 6


def test_a_stream_is_a_function_of_its_name_and_place_alone() -> None:
    first = philox_generator(philox_key(17, "evaluation/bootstrap"), (1, 5)).random(3)
    philox_generator(philox_key(17, "data/operator")).random(100)
    np.random.default_rng(17).random(100)
    np.testing.assert_array_equal(philox_generator(philox_key(17, "evaluation/bootstrap"), (1, 5)).random(3), first)
    # Philox counts blocks of four: the place stands above all that a stream could ever draw.
    expected = np.random.Philox(key=list(philox_key(17, "evaluation/bootstrap")), counter=[0, 0, 1, 5])
    np.testing.assert_array_equal(np.random.Generator(expected).random(3), first)


def global_draws(tree: ast.AST) -> list[str]:
    """Uses of Python's or NumPy's global generator, and generators without a seed."""
    draws = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            draws += [item.name for item in node.names if item.name == "random"]
        elif isinstance(node, ast.ImportFrom):
            draws += [node.module for _ in node.names if node.module in ("random", "numpy.random")]
        elif isinstance(node, ast.Attribute) and ast.unparse(node.value) == "np.random":
            draws += [node.attr] if node.attr not in ("default_rng", "Generator", "Philox") else []
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("default_rng") and not node.args:
            draws.append("default_rng()")
    return draws


def test_nothing_draws_from_a_global_generator() -> None:
    assert len(SOURCES) > 50
    assert global_draws(ast.parse("import random\nnp.random.seed(0)\nnp.random.default_rng()")) != []
    assert {str(path): draws for path in SOURCES if (draws := global_draws(ast.parse(path.read_text())))} == {}
