"""Fuzzed run directories, champions and leaderboards, and the scripts that read them."""

from __future__ import annotations

import functools
import io
import json
from typing import Any

import numpy as np
from hypothesis import strategies as st

from fuzz import bases, mutation
from fuzz.case import Case

_CHECKPOINT = "run/checkpoints/operator/0"
_RECORDS = ("run/run.json", "run/metrics.jsonl", "run/split.json", "run/training_set.json", "run/evaluation/test.json")


@functools.cache
def _files(base: str) -> dict[str, bytes]:
    place = bases.shared()[base]
    return {str(path.relative_to(place)): path.read_bytes() for path in sorted(place.rglob("*")) if path.is_file()}


@st.composite
def changed(draw: mutation.Draw, content: bytes) -> bytes | None:
    """A file's content changed as what it is: JSON, lines of JSON, or bytes; None where it is gone."""
    kind = draw(st.sampled_from(["values", "values", "values", "text", "bytes", "gone"]))
    if kind == "gone":
        return None
    if kind != "bytes":
        try:
            text = content.decode()
            if kind == "text":
                return mutation.utf8(draw(mutation.text(text)))
            lines = text.splitlines()
            if len(lines) > 1 and all(line.startswith("{") and line.endswith("}") for line in lines):
                number = draw(st.integers(0, len(lines) - 1))
                lines[number] = json.dumps(draw(mutation.value(json.loads(lines[number]))))
                return "".join(f"{line}\n" for line in lines).encode()
            return json.dumps(draw(mutation.value(json.loads(text))), indent=2).encode()
        except ValueError:
            pass
    return draw(mutation.content(content))


@st.composite
def verification(draw: mutation.Draw) -> Case:
    """`verify_run.py` on a run of which some files are others."""
    originals = {name: content for name, content in _files("run").items() if name.startswith("run/")}
    inside = [name for name in originals if name.startswith(_CHECKPOINT)]
    files = {}
    for _ in range(draw(st.integers(1, 2))):
        name = draw(st.sampled_from(_RECORDS) | st.sampled_from(inside))
        files[name] = draw(changed(originals[name]))
    if draw(st.integers(0, 4)) == 0:
        files[f"{_CHECKPOINT}/checksums.json"] = None
    return Case(
        target="verification", script="verify_run.py", arguments=("run",), files=files, base="run", codes=(0, 4)
    )


@st.composite
def resuming(draw: mutation.Draw) -> Case:
    """`train.py` on a run directory whose records are others, up to the training."""
    originals = _files("run")
    name = draw(st.sampled_from([*_RECORDS[:2], f"{_CHECKPOINT}/meta/metadata", "run/run.json", "run/run.json"]))
    files: dict[str, bytes | None] = {name: draw(changed(originals[name]))}
    overrides = [*bases.OVERRIDES, "evaluation.enabled=false"]
    arguments = ("--config", "configs/tiny.yaml", "--run-dir", "run", *overrides)
    return Case(
        target="resuming",
        script="train.py",
        arguments=arguments,
        files=files,
        base="run",
        codes=(0, 2, 3, 4),
        stop="train",
    )


@st.composite
def evaluation(draw: mutation.Draw) -> Case:
    """`evaluate.py` or `export.py` on a run whose records or checkpoint are others, up to its computations."""
    originals = _files("run")
    inside = [name for name in originals if name.startswith(_CHECKPOINT)]
    name = draw(st.sampled_from(["run/run.json"]) | st.sampled_from(inside))
    files: dict[str, bytes | None] = {name: draw(changed(originals[name]))}
    if name != "run/run.json" and draw(st.booleans()):
        # Of an earlier version, or of somebody who takes the seal away.
        files[f"{_CHECKPOINT}/checksums.json"] = None
    script, arguments, stop = draw(
        st.sampled_from(
            [
                ("evaluate.py", ("--run-dir", "run"), "evaluate"),
                ("export.py", ("--run-dir", "run", "--output", "out"), "export"),
            ]
        )
    )
    return Case(
        target="evaluation", script=script, arguments=arguments, files=files, base="run", codes=(0, 2, 3, 4), stop=stop
    )


