"""A stage's optimizer as one optax chain: clip by global norm, then AdamW, or Muon with AdamW for the rest."""

from __future__ import annotations

from typing import Any

import jax
import optax

from ups_jax.config import StageConfig
from ups_jax.optim.muon import scale_by_muon
from ups_jax.optim.schedules import build_schedule


def build_optimizer(config: StageConfig, total_steps: int) -> optax.GradientTransformation:
    """The chain that `config` describes for a run of `total_steps` optimizer steps."""
    settings = config.optimizer
    b1, b2 = settings.betas

    def adamw(learning_rate: float) -> optax.GradientTransformation:
        schedule = build_schedule(config.scheduler, learning_rate, total_steps)
        return optax.adamw(schedule, b1=b1, b2=b2, eps=settings.eps, weight_decay=settings.weight_decay)

    def muon() -> optax.GradientTransformation:
        matrices = optax.chain(
            scale_by_muon(settings.muon_momentum, settings.muon_ns_steps),
            optax.add_decayed_weights(settings.weight_decay),
            optax.scale_by_learning_rate(build_schedule(config.scheduler, settings.lr, total_steps)),
        )
        return optax.partition({"muon": matrices, "adamw": adamw(settings.lr * settings.adam_lr_ratio)}, muon_labels)

    rules = {"adamw": lambda: adamw(settings.lr), "muon": muon}
    clip = optax.identity() if config.grad_clip is None else optax.clip_by_global_norm(config.grad_clip)
    return optax.chain(clip, rules[settings.name]())


def muon_labels(params: Any) -> Any:
    """`muon` for every matrix between hidden activations, `adamw` for the rest.

    The rest: biases, the spectral weights (each mode sees few samples a step; Muon on them measured worse), and the
    matrices that write the field or read the conditions, as Muon's author advises for heads.
    """
    return jax.tree_util.tree_map_with_path(_label, params)


# Path elements of the matrices that are inputs of conditions or outputs.
_ADAMW = {"condition", "modulation", "write"}


def _label(path: tuple[Any, ...], leaf: Any) -> str:
    names = [str(part.key) for part in path]
    return "muon" if names[-1] == "kernel" and leaf.ndim >= 2 and _ADAMW.isdisjoint(names) else "adamw"
