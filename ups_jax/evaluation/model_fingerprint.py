"""What a trained model is, apart from the values of its parameters: a canonical fingerprint."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import jax

from ups_jax.config import Config, to_dict
from ups_jax.core.stage_names import STAGE_NEEDS
from ups_jax.core.task import Task


def architecture(config: Config, task: Task, stage: str, params: Any) -> dict[str, Any]:
    """The model's and the codec's configuration, hashes of the normaliser and of the parameters' shapes and types,
    and the `digest` of it all."""
    values = to_dict(config)
    leaves = jax.tree_util.tree_leaves_with_path(params)
    shapes = {jax.tree_util.keystr(name): [list(leaf.shape), str(leaf.dtype)] for name, leaf in leaves}
    facts = task.to_dict()
    scales = {key: facts[key] for key in ("statistics", "coefficients", "inputs")}
    found = {
        "stage": stage,
        "model": values["operator"] | ({"diffusion": values["diffusion"]} if stage in STAGE_NEEDS["transient"] else {}),
        "codec": _codec(values["latent"], task),
        "context": config.data.context,
        "time_step": task.dt,
        "channels": list(task.channels),
        "normalizer": _hash(scales | {"scaling": config.data.normalize}),
        "parameters": _hash(shapes),
    }
    return found | {"digest": _hash(found)}


def _codec(latent: dict[str, Any], task: Task) -> dict[str, Any]:
    """What the codec's configuration has for a task: of sets of points alone the nodes, and what came later than the
    fingerprints of older models, where it has another value than theirs."""
    older = {"pooling": "nodes", "neighbours": 0, "radius": None, "rounds": 1}
    if not task.scattered:
        return {key: value for key, value in latent.items() if key != "nodes" and key not in older}
    return {key: value for key, value in latent.items() if key not in older or value != older[key]}


def architecture_of_all(each: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """That of the models of several tasks, by their names, and a `digest` of them all; of one as it is."""
    if len(each) == 1:
        return dict(next(iter(each.values())))
    found = {"tasks": {name: dict(values) for name, values in each.items()}}
    return found | {"digest": _hash([[name, values["digest"]] for name, values in each.items()])}


def _hash(values: Any) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:12]
