"""The keys under which a training and an evaluation are found again: equal keys mean equal numbers. Imports no jax."""

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
# The packages whose code determines the result of a training, and those that an evaluation uses besides.
_TRAINING = (
    *("config", "core", "data", "distributed", "losses", "metrics", "models", "optim"),
    *("rollout", "runs", "simulate", "trainer", "training"),
)
_EVALUATION = (*_TRAINING, "inference", "evaluation")
_FILES = ("pipeline/train_all_stages.py", "cli/train.py", "cli/evaluate.py")
# What says how a run is kept, told and judged, not what it computes.
_NO_NUMBERS = ("logging", "runs", "gates", "pipeline", "checkpoint")
_SELECTION = ("metric", "val_trajectories")


def digest_of(values: Any) -> str:
    """Sixteen hex digits over JSON values, whatever the order of their keys."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]


def train_key(cfg: Config, stage: str, fingerprint: str, arguments: Sequence[str] = ()) -> str:
    """Of a training: its configuration but for logging and paths, the content of its data, the code that trains, and
    further arguments of the command."""
    values = {key: value for key, value in to_dict(cfg).items() if key not in _NO_NUMBERS}
    values["data"] = _without_paths(values["data"])
    values["evaluation"] = {key: values["evaluation"][key] for key in _SELECTION}
    return digest_of([values, stage, fingerprint, list(arguments), training_code_digest()])


def evaluation_key(checkpoints: Mapping[str, str], cfg: Config, section: str, fingerprint: str, device: str) -> str:
    """Of an evaluation: the checkpoints' digests, the configuration of the evaluation and of its `section` of the
    pipeline, the content of its data, the code that evaluates, and the device that was asked for."""
    values = to_dict(cfg)
    chosen = [values["evaluation"], values["pipeline"][section], _without_paths(values["data"]), values["seed"]]
    return digest_of([dict(checkpoints), chosen, section, fingerprint, device, evaluation_code_digest()])


def training_code_digest() -> str:
    """What the version of the code and of the packages is that train."""
    return _code(_TRAINING)


def evaluation_code_digest() -> str:
    """What the version of the code and of the packages is that evaluate."""
    return _code(_EVALUATION)


@cache
def _code(packages: tuple[str, ...]) -> str:
    hashed = hashlib.sha256()
    files = [path for package in packages for path in (_ROOT / package).rglob("*.py")]
    files += [path for name in _FILES if (path := (_ROOT / name).resolve()).is_file()]
    for path in sorted(files):
        hashed.update(str(path.relative_to(_ROOT.parent)).encode() + b"\0" + path.read_bytes() + b"\0")
    hashed.update(repr([(name, version(name)) for name in RECORDED_PACKAGES]).encode())
    return hashed.hexdigest()[:16]


def _without_paths(data: Mapping[str, Any]) -> dict[str, Any]:
    kept = {key: value for key, value in data.items() if key not in ("root", "loader", "latents")}
    return kept | {"tasks": [{key: value for key, value in task.items() if key != "path"} for task in data["tasks"]]}
