"""Verification of a run directory against its checksums; nothing in the directory is changed."""

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
    """The result for a part of a run.

    Attributes:
        part: Path of the part in the run directory.
        state: `sound`, `note` or `DAMAGED`.
        text: Description.
    """

    part: str
    state: str
    text: str


def verify(path: Path) -> list[Finding]:
    """Return a finding for every part of a run.

    A checkpoint is compared with its checksums. A checkpoint of an earlier version, without checksums, is restored
    instead.

    Args:
        path: Run directory.

    Raises:
        CheckpointError: The directory holds no run.
    """
    run = RunDirectory(path)
    record = run.read()
    stages = record.get("stages")
    if not isinstance(stages, dict) or not isinstance(record.get("digests"), dict):
        raise CheckpointError(f"{run.record_path}: is not the record of a run; restore it from a copy")
    findings = [
        Finding(part="run.json", state=SOUND, text=f"{record.get('status')}; stages {', '.join(stages) or 'none'}")
    ]
    folders = {item.name for item in run.checkpoints("").glob("*") if item.is_dir()}
    for stage in [*stages, *sorted(folders - stages.keys())]:
        findings += _check_stage(run, stage, stages.get(stage, {}))
    return [*findings, *_check_metrics(run), *_check_evaluations(run)]


def _check_stage(run: RunDirectory, stage: str, record: dict[str, Any]) -> Iterator[Finding]:
    """Yield the findings for the checkpoints of a stage."""
    folder = run.checkpoints(stage)
    part = f"checkpoints/{stage}"
    steps = sorted(int(item.name) for item in folder.glob("*") if item.name.isdecimal())
    if not steps and record.get("saved"):
        yield Finding(part=part, state=DAMAGED, text=f"no checkpoint, but step {record['saved']} was saved")
    elif not steps:
        yield Finding(part=part, state=NOTE, text="no checkpoint: stopped before the first save")
    elif record.get("saved", 0) > steps[-1]:
        yield Finding(part=part, state=DAMAGED, text=f"step {record['saved']} was saved but is missing")
    for step in steps:
        yield _check_checkpoint(folder, step)
    for item in sorted(folder.glob("*")):
        if item.name.startswith("damaged-"):
            yield Finding(part=f"{part}/{item.name}", state=NOTE, text="damaged checkpoint, quarantined")
        elif item.is_dir() and not item.name.isdecimal():
            yield Finding(
                part=f"{part}/{item.name}", state=NOTE, text="incomplete checkpoint; the next start deletes it"
            )


def _check_checkpoint(folder: Path, step: int) -> Finding:
    """Return the finding for a checkpoint."""
    part = f"checkpoints/{folder.name}/{step}"
    reason = checksums.find_damage(folder / str(step))
    if reason is None and not checksums.has_checksums(folder / str(step)):
        reason, text = _restore_error(folder, step), "readable; has no checksums"
    else:
        text = "matches its checksums"
    return Finding(part=part, state=SOUND if reason is None else DAMAGED, text=reason or text)


def _restore_error(folder: Path, step: int) -> str | None:
    """Return the error of restoring a checkpoint, None if it can be restored."""
    try:
        with Checkpoints(folder, read_only=True) as checkpoints:
            meta = checkpoints.meta(step)
            config = from_dict(meta["config"], str(folder / str(step)))
            checkpoints.restore(step, abstract_state(config, tasks_of(meta), folder.name))
    except UserError as error:
        return str(error)
    return None


def _check_metrics(run: RunDirectory) -> Iterator[Finding]:
    """Yield the finding for the logged metrics, whose steps must increase within each stage."""
    part = run.metrics_path.name
    if not run.metrics_path.exists():
        yield Finding(part=part, state=NOTE, text="missing: stopped before the first record")
        return
    try:
        records = read_jsonl(run.metrics_path)
        steps: dict[str, list[int]] = {}
        for record in records:
            if not isinstance(record["step"], int):
                raise DataError(f"a record has the step {record['step']!r}, which is not an integer")
            steps.setdefault(record["stage"], []).append(record["step"])
    except (DataError, OSError, KeyError, TypeError) as error:
        yield Finding(part=part, state=DAMAGED, text=str(error))
        return
    reversals = [
        f"steps of stage {stage} do not increase: step {following} follows step {step}"
        for stage, stage_steps in steps.items()
        for step, following in itertools.pairwise(stage_steps)
        if following <= step
    ]
    if reversals:
        yield Finding(part=part, state=DAMAGED, text=reversals[0])
    else:
        yield Finding(part=part, state=SOUND, text=f"{len(records)} records")


def _check_evaluations(run: RunDirectory) -> Iterator[Finding]:
    """Yield a finding for each evaluation result."""
    for file in sorted(run.evaluation.glob("*.json")):
        part = f"{run.evaluation.name}/{file.name}"
        try:
            read_json(file)["metrics"]
        except (OSError, ValueError, KeyError, TypeError):
            yield Finding(
                part=part, state=DAMAGED, text=f"not an evaluation result; recreate it with `{command('evaluate')}`"
            )
        else:
            yield Finding(part=part, state=SOUND, text="readable")
