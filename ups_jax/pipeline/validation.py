"""Checks of configurations and their data that report all problems at once, each with a fix.

This module imports no jax, except to generate missing data.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ups_jax.config import Config, find_problems, load
from ups_jax.core.errors import ConfigError, UserError
from ups_jax.core.stage_names import STAGE_NEEDS, STAGES
from ups_jax.pipeline.scores import ALIASES, METRIC_NAMES, METRIC_SECTIONS, METRICS, task_metric_name
from ups_jax.simulate import presets
from ups_jax.training.stages import enabled_stages


@dataclass(frozen=True, kw_only=True)
class CheckResult:
    """The result of checking a configuration or its data.

    Attributes:
        problems: Messages about errors that prevent a training.
        notes: Messages about unusual settings.
        fingerprint: Fingerprint of the data, if they were checked and are valid.
        exit_code: Exit code of the first problem, or 0.
    """

    problems: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    fingerprint: str | None = None
    exit_code: int = 0


def check_config(path: Path, stage: str, overrides: Sequence[str] = ()) -> CheckResult:
    """Check a configuration without its data: first each key and value, then their combinations.

    Args:
        stage: Stage to train, or `all`.
        overrides: Overrides such as `seed=1`.
    """
    wrong = find_problems(path, overrides)
    if wrong:
        return CheckResult(problems=tuple(wrong), exit_code=ConfigError.exit_code)
    cfg = load(path, overrides)
    wrong = [f"{path}: {text}" for check in _CHECKS for text in check(cfg, stage)]
    notes = [f"{path}: {text}" for text in _unusual_settings(cfg, stage)]
    return CheckResult(problems=tuple(wrong), notes=tuple(notes), exit_code=ConfigError.exit_code if wrong else 0)


def check_same_tasks(train_config: Path, evaluation_config: Path, overrides: Sequence[str] = ()) -> CheckResult:
    """Check that the configurations of a training and an evaluation name the same tasks."""
    configs = load(train_config, overrides), load(evaluation_config, overrides)
    trained, evaluated = ([(task.name, task.kind) for task in cfg.data.tasks] for cfg in configs)
    if trained == evaluated:
        return CheckResult()
    wrong = f"{evaluation_config}: key `data.tasks`: has {evaluated}, the training has {trained}; use the same tasks"
    return CheckResult(problems=(wrong,), exit_code=ConfigError.exit_code)


def check_data(paths: Sequence[Path], overrides: Sequence[str] = ()) -> dict[Path, CheckResult]:
    """Check the data of valid configurations; data that several configurations share is checked once."""
    checked: list[tuple[Config, CheckResult]] = []
    results = {}
    for path in paths:
        cfg = load(path, overrides)
        same = (result for other, result in checked if (other.data, other.training) == (cfg.data, cfg.training))
        results[path] = next(same, None) or _check_data(cfg)
        checked.append((cfg, results[path]))
    return results


def _check_data(cfg: Config) -> CheckResult:
    """Check the data of a configuration; missing data of a built-in simulator is generated first."""
    # Imported here: these modules load the file formats, which a check of keys and values does not need.
    from ups_jax import simulate
    from ups_jax.data import open_mixture
    from ups_jax.data.validation import data_problems

    try:
        simulate.generate_missing(cfg)
        data = open_mixture(cfg)
    except UserError as error:
        listed = data_problems(cfg) or [str(error)]
        return CheckResult(problems=tuple(listed), exit_code=error.exit_code)
    notes = tuple(note for dataset in data.datasets for note in dataset.notes)
    return CheckResult(notes=notes, fingerprint=data.fingerprint)


def _stage_problems(cfg: Config, stage: str) -> list[str]:
    """Return the problems of the stages to train: no training length, or a parent stage that is not trained."""
    try:
        chosen = enabled_stages(cfg) if stage == "all" else (stage,)
    except ConfigError as error:
        return [str(error)]
    wrong = []
    for name in chosen:
        settings = getattr(cfg.stages, name)
        if settings.max_seconds is None and (settings.epochs if settings.steps is None else settings.steps) == 0:
            wrong.append(f"key `stages.{name}`: has no length; set epochs, steps or max_seconds")
        needs = STAGE_NEEDS[cfg.data.tasks[0].kind].get(name, ()) if cfg.data.tasks else ()
        for parent in needs:
            if parent not in chosen:
                wrong.append(
                    f"stage {name}: needs the trained stage `stages.{parent}`; use --stage all with both enabled"
                )
    return wrong


def _task_problems(cfg: Config, stage: str) -> list[str]:
    """Return the problems of the tasks: an unknown preset, or a kind that the stage does not train."""
    wrong = []
    for task in cfg.data.tasks:
        if task.path is None:
            try:
                presets.get_preset(task.name, task.preset)
            except ConfigError as error:
                wrong.append(str(error))
        unsuitable = {"steady": "operator", "transient": "steady_prior"}[task.kind]
        if stage == unsuitable:
            suitable = {"steady": "steady_prior", "transient": "operator"}[task.kind]
            wrong.append(f"task {task.name} is {task.kind}, which stage {stage} does not train; use {suitable}")
    return wrong


def _gate_problems(cfg: Config, stage: str) -> list[str]:
    """Return one problem for each unknown metric name in the gate rules."""
    rules = cfg.gates
    metrics_of_key = {
        "gates.metric": (rules.metric,),
        "gates.ratios": rules.ratios,
        "gates.tolerances": rules.tolerances,
        "gates.floors": rules.floors,
        "gates.limits": rules.limits,
        "gates.required": rules.required,
        "gates.higher_is_better": rules.higher_is_better,
    }
    tasks = [task.name for task in cfg.data.tasks]
    # Names with a task are valid only with several tasks.
    single = (*METRICS, *ALIASES, *(f"{section}/{metric}" for section in METRIC_SECTIONS for metric in METRICS))
    task_names = {task_metric_name(name, task) for name in single for task in tasks if len(tasks) > 1}
    return [
        f"key `{key}`: unknown metric {name!r}; available are {', '.join(METRIC_NAMES[:14])}, and the first ten as "
        "one_step/NAME" + (f"; for one task as NAME@{tasks[0]}" if len(tasks) > 1 else "")
        for key, names in metrics_of_key.items()
        for name in names
        if name not in METRIC_NAMES and name not in task_names
    ]


_CHECKS: tuple[Callable[[Config, str], list[str]], ...] = (_stage_problems, _task_problems, _gate_problems)

# Usual ranges; a value outside is probably a mistake.
_USUAL: dict[str, tuple[float, float]] = {"optimizer.lr": (1e-6, 5e-2), "optimizer.weight_decay": (0.0, 0.5)}


def _unusual_settings(cfg: Config, stage: str) -> list[str]:
    """Return notes about optimizer settings outside their usual range."""
    notes = []
    for name in STAGES if stage == "all" else (stage,):
        settings: Any = getattr(cfg.stages, name)
        for key, (low, high) in _USUAL.items():
            section, field = key.split(".")
            value = getattr(getattr(settings, section), field)
            if not low <= value <= high:
                notes.append(f"key `stages.{name}.{key}`: {value:g} is outside the usual range {low:g} to {high:g}")
    return notes
