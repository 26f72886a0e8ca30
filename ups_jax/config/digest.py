"""The part of a configuration that determines the numbers of a run, and its digest."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from pydantic import TypeAdapter

from ups_jax.config.renamed_keys import former_names
from ups_jax.config.schema import Config, DataConfig, TaskConfig, to_dict
from ups_jax.core.stage_names import STAGE_NEEDS

# Keys of the length of a run.
_LENGTH = ("epochs", "steps", "patience", "patience_steps", "max_seconds")
# Keys that change how the same numbers are computed, or only what is recorded.
_MANNER = ("remat", "compile", "log_per_task_metrics")
# Keys of `training` that only some stages read.
_READ_BY = {
    "tau_distribution": ("diffusion_residual", "consistency_distill"),
    "distill_num_taus": ("consistency_distill",),
}
# Raised when a default changes its value, or when a key or a part of the model changes its meaning.
_MEANINGS = 2
# Keys of a task that later versions added; at their defaults they do not change the digest of older runs.
_LATER = {"solution": "stored", "steady_tolerance": 0.01}
_TASK_DEFAULTS = TypeAdapter(TaskConfig).dump_python(TaskConfig(name=""), mode="json")


def digest(config: Config, stage: str) -> str:
    """Return twelve hex digits over everything that determines the numbers of a stage.

    Run length, logging and paths are left out. Values at their defaults are left out too, so that a key of a later
    version does not invalidate older runs.
    """
    values = relevant(to_dict(config), stage)
    default = Config(data=DataConfig(tasks=(TaskConfig(name="", kind=config.data.tasks[0].kind),)))
    changed = _without_defaults(values, relevant(to_dict(default), stage))
    tasks = [_without_defaults(task, _TASK_DEFAULTS) for task in values["data"]["tasks"]]
    text = json.dumps([_MEANINGS, *former_names([changed, tasks])], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def relevant(values: dict[str, Any], stage: str) -> dict[str, Any]:
    """Return the values that `digest` covers, those of the stages that a stage needs included."""
    data = {key: value for key, value in values["data"].items() if key not in ("loader", "root", "latents")}
    # The content of a listed split is part of the data's fingerprint.
    data["split"] = {key: value for key, value in data["split"].items() if key != "path"}
    data["tasks"] = [
        {key: value for key, value in task.items() if key != "path" and not (key in _LATER and value == _LATER[key])}
        for task in data["tasks"]
    ]
    parents = STAGE_NEEDS[values["data"]["tasks"][0].get("kind", "transient")].get(stage, ())
    stages = {
        name: _windows_per_step({key: value for key, value in section.items() if key not in _LENGTH})
        for name, section in values["stages"].items()
        if name in (*parents, stage)
    }
    others = [key for key, readers in _READ_BY.items() if stage not in readers]
    training = {key: value for key, value in values["training"].items() if key not in (*_LENGTH, *_MANNER, *others)}
    # The stage's value is the one in use; `training` only has the default.
    training = {key: value for key, value in training.items() if key != "accum_steps"}
    training |= {"batch_size": stages[stage]["batch_size"]}
    diffusion = values.get("diffusion", {})
    # The metric that selects the best checkpoint is part of the train state.
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
    """Return the share of trajectories that is held out of a predictor's training, if it is not 0."""
    return {"diffusion.fold": diffusion["fold"]} if diffusion.get("fold") else {}


def _windows_per_step(section: dict[str, Any]) -> dict[str, Any]:
    """Return the section with the windows of an optimizer step as `batch_size`.

    This number determines the windows; their division into micro-batches changes a step by round-off only.
    """
    others = {key: value for key, value in section.items() if key != "accum_steps"}
    return others | {"batch_size": section["batch_size"] * section["accum_steps"]}


def _without_defaults(values: dict[str, Any], defaults: dict[str, Any]) -> dict[str, Any]:
    """Return the values that differ from the defaults."""
    return {
        key: _without_defaults(value, defaults[key])
        if isinstance(value, dict) and isinstance(defaults.get(key), dict)
        else value
        for key, value in values.items()
        if key not in defaults or value != defaults[key]
    }
