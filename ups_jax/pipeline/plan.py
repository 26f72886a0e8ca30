"""What a request would do, said and not done."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from ups_jax.errors import ConfigError
from ups_jax.pipeline.lock import is_free
from ups_jax.pipeline.request import Request, resolve
from ups_jax.pipeline.summary import unfinished
from ups_jax.pipeline.validation import check_config

_STEPS = {
    "validate_config": "all keys and values of the three configurations",
    "validate_data": "the data of all three; embedded data is generated where it is not there",
    "dry_run": "compile, a few steps, memory, time, a checkpoint saved and restored; unless it was trained before",
    "train": "scripts/train.py, for each seed; unless the same was trained before",
    "small_eval": "the trajectories of pipeline.small, then the gates",
    "full_eval": "the trajectories of pipeline.full, then the gates; unless the first gates refuse",
    "promotion": "if the gates pass: the checkpoint is copied and is the champion",
    "report": "analysis/report.html",
}
_OPTIONS = {
    "validate_config": "validation",
    "validate_data": "data_check",
    "dry_run": "dry_run",
    "train": "training",
    "small_eval": "small_eval",
    "full_eval": "full_eval",
    "promotion": "full_eval",
    "report": "analysis",
}


def plan_pipeline(request: Request, console: Console) -> None:
    """Say what a request would do, check its configurations, and do nothing. Raises `ConfigError`."""
    resolved = resolve(request)
    for path in {*_files(request)}:
        found = check_config(path, request.train_stage, request.overrides)
        if found.problems:
            raise ConfigError("; ".join(found.problems))
    name = request.run_id or unfinished(request.runs_root, request.digest(resolved), is_free)
    skipped = {step: getattr(request, f"skip_{option}") for step, option in _OPTIONS.items()}
    lines = [f"run             {request.runs_root / (name or 'run_TIME')}" + (" (goes on)" if name else "")]
    for step, what in _STEPS.items():
        lines.append(f"{step:<16}{'skipped' if skipped.get(step) else what}")
    for line in lines:
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def _files(request: Request) -> list[Path]:
    others = (request.small_eval_config, request.full_eval_config)
    return [request.train_config, *(path for path in others if path is not None)]
