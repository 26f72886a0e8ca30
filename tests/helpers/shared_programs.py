"""A fixture that lets trainings in one process share traced and compiled functions.

`train` builds initial state, step and validation in each call. Tracing and lowering them takes seconds, even if the
compiled program is in JAX's cache. With `sharing`, each is built once for everything that it depends on. The rest of a
training, and all that it reads from its directory, is unchanged.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterator
from functools import cached_property
from typing import Any

import jax
import pytest

from ups_jax.config import Config, StageConfig, to_dict
from ups_jax.inference.chunked_rollout import ChunkedRollout
from ups_jax.optim import build_optimizer
from ups_jax.trainer import stage_run, timing
from ups_jax.trainer import train as training
from ups_jax.training.build import as_joint_model, joint_validation, make_init_state
from ups_jax.training.step import TrainStep, make_train_step

# A small model, an optimizer that compiles fast, and a rate that is the same in runs of every length.
SMALL_MODEL = ["operator.spectral.depth=1", "operator.spectral.hidden_dim=8", "latent.dim=4", "optimizer.name=adamw",
               "scheduler.name=constant", "scheduler.warmup=0"]  # fmt: skip
LENGTH = ("epochs", "steps", "patience", "patience_steps", "max_seconds", "max_skips", "eval_every")
# Sections and keys on which no function depends: the seed is in the key of the state, determinism in XLA's flags.
_OUTSIDE = ("logging", "checkpoint", "seed", "deterministic")
_MADE: dict[Any, Any] = {}


def settings_key(cfg: Config, stage: str, *left_out: str) -> str:
    """Return all settings that the functions of a stage can depend on as JSON, without the sections `left_out`."""
    values = to_dict(cfg)
    values = {key: value for key, value in values.items() if key not in (*_OUTSIDE, *left_out)}
    values["data"] = {key: value for key, value in values["data"].items() if key not in ("root", "latents", "loader")}
    values["training"] = {key: value for key, value in values["training"].items() if key not in LENGTH}
    values["stages"] = {key: value for key, value in values["stages"][stage].items() if key not in LENGTH}
    return json.dumps(values, sort_keys=True, default=str)


def once(key: Any, make: Any) -> Any:
    """Return the value that was first made for a key in this process."""
    if key not in _MADE:
        _MADE[key] = make()
    return _MADE[key]


def optimizer(settings: StageConfig, total_steps: int, steps_per_epoch: int) -> Any:
    """Return `build_optimizer` of equal settings as one object; with a constant rate, for every run length."""
    constant = settings.scheduler.name == "constant" and settings.scheduler.warmup == 0
    length = None if constant else (total_steps, steps_per_epoch)
    values = (settings.optimizer, settings.scheduler, settings.grad_clip, length)
    return once(("optimizer", repr(values)), lambda: build_optimizer(settings, total_steps, steps_per_epoch))


def state_function(model: Any, tx: Any, *, stage: str = "operator", cfg: Config | None = None) -> Any:
    """Return `make_init_state`, traced and compiled once for a model and an optimizer."""
    settings = None if cfg is None else settings_key(cfg, stage, "evaluation")
    key = ("state", repr(as_joint_model(model).models), id(tx), stage, settings)
    # The optimizer is kept alive, because its `id` is a part of keys.
    new_state = once(key, lambda: (tx, make_init_state(model, tx, stage=stage, cfg=cfg)))[1]
    # Committed to its device like a restored state, so that both use one program of the step.
    device = None if jax.device_count() > 1 else jax.devices()[0]
    return new_state if device is None else lambda key, batch: jax.device_put(new_state(key, batch), device)


def state(model: Any, tx: Any, batch: Any, key: Any, *, stage: str = "operator", cfg: Config | None = None) -> Any:
    """Return `init_state`, traced and compiled once for a model and an optimizer."""
    return state_function(model, tx, stage=stage, cfg=cfg)(key, batch)


def train_step(model: Any, tx: Any, cfg: Config, *, stage: str = "operator", **options: Any) -> TrainStep:
    """Return `make_train_step` of equal arguments as one object; `losses` must be those of the model."""
    if options.get("parents"):
        return make_train_step(model, tx, cfg, stage=stage, **options)
    bound = inspect.signature(make_train_step).bind(model, tx, cfg, stage=stage, **options)
    bound.apply_defaults()
    arguments = {name: value for name, value in bound.kwargs.items() if name not in ("losses", "parents")}
    arguments["micro_batches"] = arguments["micro_batches"] or getattr(cfg.stages, stage).accum_steps
    key = (
        "step",
        repr(as_joint_model(model).models),
        id(tx),
        stage,
        repr(sorted(arguments.items())),
        settings_key(cfg, stage, "evaluation"),
    )
    return once(key, lambda: (tx, make_train_step(model, tx, cfg, stage=stage, **options)))[1]


def validation(model: Any, spec: Any, data: Any, cfg: Config, parents: Any) -> Any:
    """Return `joint_validation` of equal arguments as one object, for stages without parents."""
    if parents:
        return joint_validation(model, spec, data, cfg, parents)
    key = ("validation", repr(model.models), spec.validate, data.fingerprint, settings_key(cfg, spec.name))
    return once(key, lambda: joint_validation(model, spec, data, cfg, parents))


def _of_model(name: str, make: Any) -> property:
    """Return a property whose compiled function rollouts of equal models share, unless they have a correction."""

    def shared(self: Any) -> Any:
        return make(self) if self.correction is not None else once((name, repr(self.model)), lambda: make(self))

    return property(shared)


def sharing() -> Iterator[None]:
    """Let the trainings and rollouts of a file share what they trace and compile: a fixture of that file."""
    with pytest.MonkeyPatch.context() as patch:
        for module in (stage_run, timing):
            patch.setattr(module, "build_optimizer", optimizer)
            patch.setattr(module, "make_train_step", train_step)
        patch.setattr(stage_run, "make_init_state", state_function)
        patch.setattr(timing, "init_state", state)
        patch.setattr(training, "joint_validation", validation)
        for name, value in [*vars(ChunkedRollout).items()]:
            if isinstance(value, cached_property):
                patch.setattr(ChunkedRollout, name, _of_model(name, value.func))
        yield
