"""The end state of a run without clock times: two bit-identical runs have equal end states."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from ups_jax.config import from_dict
from ups_jax.core.task import Task
from ups_jax.runs.checkpoint import Checkpoints, tasks_from_meta
from ups_jax.tracking import read_jsonl
from ups_jax.training.build import abstract_state

# Of a record, of an evaluation's `meta`, and of any part of an evaluation.
_CLOCK = ("epoch_time_sec", "wall_clock", "seconds_per_step", "seconds_per_rollout_step", "checkpoint_digest")


def end_state(run: Path) -> dict[str, Any]:
    """Of each stage the newest and the best state, the curve, and the evaluations, in JSON's types."""
    folders = sorted(path for path in (run / "checkpoints").iterdir() if path.is_dir())
    return {
        "states": {folder.name: _states(folder) for folder in folders},
        "curve": [without_clock(record) for record in read_jsonl(run / "metrics.jsonl")],
        "evaluation": {path.stem: without_clock(_json(path)) for path in sorted((run / "evaluation").glob("*.json"))},
        "skipped": {name: stage.get("skipped") for name, stage in _json(run / "run.json")["stages"].items()},
    }


def differences(one: Any, other: Any, where: str = "") -> Iterator[str]:
    """Where two end states differ."""
    if isinstance(one, dict) and isinstance(other, dict):
        for key in sorted(one.keys() | other.keys()):
            yield from differences(one.get(key), other.get(key), f"{where}/{key}")
    elif isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        for number, pair in enumerate(zip(one, other, strict=True)):
            yield from differences(*pair, f"{where}/{number}")
    elif one != other:
        yield f"{where}: {str(one)[:80]} is not {str(other)[:80]}"


def without_clock(values: Any) -> Any:
    """JSON values without the entries that are measured with a clock, wherever they are."""
    if isinstance(values, dict):
        return {key: without_clock(value) for key, value in values.items() if key not in _CLOCK}
    return [without_clock(value) for value in values] if isinstance(values, list) else values


def _states(folder: Path) -> dict[str, Any]:
    with Checkpoints(folder, read_only=True) as checkpoints:
        newest, best = checkpoints.steps()[-1], checkpoints.best_step()
        return {"newest": [newest, _digest(checkpoints, newest)], "best": [best, _digest(checkpoints, best)]}


def _digest(checkpoints: Checkpoints, step: int | None) -> str:
    """Over names, types and bytes of every array of a state."""
    assert step is not None
    meta = checkpoints.meta(step)
    state = checkpoints.restore(step, _abstract(json.dumps(meta["config"]), tasks_from_meta(meta), meta["stage"]))
    hashed = hashlib.sha256()
    for name, leaf in jax.tree_util.tree_leaves_with_path(state):
        if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            leaf = jax.random.key_data(leaf)
        hashed.update(f"{jax.tree_util.keystr(name)} {leaf.dtype} {leaf.shape}".encode())
        hashed.update(np.asarray(leaf).tobytes())
    return hashed.hexdigest()[:16]


@functools.lru_cache
def _abstract(config: str, tasks: tuple[Task, ...], stage: str) -> Any:
    return abstract_state(from_dict(json.loads(config)), tasks, stage)


def _json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))
