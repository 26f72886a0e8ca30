"""Cache keys: two trainings or evaluations with equal keys have equal results. This module imports no jax."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from ups_jax.config import Config, to_dict
from ups_jax.core.files import RECORDED_PACKAGES, version

_ROOT = Path(__file__).resolve().parents[1]
# The packages whose code determines the result of a training, and the additional ones of an evaluation.
_TRAINING = (
    *("config", "core", "data", "distributed", "losses", "metrics", "models", "optim"),
    *("rollout", "runs", "simulate", "trainer", "training"),
)
_EVALUATION = (*_TRAINING, "inference", "evaluation")
_FILES = ("pipeline/train_all_stages.py", "cli/train.py", "cli/evaluate.py")
# Sections of the configuration that do not change the computed numbers.
_WITHOUT_EFFECT = ("logging", "runs", "gates", "pipeline", "checkpoint")
# Keys of `evaluation` that select the best checkpoint of a training.
_SELECTION = ("metric", "val_trajectories")


def json_digest(values: Any) -> str:
    """Return a digest of JSON values, as 16 hex digits; the order of dictionary keys does not matter."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]


def train_key(cfg: Config, stage: str, fingerprint: str, arguments: Sequence[str] = ()) -> str:
    """Return the cache key of a training.

    The key covers the configuration (except logging and paths), the data, the training code and package versions.

    Args:
        fingerprint: Fingerprint of the training data.
        arguments: Further arguments of the training command.
    """
    values = {key: value for key, value in to_dict(cfg).items() if key not in _WITHOUT_EFFECT}
    values["data"] = _without_paths(values["data"])
    values["evaluation"] = {key: values["evaluation"][key] for key in _SELECTION}
    return json_digest([values, stage, fingerprint, list(arguments), training_code_digest()])


def evaluation_key(checkpoints: Mapping[str, str], cfg: Config, section: str, fingerprint: str, device: str) -> str:
    """Return the cache key of an evaluation.

    The key covers the checkpoints, the evaluation settings, the data, the evaluation code and package versions.

    Args:
        checkpoints: Digest of each checkpoint of the training.
        section: `small` or `full`.
        fingerprint: Fingerprint of the evaluation data.
        device: The value of --eval-device.
    """
    values = to_dict(cfg)
    settings = [values["evaluation"], values["pipeline"][section], _without_paths(values["data"]), values["seed"]]
    return json_digest([dict(checkpoints), settings, section, fingerprint, device, evaluation_code_digest()])


def training_code_digest() -> str:
    """Return a digest of the code and the package versions that determine the result of a training."""
    return _code_digest(_TRAINING)


def evaluation_code_digest() -> str:
    """Return a digest of the code and the package versions that determine the result of an evaluation."""
    return _code_digest(_EVALUATION)


@cache
def _code_digest(packages: tuple[str, ...]) -> str:
    """Return a digest of the source files of subpackages such as `data`, and of the versions of all dependencies."""
    hashed = hashlib.sha256()
    files = [path for package in packages for path in (_ROOT / package).rglob("*.py")]
    files += [path for name in _FILES if (path := (_ROOT / name).resolve()).is_file()]
    for path in sorted(files):
        hashed.update(str(path.relative_to(_ROOT.parent)).encode() + b"\0" + path.read_bytes() + b"\0")
    hashed.update(repr([(name, version(name)) for name in RECORDED_PACKAGES]).encode())
    return hashed.hexdigest()[:16]


def _without_paths(data: Mapping[str, Any]) -> dict[str, Any]:
    """Return the configuration section `data` without file paths and loader settings."""
    remaining = {key: value for key, value in data.items() if key not in ("root", "loader", "latents")}
    return remaining | {
        "tasks": [{key: value for key, value in task.items() if key != "path"} for task in data["tasks"]]
    }
