"""Fingerprints of a model's architecture, which do not depend on the values of its parameters."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import jax

from ups_jax.config import Config, to_dict
from ups_jax.core.stage_names import STAGE_NEEDS
from ups_jax.core.task import Task


def architecture_fingerprint(config: Config, task: Task, stage: str, params: Any) -> dict[str, Any]:
    """Return a description of the model of one task, with a hash of it under the key `digest`.

    It contains the configuration of operator and codec, and hashes of the normalization and of the shapes and types of
    the parameters.

    Args:
        config: The configuration that the model was trained with.
        task: The task of the model.
        stage: The stage that trained the model.
        params: The parameters as a pytree.
    """
    values = to_dict(config)
    leaves = jax.tree_util.tree_leaves_with_path(params)
    shapes = {jax.tree_util.keystr(name): [list(leaf.shape), str(leaf.dtype)] for name, leaf in leaves}
    task_values = task.to_dict()
    scales = {key: task_values[key] for key in ("statistics", "coefficients", "inputs")}
    fingerprint = {
        "stage": stage,
        "model": values["operator"] | ({"diffusion": values["diffusion"]} if stage in STAGE_NEEDS["transient"] else {}),
        "codec": _codec_values(values["latent"], task),
        "context": config.data.context,
        "time_step": task.dt,
        "channels": list(task.channels),
        "normalizer": _hash(scales | {"scaling": config.data.normalize}),
        "parameters": _hash(shapes),
    }
    return fingerprint | {"digest": _hash(fingerprint)}


def _codec_values(latent: dict[str, Any], task: Task) -> dict[str, Any]:
    """Return the entries of the codec's configuration that apply to a task.

    Keys that were added later are left out if they have their default, so that the digests of older models stay valid.
    """
    later_defaults = {"pooling": "nodes", "neighbours": 0, "radius": None, "rounds": 1}
    if not task.scattered:
        return {key: value for key, value in latent.items() if key != "nodes" and key not in later_defaults}
    return {key: value for key, value in latent.items() if key not in later_defaults or value != later_defaults[key]}


def combined_fingerprint(fingerprints: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Return the fingerprint of the models of several tasks, with a common `digest`; a single one is unchanged.

    Args:
        fingerprints: The fingerprint of each task's model, by the name of the task.
    """
    if len(fingerprints) == 1:
        return dict(next(iter(fingerprints.values())))
    combined = {"tasks": {name: dict(values) for name, values in fingerprints.items()}}
    return combined | {"digest": _hash([[name, values["digest"]] for name, values in fingerprints.items()])}


def _hash(values: Any) -> str:
    """Return twelve hex digits of a hash of JSON values, independent of the order of keys."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:12]