@st.composite
def rollout(draw: mutation.Draw) -> Case:
    """`rollout.py` from a user's file, up to the prediction."""
    suffix = draw(st.sampled_from([".npy", ".npz", ".hdf5"]))
    content = _start(suffix)
    if draw(st.integers(0, 4)):
        content = draw(mutation.content(content))
    else:
        shapes = [(16,), (16, 1), (2, 16, 1), (2, 3, 16, 1), (0, 16, 1), (2, 15, 1), ()]
        values = np.full(draw(st.sampled_from(shapes)), draw(st.sampled_from([0.0, np.nan, 1e30])))
        dtype = draw(st.sampled_from(["f4", "f8", "i4", "c8", "O", "S3"]))
        with np.errstate(invalid="ignore"):
            values = values.astype(dtype)
        suffix, content = ".npy", _saved(values)
    options = draw(st.lists(st.sampled_from(["beta=0.5", "beta=nan", "q=1", "beta=", "=3", "beta=1e400"]), max_size=2))
    more = ("--params", *options) if options else ()
    more += draw(st.sampled_from([(), (), ("--dt", "0.05"), ("--dt", "nan"), ("--limit", "1"), ("--task", "q")]))
    return Case(
        target="rollout",
        script="rollout.py",
        arguments=("--run-dir", "run", "--input", f"u{suffix}", "--steps", "2", "--output", "out.hdf5", *more),
        files={f"u{suffix}": content},
        base="run",
        codes=(0, 2, 3, 4),
        stop="rollout",
    )


@functools.cache
def _start(suffix: str) -> bytes:
    if suffix == ".hdf5":
        return _files("run")["data/waves.hdf5"]
    values = np.random.default_rng(0).normal(size=(2, 16, 1)).astype(np.float32)
    if suffix == ".npy":
        return _saved(values)
    buffer = io.BytesIO()
    np.savez(buffer, u=values, beta=np.array([0.2, 0.3]))
    return buffer.getvalue()


def _saved(values: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, values, allow_pickle=True)
    return buffer.getvalue()


@st.composite
def board(draw: mutation.Draw) -> Case:
    """`leaderboard.py` on a leaderboard, champions and runs of which some are others."""
    originals = _files("board")
    names = [
        name
        for name in originals
        if name.endswith((".jsonl", "champion.json", "summary.json", "full.json", "train_resolved.yaml", "run.json"))
    ]
    files = {}
    for _ in range(draw(st.integers(1, 2))):
        name = draw(st.sampled_from(["reports/leaderboard.jsonl"]) | st.sampled_from(names))
        files[name] = draw(changed(originals[name]))
    task = next(name.split("/")[2] for name in names if name.endswith("champion.json"))
    words: list[Any] = [
        (),
        ("--filter", "task=waves", "--sort", "nrmse"),
        ("--filter", "x"),
        ("--metrics", "nrmse,rmse,x"),
        ("--compare", "one", "two", "--html", "page.html"),
        ("--compare", "one", "one"),
        ("--list-champions",),
        ("--label", "one", "[red]best"),
        ("--demote", task),
        ("--publish", "artifacts/runs/one"),
    ]
    return Case(
        target="board", script="leaderboard.py", arguments=draw(st.sampled_from(words)), files=files, base="board",
        codes=(0, 2, 3, 4),
    )  # fmt: skip


@st.composite
def generation(draw: mutation.Draw) -> Case:
    """`generate_data.py` where a file is already, which may be another's."""
    content = _files("run")["data/waves.hdf5"]
    if draw(st.booleans()):
        content = draw(mutation.content(content))
    task = draw(st.sampled_from(["burgers1d", "burgers1d", "nothing", "../up", ""]))
    options = draw(
        st.sampled_from([(), ("--seed", "1"), ("--trajectories", "0"), ("--preset", "none"), ("--seed", "x")])
    )
    return Case(
        target="generation",
        script="generate_data.py",
        arguments=("--task", task, "--out", ".", "--preset", "tiny", *options),
        files={"burgers1d_tiny.hdf5": content},
    )


TARGETS = {
    "verification": verification(),
    "resuming": resuming(),
    "evaluation": evaluation(),
    "rollout": rollout(),
    "board": board(),
    "generation": generation(),
}
