"""Which part of a configuration shapes a run's numbers, and its digest."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from pydantic import TypeAdapter

from ups_jax.config.renamed_keys import former_names
from ups_jax.config.schema import Config, DataConfig, TaskConfig, to_dict
from ups_jax.core.stage_names import STAGE_NEEDS

# Keys that say how long a run is.
_LENGTH = ("epochs", "steps", "patience", "patience_steps", "max_seconds")
# Keys that say how the same numbers are computed, and those that add to the records alone.
_MANNER = ("remat", "compile", "log_per_task_metrics")
# Keys of `training` that only some stages read.
_READ_BY = {
    "tau_distribution": ("diffusion_residual", "consistency_distill"),
    "distill_num_taus": ("consistency_distill",),
}
# How often a default has changed its value, or a key or a part of the model what it means.
_MEANINGS = 2
# Keys of a task that were added when runs were there already, which is why they do not enter at their defaults.
_LATER = {"solution": "stored", "steady_tolerance": 0.01}
_TASK_DEFAULTS = TypeAdapter(TaskConfig).dump_python(TaskConfig(name=""), mode="json")


def digest(config: Config, stage: str) -> str:
    """Twelve hex digits over everything that shapes the numbers of `stage`: not run length, logging or paths.

    Values at their defaults do not enter, so that a key which a later version adds leaves older runs valid (of a
    task, where `_LATER` has it); a default that changes its value, or a meaning that changes, raises `_MEANINGS`. What
    a student is compared with has changed without: that would have been at the cost of every other stage.
    """
    values = relevant(to_dict(config), stage)
    default = Config(data=DataConfig(tasks=(TaskConfig(name="", kind=config.data.tasks[0].kind),)))
    kept = _without_defaults(values, relevant(to_dict(default), stage))
    named = [_without_defaults(task, _TASK_DEFAULTS) for task in values["data"]["tasks"]]
    text = json.dumps([_MEANINGS, *former_names([kept, named])], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def relevant(values: dict[str, Any], stage: str) -> dict[str, Any]:
    """The part of a resolved configuration that `digest` covers: of a stage with parents that of theirs as well."""
    data = {key: value for key, value in values["data"].items() if key not in ("loader", "root", "latents")}
    # The list itself is part of the data's fingerprint.
    data["split"] = {key: value for key, value in data["split"].items() if key != "path"}
    data["tasks"] = [
        {key: value for key, value in task.items() if key != "path" and not (key in _LATER and value == _LATER[key])}
        for task in data["tasks"]
    ]
    parents = STAGE_NEEDS[values["data"]["tasks"][0].get("kind", "transient")].get(stage, ())
    stages = {
        name: _windows_per_step({key: value for key, value in own.items() if key not in _LENGTH})
        for name, own in values["stages"].items()
        if name in (*parents, stage)
    }
    others = [key for key, readers in _READ_BY.items() if stage not in readers]
    training = {key: value for key, value in values["training"].items() if key not in (*_LENGTH, *_MANNER, *others)}
    # The stage's value is the one that is read; `training` only lends it where the stage has none.
    training = {key: value for key, value in training.items() if key != "accum_steps"}
    training |= {"batch_size": stages[stage]["batch_size"]}
    diffusion = values.get("diffusion", {})
    # What selects the best checkpoint is part of the monitor, and with it of the state.
    selection = {key: values["evaluation"][key] for key in ("metric", "val_trajectories")}
    return {
        "seed": values["seed"],
        "data": data,
        "latent": values["latent"],
        "operator": values["operator"],
        "training": training,
        "stages": stages,
        "evaluation": selection,
    } | ({"diffusion": diffusion} if parents else _held_out(diffusion))


def _held_out(diffusion: dict[str, Any]) -> dict[str, Any]:
    """Which trajectories are held out of a predictor's training; nothing where none are, as in runs that are older."""
    return {"diffusion.fold": diffusion["fold"]} if diffusion.get("fold") else {}


def _windows_per_step(section: dict[str, Any]) -> dict[str, Any]:
    """The section with the windows of an optimizer step as its `batch_size`: their number decides which they are, and
    in how many micro-batches they are taken changes the step by round-off alone."""
    kept = {key: value for key, value in section.items() if key != "accum_steps"}
    return kept | {"batch_size": section["batch_size"] * section["accum_steps"]}


def _without_defaults(values: dict[str, Any], defaults: dict[str, Any]) -> dict[str, Any]:
    return {
        key: _without_defaults(value, defaults[key])
        if isinstance(value, dict) and isinstance(defaults.get(key), dict)
        else value
        for key, value in values.items()
        if key not in defaults or value != defaults[key]
    }
