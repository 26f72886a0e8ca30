"""Search for damage in a run directory, which is not changed: checkpoints, training set, metrics and evaluations."""

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
from ups_jax.runs.checkpoint import Checkpoints, tasks_from_meta
from ups_jax.runs.directory import RunDirectory
from ups_jax.runs.training_set import recorded_training_set
from ups_jax.tracking import read_jsonl
from ups_jax.training.build import abstract_state

SOUND, NOTE, DAMAGED = "sound", "note", "DAMAGED"


@dataclass(frozen=True, kw_only=True)
class Finding:
    """The result of checking one part of a run.

    Attributes:
        part: Path of the part in the run directory.
        state: `sound`, `DAMAGED`, or `note` for a part that is missing or not in use.
        text: Explanation of the state.
    """

    part: str
    state: str
    text: str


def verify(path: Path) -> list[Finding]:
    """Check every part of the run in the directory `path` and return a finding for each.

    Checkpoints are compared with their checksums, or restored if an earlier version wrote them without checksums.

    Raises:
        CheckpointError: The directory holds no readable record of a run.
    """
    run = RunDirectory(path)
    record = run.read_record()
    stages = record.get("stages")
    if not isinstance(stages, dict) or not isinstance(record.get("digests"), dict):
        raise CheckpointError(f"{run.record_path}: is not the record of a run; restore it from a copy")
    findings = [
        Finding(part="run.json", state=SOUND, text=f"{record.get('status')}; stages {', '.join(stages) or 'none'}")
    ]
    folders = {item.name for item in run.checkpoint_folder("").glob("*") if item.is_dir()}
    for stage in [*stages, *sorted(folders - stages.keys())]:
        findings += _check_stage(run, stage, stages.get(stage, {}))
    return [*findings, *_check_training_set(run), *_check_metrics(run), *_check_evaluations(run)]


def _check_stage(run: RunDirectory, stage: str, record: dict[str, Any]) -> Iterator[Finding]:
    """Check the checkpoints of a stage and yield a finding for each."""
    folder = run.checkpoint_folder(stage)
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
    """Check a checkpoint for damage and return the finding."""
    part = f"checkpoints/{folder.name}/{step}"
    reason = checksums.find_damage(folder / str(step))
    if reason is None and not checksums.has_checksums(folder / str(step)):
        reason, text = _restore_error(folder, step), "readable; has no checksums"
    else:
        text = "matches its checksums"
    return Finding(part=part, state=SOUND if reason is None else DAMAGED, text=reason or text)


def _restore_error(folder: Path, step: int) -> str | None:
    """Restore a checkpoint and return the error message, None if there is no error."""
    try:
        with Checkpoints(folder, read_only=True) as checkpoints:
            meta = checkpoints.meta(step)
            config = from_dict(meta["config"], str(folder / str(step)))
            checkpoints.restore(step, abstract_state(config, tasks_from_meta(meta), folder.name))
    except UserError as error:
        return str(error)
    return None


def _check_training_set(run: RunDirectory) -> Iterator[Finding]:
    """Check that the hashes of the training trajectories are readable, and yield the finding if there are any."""
    part = run.training_set_path.name
    try:
        training_set = recorded_training_set(run)
    except CheckpointError as error:
        yield Finding(part=part, state=DAMAGED, text=str(error))
        return
    if training_set is not None:
        yield Finding(part=part, state=SOUND, text=f"{len(training_set.hashes)} training trajectories")


def _check_metrics(run: RunDirectory) -> Iterator[Finding]:
    """Check that the steps of the logged metrics increase within each stage, and yield the finding."""
    part = run.metrics_path.name
    if not run.metrics_path.exists():
        yield Finding(part=part, state=NOTE, text="missing: stopped before the first record")
        return
    try:
        records = read_jsonl(run.metrics_path)
        steps: dict[str, list[int]] = {}
        for record in records:
            if not isinstance(record["step"], int):
                raise DataError(f"a record has a step that is not an integer: {record['step']!r}")
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
    """Check that each evaluation result is readable, and yield a finding for each."""
    for file in sorted(run.evaluation_folder.glob("*.json")):
        part = f"{run.evaluation_folder.name}/{file.name}"
        try:
            read_json(file)["metrics"]
        except (OSError, ValueError, KeyError, TypeError):
            yield Finding(
                part=part, state=DAMAGED, text=f"not an evaluation result; recreate it with `{command('evaluate')}`"
            )
        else:
            yield Finding(part=part, state=SOUND, text="readable")
