"""Whether what a run directory holds is what was written there; it is read, never changed."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ups_jax.config import from_dict
from ups_jax.core.commands import command
from ups_jax.core.errors import CheckpointError, DataError, UserError
from ups_jax.core.files import read_json
from ups_jax.runs import checksums
from ups_jax.runs.checkpoint import Checkpoints, tasks_of
from ups_jax.runs.directory import RunDirectory
from ups_jax.tracking import read_jsonl
from ups_jax.training.build import abstract_state

SOUND, NOTE, DAMAGED = "sound", "note", "DAMAGED"


@dataclass(frozen=True, kw_only=True)
class Finding:
    """A part of a run, and what is to be said of it; `state` is `sound`, `note` or `DAMAGED`."""

    part: str
    state: str
    text: str


def verify(path: Path) -> list[Finding]:
    """Every part of a run, in the order of its directory; CheckpointError where there is no run at all.

    A checkpoint is compared with its checksums; one that has none, as an earlier version left it, is read instead.
    """
    run = RunDirectory(path)
    record = run.read()
    stages = record.get("stages")
    if not isinstance(stages, dict) or not isinstance(record.get("digests"), dict):
        raise CheckpointError(f"{run.record_path}: is not a run's record; restore it from a copy")
    known = [
        Finding(part="run.json", state=SOUND, text=f"{record.get('status')}; stages {', '.join(stages) or 'none'}")
    ]
    folders = {item.name for item in run.checkpoints("").glob("*") if item.is_dir()}
    for stage in [*stages, *sorted(folders - stages.keys())]:
        known += _stage(run, stage, stages.get(stage, {}))
    return [*known, *_curve(run), *_results(run)]


def _stage(run: RunDirectory, stage: str, record: dict[str, Any]) -> Iterator[Finding]:
    folder = run.checkpoints(stage)
    part = f"checkpoints/{stage}"
    steps = sorted(int(item.name) for item in folder.glob("*") if item.name.isdecimal())
    if not steps and record.get("saved"):
        yield Finding(part=part, state=DAMAGED, text=f"holds none, though step {record['saved']} was saved")
    elif not steps:
        yield Finding(part=part, state=NOTE, text="holds none: stopped ahead of the first save")
    elif record.get("saved", 0) > steps[-1]:
        yield Finding(part=part, state=DAMAGED, text=f"step {record['saved']} was saved and is not there")
    for step in steps:
        yield _checkpoint(folder, step)
    for item in sorted(folder.glob("*")):
        if item.name.startswith("damaged-"):
            yield Finding(part=f"{part}/{item.name}", state=NOTE, text="was found damaged and set aside")
        elif item.is_dir() and not item.name.isdecimal():
            yield Finding(part=f"{part}/{item.name}", state=NOTE, text="half a save; the next start takes it away")


def _checkpoint(folder: Path, step: int) -> Finding:
    part = f"checkpoints/{folder.name}/{step}"
    reason = checksums.find_damage(folder / str(step))
    if reason is None and not checksums.is_sealed(folder / str(step)):
        reason, text = _unreadable(folder, step), "can be read; has no checksums"
    else:
        text = "as it was written"
    return Finding(part=part, state=SOUND if reason is None else DAMAGED, text=reason or text)


def _unreadable(folder: Path, step: int) -> str | None:
    try:
        with Checkpoints(folder, read_only=True) as checkpoints:
            meta = checkpoints.meta(step)
            config = from_dict(meta["config"], str(folder / str(step)))
            checkpoints.restore(step, abstract_state(config, tasks_of(meta), folder.name))
    except UserError as error:
        return str(error)
    return None


def _curve(run: RunDirectory) -> Iterator[Finding]:
    part = run.metrics_path.name
    if not run.metrics_path.exists():
        yield Finding(part=part, state=NOTE, text="is not there: stopped ahead of the first record")
        return
    try:
        records = read_jsonl(run.metrics_path)
        steps: dict[str, list[int]] = {}
        for record in records:
            if not isinstance(record["step"], int):
                raise DataError(f"a record has {record['step']!r} as its step")
            steps.setdefault(record["stage"], []).append(record["step"])
    except (DataError, OSError, KeyError, TypeError) as error:
        yield Finding(part=part, state=DAMAGED, text=str(error))
        return
    back = [
        f"{stage}: step {late} follows step {early}"
        for stage, own in steps.items()
        for early, late in itertools.pairwise(own)
        if late <= early
    ]
    if back:
        yield Finding(part=part, state=DAMAGED, text=back[0])
    else:
        yield Finding(part=part, state=SOUND, text=f"{len(records)} records")


def _results(run: RunDirectory) -> Iterator[Finding]:
    for file in sorted(run.evaluation.glob("*.json")):
        part = f"{run.evaluation.name}/{file.name}"
        try:
            read_json(file)["metrics"]
        except (OSError, ValueError, KeyError, TypeError):
            yield Finding(
                part=part, state=DAMAGED, text=f"is not an evaluation; `{command('evaluate')}` makes it again"
            )
        else:
            yield Finding(part=part, state=SOUND, text="can be read")
