"""Everything that is wrong with configurations and their data, all at once, each with its mend. Imports no jax but to
generate data that is not there yet."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ups_jax.config import Config, load, problems
from ups_jax.core.errors import ConfigError, UserError
from ups_jax.core.stage_names import STAGE_NEEDS, STAGES
from ups_jax.pipeline.scores import METRIC_NAMES, METRIC_SECTIONS, METRICS, RENAMED, of_task
from ups_jax.simulate import presets
from ups_jax.training.stages import enabled_stages


@dataclass(frozen=True, kw_only=True)
class CheckResult:
    """What a check found: `problems` that forbid a training, `notes` to read, and of sound data its `fingerprint`."""

    problems: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    fingerprint: str | None = None
    exit_code: int = 0


def check_config(path: Path, stage: str, overrides: Sequence[str] = ()) -> CheckResult:
    """A configuration alone: its keys and values, then what they mean together."""
    wrong = problems(path, overrides)
    if wrong:
        return CheckResult(problems=tuple(wrong), exit_code=ConfigError.exit_code)
    cfg = load(path, overrides)
    wrong = [f"{path}: {text}" for check in _CHECKS for text in check(cfg, stage)]
    notes = [f"{path}: {text}" for text in _unusual(cfg, stage)]
    return CheckResult(problems=tuple(wrong), notes=tuple(notes), exit_code=ConfigError.exit_code if wrong else 0)


def check_pair(train: Path, evaluation: Path, overrides: Sequence[str] = ()) -> CheckResult:
    """An evaluation's configuration beside that of the training, both sound by themselves."""
    one, other = load(train, overrides), load(evaluation, overrides)
    names = [[(task.name, task.kind) for task in cfg.data.tasks] for cfg in (one, other)]
    if names[0] == names[1]:
        return CheckResult()
    wrong = f"{evaluation}: key `data.tasks`: evaluates {names[1]}, the training is of {names[0]}; name the same tasks"
    return CheckResult(problems=(wrong,), exit_code=ConfigError.exit_code)


def check_data(paths: Sequence[Path], overrides: Sequence[str] = ()) -> dict[Path, CheckResult]:
    """The data of sound configurations, opened once where they name the same."""
    known: list[tuple[Config, CheckResult]] = []
    found = {}
    for path in paths:
        cfg = load(path, overrides)
        same = (own for other, own in known if (other.data, other.training) == (cfg.data, cfg.training))
        found[path] = next(same, None) or _check_data(cfg)
        known.append((cfg, found[path]))
    return found


def _check_data(cfg: Config) -> CheckResult:
    """The data of a configuration, which is generated where it is embedded and not there yet."""
    # These load the file formats, which a check of keys and values does not need.
    from ups_jax import simulate
    from ups_jax.data import open_mixture
    from ups_jax.data.validation import data_problems

    try:
        simulate.prepare(cfg)
        data = open_mixture(cfg)
    except UserError as error:
        listed = data_problems(cfg) or [str(error)]
        return CheckResult(problems=tuple(listed), exit_code=error.exit_code)
    notes = tuple(note for dataset in data.datasets for note in dataset.notes)
    return CheckResult(notes=notes, fingerprint=data.fingerprint)


def _stages(cfg: Config, stage: str) -> list[str]:
    try:
        chosen = enabled_stages(cfg) if stage == "all" else (stage,)
    except ConfigError as error:
        return [str(error)]
    found = []
    for name in chosen:
        settings = getattr(cfg.stages, name)
        if settings.max_seconds is None and (settings.epochs if settings.steps is None else settings.steps) == 0:
            found.append(f"key `stages.{name}`: is off; give it epochs, steps or max_seconds")
        needs = STAGE_NEEDS[cfg.data.tasks[0].kind].get(name, ()) if cfg.data.tasks else ()
        for parent in needs:
            if parent not in chosen:
                found.append(
                    f"stage {name}: needs `stages.{parent}` trained before it; use --stage all, with both enabled"
                )
    return found


def _tasks(cfg: Config, stage: str) -> list[str]:
    found = []
    for task in cfg.data.tasks:
        if task.path is None:
            try:
                presets.get_preset(task.name, task.preset)
            except ConfigError as error:
                found.append(str(error))
        other = {"steady": "operator", "transient": "steady_prior"}[task.kind]
        if stage == other:
            own = {"steady": "steady_prior", "transient": "operator"}[task.kind]
            found.append(f"task {task.name} is {task.kind}, stage {stage} is for tasks of the other kind; use {own}")
    return found


def _gates(cfg: Config, stage: str) -> list[str]:
    rules = cfg.gates
    named = {
        "gates.metric": (rules.metric,),
        "gates.ratios": rules.ratios,
        "gates.tolerances": rules.tolerances,
        "gates.floors": rules.floors,
        "gates.limits": rules.limits,
        "gates.required": rules.required,
        "gates.higher_is_better": rules.higher_is_better,
    }
    tasks = [task.name for task in cfg.data.tasks]
    # Numbers of one of several tasks.
    single = (*METRICS, *RENAMED, *(f"{section}/{metric}" for section in METRIC_SECTIONS for metric in METRICS))
    own = {of_task(name, task) for name in single for task in tasks if len(tasks) > 1}
    return [
        f"key `{key}`: no evaluation measures {name!r}; there are {', '.join(METRIC_NAMES[:14])}, and the first ten as "
        "one_step/NAME" + (f"; of one task as NAME@{tasks[0]}" if len(tasks) > 1 else "")
        for key, names in named.items()
        for name in names
        if name not in METRIC_NAMES and name not in own
    ]


_CHECKS: tuple[Callable[[Config, str], list[str]], ...] = (_stages, _tasks, _gates)

# The ranges outside of which a value is more often a mistake than a choice.
_USUAL: dict[str, tuple[float, float]] = {"optimizer.lr": (1e-6, 5e-2), "optimizer.weight_decay": (0.0, 0.5)}


def _unusual(cfg: Config, stage: str) -> list[str]:
    found = []
    for name in STAGES if stage == "all" else (stage,):
        settings: Any = getattr(cfg.stages, name)
        for key, (low, high) in _USUAL.items():
            section, field = key.split(".")
            value = getattr(getattr(settings, section), field)
            if not low <= value <= high:
                found.append(f"key `stages.{name}.{key}`: {value:g} is outside of {low:g} to {high:g}")
    return found
