"""The values of a configuration that determine the results of a run, and a hash of them."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from pydantic import TypeAdapter

from ups_jax.config.renamed_keys import with_former_names
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
# Keys of `training` that have another meaning than in earlier versions, and what changed. Only the digests of runs that
# set such a key differ from those of earlier versions.
_REVISED = {"lambda_spectral_bands": "wavenumbers 0 to 3, 4 to 11, 12 and above"}
# Keys of a task that later versions added; at their defaults they do not change the digest of older runs.
_LATER = {"solution": "stored", "steady_tolerance": 0.01}
_TASK_DEFAULTS = TypeAdapter(TaskConfig).dump_python(TaskConfig(name=""), mode="json")


def digest(config: Config, stage: str) -> str:
    """Return a hash, in twelve hex digits, of all values that determine the results of a stage.

    Run length, logging and paths are left out. Values at their defaults are left out too: a key that a later version
    adds does not change the hash of older runs.
    """
    values = relevant_values(to_dict(config), stage)
    default = Config(data=DataConfig(tasks=(TaskConfig(name="", kind=config.data.tasks[0].kind),)))
    changed = _without_defaults(values, relevant_values(to_dict(default), stage))
    tasks = [_without_defaults(task, _TASK_DEFAULTS) for task in values["data"]["tasks"]]
    revisions = {key: revision for key, revision in _REVISED.items() if key in changed.get("training", {})}
    parts = [_MEANINGS, *with_former_names([changed, tasks]), *([revisions] if revisions else [])]
    text = json.dumps(parts, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def relevant_values(values: dict[str, Any], stage: str) -> dict[str, Any]:
    """Return the configuration values that determine the results of a stage and of the stages that it needs."""
    data = {key: value for key, value in values["data"].items() if key not in ("loader", "root", "latents")}
    # The content of a listed split is part of the data's fingerprint.
    data["split"] = {key: value for key, value in data["split"].items() if key != "path"}
    data["tasks"] = [
        {key: value for key, value in task.items() if key != "path" and not (key in _LATER and value == _LATER[key])}
        for task in data["tasks"]
    ]
    parents = STAGE_NEEDS[values["data"]["tasks"][0].get("kind", "transient")].get(stage, ())
    stages = {
        name: _without_accumulation({key: value for key, value in section.items() if key not in _LENGTH})
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
    } | ({"diffusion": diffusion} if parents else _fold_if_set(diffusion))


def _fold_if_set(diffusion: dict[str, Any]) -> dict[str, Any]:
    """Return `diffusion.fold`, the share of trajectories held out of a predictor's training, by its key, unless 0."""
    return {"diffusion.fold": diffusion["fold"]} if diffusion.get("fold") else {}


def _without_accumulation(section: dict[str, Any]) -> dict[str, Any]:
    """Return a stage's section with `batch_size` multiplied by `accum_steps`, and without `accum_steps`.

    The division of the same windows into micro-batches changes a step by round-off only.
    """
    others = {key: value for key, value in section.items() if key != "accum_steps"}
    return others | {"batch_size": section["batch_size"] * section["accum_steps"]}


def _without_defaults(values: dict[str, Any], defaults: dict[str, Any]) -> dict[str, Any]:
    """Return the values that differ from the defaults, also within nested sections."""
    return {
        key: _without_defaults(value, defaults[key])
        if isinstance(value, dict) and isinstance(defaults.get(key), dict)
        else value
        for key, value in values.items()
        if key not in defaults or value != defaults[key]
    }
