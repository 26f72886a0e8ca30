"""Optimizers, learning-rate schedules and the parameter average, as optax transformations."""

from __future__ import annotations

from functools import partial

import optax

from ups_jax.config import StageConfig
from ups_jax.optim.ema import ema_init, ema_params, ema_update
from ups_jax.optim.muon import scale_by_muon
from ups_jax.optim.parameter_groups import add_decayed_weights, muon_labels, parameter_table
from ups_jax.optim.plateau import scale_by_plateau
from ups_jax.optim.schedules import build_schedule


def build_optimizer(config: StageConfig, total_steps: int, steps_per_epoch: int) -> optax.GradientTransformation:
    """Return the optimizer of a stage, with gradient clipping, weight decay and learning-rate schedule."""
    settings = config.optimizer
    b1, b2 = settings.betas
    adam = partial(optax.scale_by_adam, b1=b1, b2=b2, eps=settings.eps)
    decay = partial(add_decayed_weights, settings.weight_decay)

    def scale_by_lr(ratio: float = 1.0) -> optax.GradientTransformation:
        schedule = build_schedule(config.scheduler, settings.lr * ratio, total_steps, steps_per_epoch)
        return optax.scale_by_learning_rate(schedule)

    def muon() -> optax.GradientTransformation:
        orthogonal_step = scale_by_muon(settings.muon_momentum, settings.muon_ns_steps, settings.muon_scale)
        matrices = optax.chain(orthogonal_step, decay(), scale_by_lr())
        adamw = optax.chain(adam(), decay(), scale_by_lr(settings.adam_lr_ratio))
        return optax.partition({"muon": matrices, "adamw": adamw}, muon_labels)

    rules = {
        "adam": lambda: optax.chain(decay(), adam(), scale_by_lr()),
        "adamw": lambda: optax.chain(adam(), decay(), scale_by_lr()),
        "sgd": lambda: optax.chain(decay(), optax.trace(settings.momentum, nesterov=settings.nesterov), scale_by_lr()),
        "muon": muon,
    }
    clip = optax.identity() if config.grad_clip is None else optax.clip_by_global_norm(config.grad_clip)
    chain = [clip, rules[settings.name]()]
    if config.scheduler.name == "reducelronplateau":
        chain.append(scale_by_plateau())
    return optax.chain(*chain)
