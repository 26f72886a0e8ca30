"""Reads wandb's offline files: a log of protobuf records in LevelDB's framing, with wandb's own messages."""

from __future__ import annotations

import json
import struct
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_HEADER, _BLOCK = 7, 32768
_WHOLE, _LAST = 1, 4


@dataclass
class OfflineRun:
    """One offline run. `history` are its records in order; `axes` the step metric of each pattern of names."""

    id: str = ""
    group: str = ""
    project: str = ""
    name: str = ""
    tags: list[str] = field(default_factory=list)
    config: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    summary: dict[str, Any] = field(default_factory=dict)
    axes: dict[str, str] = field(default_factory=dict)
    files: list[str] = field(default_factory=list)
    alerts: list[tuple[str, str, str]] = field(default_factory=list)
    artifacts: dict[str, Any] = field(default_factory=dict)
    exit_code: int | None = None
    preempting: bool = False


def offline_runs(directory: Path) -> list[OfflineRun]:
    """The runs in `directory`/wandb, oldest first."""
    return [_run(path) for path in sorted((directory / "wandb").glob("offline-run-*/run-*.wandb"), key=_age)]


def _age(path: Path) -> int:
    return (path.parent / "files" / "requirements.txt").stat().st_mtime_ns


def _run(path: Path) -> OfflineRun:
    run = OfflineRun()
    for record in _records(path):
        kind = record.WhichOneof("record_type")
        if kind == "run":
            run.id, run.group, run.project = record.run.run_id, record.run.run_group, record.run.project
            run.name, run.tags = record.run.display_name, list(record.run.tags)
            run.config |= _items(record.run.config.update)
        elif kind == "config":
            run.config |= _items(record.config.update)
        elif kind == "history":
            values = _items(record.history.item)
            run.history.append({key: value for key, value in values.items() if not key.startswith("_")})
        elif kind == "summary":
            run.summary |= _items(record.summary.update)
        elif kind == "metric" and record.metric.glob_name:
            run.axes[record.metric.glob_name] = record.metric.step_metric
        elif kind == "files":
            run.files += [item.path for item in record.files.files]
        elif kind == "alert":
            run.alerts.append((record.alert.title, record.alert.text, record.alert.level))
        elif kind == "exit":
            run.exit_code = record.exit.exit_code
        elif kind == "preempting":
            run.preempting = True
        elif kind == "artifact":
            run.artifacts[record.artifact.name] = record.artifact
    return run


def _items(items: Any) -> dict[str, Any]:
    return {"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in items}


def _records(path: Path) -> list[Any]:
    """All records of a finished run; its process writes the last of them a moment after the run was finished."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        records = _parse(path.read_bytes())
        if records and records[-1].WhichOneof("record_type") == "exit":
            return records
        time.sleep(0.05)
    raise AssertionError(f"{path} was not finished")


def _parse(data: bytes) -> list[Any]:
    from wandb.proto.wandb_internal_pb2 import Record

    records, message, position = [], b"", _HEADER
    while position + _HEADER <= len(data):
        left = _BLOCK - position % _BLOCK
        if left < _HEADER:
            position += left
            continue
        _, length, kind = struct.unpack_from("<IHB", data, position)
        message += data[position + _HEADER : position + _HEADER + length]
        position += _HEADER + length
        if position > len(data):
            break
        if kind in (_WHOLE, _LAST):
            records.append(Record.FromString(message))
            message = b""
    return records
