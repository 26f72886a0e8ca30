"""A fixture that lets trainings of correctors in one process share traced and compiled functions.

`shared_programs` does this for stages without parents. Here the weights of the parents must be bit-identical as well.
The target of a stage is ignored, because no function depends on it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import shared_programs
from shared_programs import once, settings_key

from ups_jax.config import Config
from ups_jax.evaluation import evaluate_run
from ups_jax.inference import corrected, trained_model
from ups_jax.inference.corrected import CorrectedModel
from ups_jax.runs.best_weights import Weights, best_weights
from ups_jax.trainer import parents as parents_of_stages
from ups_jax.trainer import stage_run, timing
from ups_jax.trainer import train as training


def _fingerprint(parents: Any) -> str:
    leaves, structure = jax.tree.flatten(parents)
    content = hashlib.sha256(str(structure).encode())
    for leaf in leaves:
        content.update(np.asarray(leaf).tobytes())
    return content.hexdigest()


def _without_target(cfg: Config) -> Config:
    student = replace(cfg.stages.consistency_distill, target_loss=0.0)
    return replace(cfg, stages=replace(cfg.stages, consistency_distill=student))


def train_step(model: Any, tx: Any, cfg: Config, *, stage: str = "operator", **options: Any) -> Any:
    """Return `make_train_step` of equal arguments and parents as one object."""
    if not options.get("parents"):
        return shared_programs.train_step(model, tx, cfg, stage=stage, **options)
    others = {name: value for name, value in options.items() if name not in ("losses", "parents")}
    settings = settings_key(_without_target(cfg), stage, "evaluation")
    models = repr(shared_programs.as_joint_model(model).models)
    key = ("step", models, id(tx), stage, repr(sorted(others.items())), _fingerprint(options["parents"]), settings)
    # The optimizer is kept alive, because its `id` is a part of keys.
    return once(key, lambda: (tx, shared_programs.make_train_step(model, tx, cfg, stage=stage, **options)))[1]


def state_function(model: Any, tx: Any, *, stage: str = "operator", cfg: Any = None) -> Any:
    """Return `make_init_state`, traced and compiled once for a model and an optimizer."""
    return shared_programs.state_function(model, tx, stage=stage, cfg=None if cfg is None else _without_target(cfg))


def state(model: Any, tx: Any, batch: Any, key: Any, *, stage: str = "operator", cfg: Any = None) -> Any:
    """Return `init_state`, traced and compiled once for a model and an optimizer."""
    return state_function(model, tx, stage=stage, cfg=cfg)(key, batch)


def validation(model: Any, spec: Any, data: Any, cfg: Config, parents: Any) -> Any:
    """Return `joint_validation` of equal arguments and parents as one object."""
    settings = settings_key(_without_target(cfg), spec.name)
    key = ("validation", repr(model.models), spec.validate, data.fingerprint, _fingerprint(parents), settings)
    return once(key, lambda: shared_programs.joint_validation(model, spec, data, cfg, parents))


def _of_corrected(name: str) -> property:
    """Return a property whose compiled function corrected models with equal modules and settings share.

    Weights are arguments of these functions.
    """
    make = CorrectedModel.__dict__[name].func

    def shared(self: CorrectedModel) -> Any:
        models = repr((self.trained_model.model, self.corrector, self.corrector_weights.config.diffusion))
        key = (name, self.stage, self.correct_every, self.sampler_steps, models)
        return once(key, lambda: make(self))

    return property(shared)


def sharing() -> Iterator[None]:
    """Let the trainings and corrected models of a file share what they trace and compile: a fixture of that file."""
    for _ in shared_programs.sharing():
        with pytest.MonkeyPatch.context() as patch:
            for module in (stage_run, timing):
                patch.setattr(module, "make_train_step", train_step)
            patch.setattr(stage_run, "make_init_state", state_function)
            patch.setattr(timing, "init_state", state)
            patch.setattr(training, "joint_validation", validation)
            for name in ("_sampled_rollout", "_mean_rollout"):
                patch.setattr(CorrectedModel, name, _of_corrected(name))
            yield


def reading_once(path: Path) -> Iterator[None]:
    """Read the weights of a finished run, which no test changes, only once; weights of its copies are always read."""
    read: dict[str, Weights] = {}

    def weights(run: Path, stage: str) -> Weights:
        if run != path:
            return best_weights(run, stage)
        if stage not in read:
            read[stage] = best_weights(run, stage)
        return read[stage]

    with pytest.MonkeyPatch.context() as patch:
        for module in (evaluate_run, corrected, trained_model, parents_of_stages):
            patch.setattr(module, "best_weights", weights)
        yield
