"""Fuzzed configurations: files, includes and overrides, for the loader alone and for a training up to its model."""

from __future__ import annotations

import functools
from typing import Any

import yaml
from hypothesis import strategies as st

from fuzz import mutation
from fuzz.bases import CONFIGS, OVERRIDES
from fuzz.case import Case
from ups_jax.config import load, to_dict

_CHECK = ("--only", "config", "--config", "c.yaml")
_STAGES = st.sampled_from(["operator", "diffusion_residual", "consistency_distill", "steady_prior", "all", "none"])
# Sections without which a configuration of the original system is not whole, and some of its spellings.
_WORDS = ("include", "data", "tasks", "stages", "operator", "diff_residual", "name", "path", "training", "optimizer")


@functools.cache
def texts() -> tuple[str, ...]:
    """The shipped files."""
    return tuple(path.read_text() for path in sorted(CONFIGS.glob("*.yaml")))


@functools.cache
def resolved() -> dict[str, Any]:
    """Every key with a value."""
    values: dict[str, Any] = to_dict(load(CONFIGS / "tiny.yaml", OVERRIDES))
    return values


@functools.cache
def keys() -> tuple[str, ...]:
    """Every dotted key."""

    def below(node: Any, where: str) -> list[str]:
        paths = [where] if where else []
        items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list | tuple) else ()
        return paths + [key for name, value in items for key in below(value, f"{where}.{name}".lstrip("."))]

    return tuple(below(resolved(), ""))


def _any_value() -> st.SearchStrategy[Any]:
    leaves = mutation.ODD
    return st.recursive(
        leaves,
        lambda inner: (
            st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(_WORDS) | st.text(max_size=3), inner)
        ),
        max_leaves=8,
    )


def _yaml(value: Any) -> bytes:
    return mutation.utf8(yaml.safe_dump(value, allow_unicode=True))


@st.composite
def file(draw: mutation.Draw) -> bytes:
    """A configuration's text."""
    kind = draw(st.sampled_from(["text", "text", "values", "values", "own", "any", "bytes"]))
    if kind == "any":
        return _yaml(draw(_any_value()))
    source = draw(st.sampled_from(texts()))
    if kind == "bytes":
        return draw(mutation.content(source.encode()))
    if kind == "text":
        return mutation.utf8(draw(mutation.text(source)))
    return _yaml(draw(mutation.value(resolved() if kind == "values" else yaml.safe_load(source))))


@st.composite
def override(draw: mutation.Draw) -> str:
    """`key=value`, mostly of a key that there is."""
    key = draw(st.sampled_from(keys()) | st.sampled_from(keys()).flatmap(lambda name: mutation.text(name, 1)))
    value = draw(
        st.one_of(
            st.sampled_from(
                ["1", "0", "-1", "null", "nan", "[]", "{}", "[1, 2]", "{a: 1}", "[{name: a}]", "x", "", "~"]
            ),
            mutation.ODD.map(str),
            _any_value().map(lambda item: yaml.safe_dump(item, default_flow_style=True)),
            mutation.text("{name: burgers1d, path: [a, b]}"),
        )
    )
    return draw(st.sampled_from([f"{key}={value}"] * 9 + [key, f"={value}"]))


@st.composite
def config(draw: mutation.Draw) -> Case:
    """The loader on a file, with files that it includes."""
    files = {"c.yaml": draw(file())}
    if draw(st.booleans()):
        name = draw(st.sampled_from(["d.yaml", "c.yaml", "e/f.yaml", "[d.yaml, g.yaml]", "5", "{}", "~", "[[d.yaml]]"]))
        files["c.yaml"] = f"include: {name}\n".encode() + files["c.yaml"]
        files |= {"d.yaml": draw(file()), "e/f.yaml": b"include: ../c.yaml\n", "g.yaml": b"include: [d.yaml, d.yaml]\n"}
    return Case(target="config", script="validate.py", arguments=("--stage", draw(_STAGES), *_CHECK), files=files)


@st.composite
def overrides(draw: mutation.Draw) -> Case:
    """The loader with overrides; those that are words of the command line stand behind `--`."""
    assignments = tuple(text.replace("\x00", "") for text in draw(st.lists(override(), min_size=1, max_size=3)))
    name = draw(st.sampled_from(["tiny.yaml", "darcy2d.yaml", "advection_burgers.yaml"]))
    arguments = ("--only", "config", "--config", f"configs/{name}", "--", *assignments)
    return Case(target="overrides", script="validate.py", arguments=arguments)


@st.composite
def training(draw: mutation.Draw) -> Case:
    """`train.py` on a sound run's data up to the building of the model."""
    values = draw(mutation.value(resolved()))
    return Case(
        target="training",
        script="train.py",
        arguments=("--config", "c.yaml", "--run-dir", "new", "--stage", draw(_STAGES)),
        files={"c.yaml": _yaml(values)},
        base="run",
        codes=(0, 2, 3, 4),
        stop="build",
    )


TARGETS = {"config": config(), "overrides": overrides(), "training": training()}
