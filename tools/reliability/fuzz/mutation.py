"""Changes to plain values, texts and bytes, as hypothesis draws them: what hands, disks and hostile people do."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

from hypothesis import strategies as st

Draw = st.DrawFn

# Values that stand where others are expected.
ODD: st.SearchStrategy[Any] = st.one_of(
    st.sampled_from(
        [None, True, False, [], {}, [1], ["x"], ["x", "x"], [[]], [None], {"a": 1}, {"name": []}, {"": ""}]
    ),
    st.sampled_from(
        [0, 1, -1, 2, 3, 7, 10**6, -(10**9), 2**31, 2**63, 2**64, 10**30, 1e308, -1e308, 5e-324, 0.5, 1e-3]
    ),
    st.sampled_from(["", "u", "x", "0", "1e-3", "nan", "none", "all", "../x", "a.b", "a=b", "a\nb", "\x00", "*", "%s"]),
    st.sampled_from(["\x1b[31m", "[/red]", "{0}", "x" * 5000, "9" * 5000, [{"name": {}}], {1: 2}, -0.25]),
    st.integers(-5, 300),
    st.floats(),
    st.text(max_size=6),
)
_TOKENS = (
    *(":", ": ", "- ", "\t", "  ", "{", "}", "[", "]", ",", "&a ", "*a", "!!int ", "!!float ", "!!set ", "!!binary "),
    *("!!python/name:os.system ", "!!timestamp ", "!include ", "!", "\x00", "\u2028", "\ufeff", "'", '"', "#", "\n"),
    *("\n---\n", "\n...\n", "<<: ", "? ", "| ", "> ", "%YAML 1.1\n", "\\", "~", "null", "NaN", "Infinity", "1e999"),
    *("-0", "0x10", "1_000", "9" * 4400, "[" * 300, "[" * 5000, "{a: " * 200, "\r", "\x85", "[[1]: 2]", "{[1]: 2}"),
)


@st.composite
def value(draw: Draw, original: Any, edits: int = 3, odd: st.SearchStrategy[Any] = ODD) -> Any:
    """The plain value with some of its parts changed."""
    tree = [copy.deepcopy(original)]
    for _ in range(draw(st.integers(1, edits))):
        places = _places(tree)
        node, key = places[draw(st.integers(0, len(places) - 1))]
        _change(draw, tree, node, key, odd)
    return tree[0]


def _change(draw: Draw, tree: Any, node: Any, key: Any, odd: st.SearchStrategy[Any]) -> None:
    kinds = ["odd", "odd", "odd", "number", "wrap", "swap"]
    if node is not tree:
        kinds += ["drop", "twice", "rename"]
    kind = draw(st.sampled_from(kinds))
    if kind == "odd":
        # A copy: it may be changed next.
        node[key] = copy.deepcopy(draw(odd))
    elif kind == "number":
        old = node[key]
        number = isinstance(old, int | float) and not isinstance(old, bool)
        node[key] = (
            draw(st.sampled_from([-old, old * 10, old + 1, old / 2, str(old)])) if number else copy.deepcopy(draw(odd))
        )
    elif kind == "wrap":
        node[key] = draw(st.sampled_from([[node[key]], {"a": node[key]}, str(node[key])]))
    elif kind == "swap":
        places = _places(tree)
        other, where = places[draw(st.integers(0, len(places) - 1))]
        node[key] = copy.deepcopy(other[where])
    elif kind == "drop":
        del node[key]
    elif isinstance(node, list):
        node.insert(key, copy.deepcopy(node[key]))
    else:
        name = draw(st.one_of(st.text(max_size=4), st.sampled_from([f"{key}s", str(key)[:-1], str(key).upper()])))
        node[name] = copy.deepcopy(node[key]) if kind == "twice" else node.pop(key)


def _places(node: Any) -> list[tuple[Any, Any]]:
    """Every container with every key of it."""
    keys = list(node) if isinstance(node, dict) else list(range(len(node))) if isinstance(node, list) else []
    positions = [(node, key) for key in keys]
    for key in keys:
        positions += _places(node[key])
    return positions


@st.composite
def text(draw: Draw, current: str, edits: int = 3, tokens: Sequence[str] = _TOKENS) -> str:
    """The text with some places changed."""
    for _ in range(draw(st.integers(1, edits))):
        start = draw(st.integers(0, len(current)))
        stop = min(len(current), start + draw(st.integers(0, 12)))
        kind = draw(st.sampled_from(["insert", "insert", "replace", "drop", "twice", "cut", "letters"]))
        if kind == "cut":
            current = current[:start]
        elif kind == "twice":
            current = current[:stop] + current[start:]
        elif kind == "drop":
            current = current[:start] + current[stop:]
        else:
            new = draw(st.text(max_size=4)) if kind == "letters" else draw(st.sampled_from(tokens))
            current = current[:start] + new + current[start if kind == "insert" else stop :]
    return current


@st.composite
def content(draw: Draw, original: bytes, edits: int = 4) -> bytes:
    """The bytes with some of them changed, gone or added."""
    data = bytearray(original)
    for _ in range(draw(st.integers(1, edits))):
        if not data:
            break
        start = draw(st.integers(0, len(data) - 1))
        kind = draw(st.sampled_from(["flip", "flip", "byte", "number", "number", "cut", "drop", "zeros", "add"]))
        if kind == "flip":
            data[start] ^= 1 << draw(st.integers(0, 7))
        elif kind == "byte":
            data[start] = draw(st.sampled_from([0, 1, 127, 128, 255]))
        elif kind == "number":
            width = draw(st.sampled_from([2, 4, 8]))
            number = draw(st.sampled_from([0, 1, 7, 255, 2**15, 2**31 - 1, 2**32 - 1, 2**40, 2**63 - 1, 2**64 - 1]))
            data[start : start + width] = (number % 2 ** (8 * width)).to_bytes(width, "little")
        elif kind == "cut":
            del data[start:]
        elif kind == "drop":
            del data[start : start + draw(st.integers(1, 64))]
        elif kind == "zeros":
            length = draw(st.integers(1, 256))
            data[start : start + length] = bytes(len(data[start : start + length]))
        else:
            data[start:start] = draw(st.binary(min_size=1, max_size=16))
    return bytes(data)


def utf8(string: str) -> bytes:
    """The text in a file; what no file can hold is left out."""
    return string.encode("utf-8", "ignore")
