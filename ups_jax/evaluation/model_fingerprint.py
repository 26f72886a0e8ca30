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
    """Return a description of the architecture of one task's model, with a hash of the description as `digest`.

    The description has the configuration of operator and codec, and hashes of the normalization and of the parameters'
    shapes and types.

    Args:
        config: The configuration that the model was trained with.
        stage: The stage that trained the model.
        params: The parameters as a pytree.
    """
    values = to_dict(config)
    leaves = jax.tree_util.tree_leaves_with_path(params)
    shapes = {jax.tree_util.keystr(name): [list(leaf.shape), str(leaf.dtype)] for name, leaf in leaves}
    task_values = task.to_dict()
    scales = {key: task_values[key] for key in ("statistics", "coefficients", "inputs")}
    # `scale` belongs to the metrics, not to the model; older records do not have it.
    scales["statistics"] = {key: value for key, value in scales["statistics"].items() if key != "scale"}
    fingerprint = {
        "stage": stage,
        "model": values["operator"] | ({"diffusion": values["diffusion"]} if stage in STAGE_NEEDS["transient"] else {}),
        "codec": _codec_config(values["latent"], task),
        "context": config.data.context,
        "time_step": task.dt,
        "channels": list(task.channels),
        "normalizer": _short_hash(scales | {"scaling": config.data.normalize}),
        "parameters": _short_hash(shapes),
    }
    return fingerprint | {"digest": _short_hash(fingerprint)}


def _codec_config(latent: dict[str, Any], task: Task) -> dict[str, Any]:
    """Return the configuration `latent` of the codec without the keys that do not apply to the task.

    Keys that older versions lacked are left out at their default, so that the digests of older models stay valid.
    """
    later_defaults = {"pooling": "nodes", "neighbours": 0, "radius": None, "rounds": 1}
    if not task.scattered:
        return {key: value for key, value in latent.items() if key != "nodes" and key not in later_defaults}
    return {key: value for key, value in latent.items() if key not in later_defaults or value != later_defaults[key]}


def combined_fingerprint(fingerprints: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Combine the fingerprints of several tasks' models under one `digest`; return a single fingerprint unchanged.

    Args:
        fingerprints: The fingerprint of each task's model, by the name of the task.
    """
    if len(fingerprints) == 1:
        return dict(next(iter(fingerprints.values())))
    combined = {"tasks": {name: dict(values) for name, values in fingerprints.items()}}
    return combined | {"digest": _short_hash([[name, values["digest"]] for name, values in fingerprints.items()])}


def _short_hash(values: Any) -> str:
    """Return twelve hex digits of a hash of JSON values; the order of keys does not matter."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:12]
