"""A stage's optimizer as one optax chain: clip by global norm, then AdamW or Muon with AdamW for the rest."""

from __future__ import annotations

from typing import Any

import jax
import optax
from optax.contrib import MuonDimensionNumbers

from ups_jax.config import StageConfig
from ups_jax.optim.schedules import build_schedule


def build_optimizer(config: StageConfig, total_steps: int) -> optax.GradientTransformation:
    """The chain that `config` describes for a run of `total_steps` optimizer steps."""
    settings = config.optimizer
    schedule = build_schedule(config.scheduler, settings.lr, total_steps)
    b1, b2 = settings.betas
    rules = {
        "adamw": lambda: optax.adamw(schedule, b1=b1, b2=b2, eps=settings.eps, weight_decay=settings.weight_decay),
        "muon": lambda: optax.contrib.muon(
            schedule,
            ns_steps=settings.muon_ns_steps,
            beta=settings.muon_momentum,
            weight_decay=settings.weight_decay,
            adam_b1=b1,
            adam_b2=b2,
            adam_weight_decay=settings.weight_decay,
            adam_learning_rate=build_schedule(config.scheduler, settings.lr * settings.adam_lr_ratio, total_steps),
            muon_weight_dimension_numbers=muon_dimensions,
        ),
    }
    clip = optax.identity() if config.grad_clip is None else optax.clip_by_global_norm(config.grad_clip)
    return optax.chain(clip, rules[settings.name]())


def muon_dimensions(params: Any) -> Any:
    """For each parameter the (input, output) axes that Muon orthogonalises, or None where AdamW takes it.

    Muon: every matrix between hidden activations. AdamW: biases, norms, matrices that touch the field or the
    conditions (first stem layer, exits, modulation), as Muon's author advises for inputs and heads.
    """
    return jax.tree_util.tree_map_with_path(_dimensions, params)


_ADAM_MODULES = ("condition", "Modulation", "field_exit/GridConv_1", "feature_exit", "encoder/GridConv_0")


def _dimensions(path: tuple[Any, ...], leaf: Any) -> MuonDimensionNumbers | None:
    name = "/".join(str(part.key) for part in path)
    if not name.endswith(("kernel", "spectrum")) or any(module in name for module in _ADAM_MODULES):
        return None
    return MuonDimensionNumbers(leaf.ndim - 2, leaf.ndim - 1)
