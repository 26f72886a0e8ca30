"""The train step: one optimizer step of one batch, pure, compiled once, with the state donated."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array

from ups_jax.compilation import remat_options
from ups_jax.config import Config, TrainingConfig
from ups_jax.losses import Batch, per_task_metrics, scheduled
from ups_jax.optim import ema_update
from ups_jax.training.accumulate import gradients_of
from ups_jax.training.spikes import judge, spike_metrics
from ups_jax.training.stages import stage_of
from ups_jax.training.state import SpikeMonitor, TrainState, stream

Metrics = dict[str, Array]
TrainStep = Callable[[TrainState, Batch], tuple[TrainState, Metrics]]


def make_train_step(
    model: Any,
    tx: optax.GradientTransformation,
    cfg: Config,
    *,
    stage: str = "operator",
    steps_per_epoch: int | None = None,
    micro_batches: int | None = None,
) -> TrainStep:
    """`train_step(state, batch) -> (state, metrics)` of a stage; the old state's buffers are reused.

    `steps_per_epoch` (`Plan.steps_per_epoch`) is needed where a loss's weight depends on the epoch. The batch is one
    optimizer step's; its gradient is taken in `micro_batches` groups of rows, by default the stage's `accum_steps`. A
    non-finite loss or gradient leaves parameters, optimizer and average as they are and counts as skipped; a loss spike
    does the same and counts as such.
    """
    spec, settings = stage_of(stage), getattr(cfg.stages, stage)
    gradients = gradients_of(
        spec.losses(model, cfg.training),
        settings.accum_steps if micro_batches is None else micro_batches,
        spec.draw(model, cfg.training),
    )
    an_epoch = steps_per_epoch if scheduled(cfg.training) else None
    step = step_of(gradients, tx, settings.ema_decay, cfg.training, an_epoch)
    return jax.jit(step, donate_argnums=0, compiler_options=remat_options(cfg.training.remat))


def step_of(
    gradients_of_batch: Callable[..., Any],
    tx: optax.GradientTransformation,
    ema_decay: float | None,
    config: TrainingConfig,
    steps_per_epoch: int | None = None,
) -> TrainStep:
    """The uncompiled step of any stage; `gradients_of_batch` is `gradients_of` its losses. Given `steps_per_epoch`, it
    tells them the epoch.
    """

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        key = jax.random.fold_in(stream(state.rng, "loss"), state.step)
        epoch = {} if steps_per_epoch is None else {"epoch": state.step / steps_per_epoch}
        (loss, terms), gradients = gradients_of_batch(state.params, batch, key, **epoch)
        with jax.named_scope("optimizer"):
            grad_norm = optax.tree.norm(gradients)
            updates, opt_state = tx.update(gradients, state.opt_state, state.params)
            params = optax.apply_updates(state.params, updates)
        with jax.named_scope("average"):
            ema = ema_update(params, state.ema, ema_decay)
        finite = jnp.isfinite(loss) & jnp.isfinite(grad_norm)
        window = state.monitor.spikes if isinstance(state.monitor, SpikeMonitor) else None
        accepted, window = judge(window, loss, finite, config)
        kept = _keep(accepted, (params, opt_state, ema), (state.params, state.opt_state, state.ema))
        skip = jnp.where(finite, 0, 1).astype(jnp.int32)
        monitor = replace(
            state.monitor,
            skipped=state.monitor.skipped + skip,
            skipped_in_row=jnp.where(accepted, 0, state.monitor.skipped_in_row + skip),
            **({} if window is None else {"spikes": window}),
        )
        metrics = {
            "loss": loss,
            **per_task_metrics(terms, jnp.sum(batch["mask"])),
            "grad_norm": grad_norm,
            "skipped": monitor.skipped,
            "skipped_in_row": monitor.skipped_in_row,
            **spike_metrics(window),
        }
        params, opt_state, ema = kept
        new = replace(state, step=state.step + 1, params=params, opt_state=opt_state, ema=ema, monitor=monitor)
        return new, metrics

    return train_step


def _keep(accept: Array, new: Any, old: Any) -> Any:
    return jax.tree.map(lambda fresh, stale: jnp.where(accept, fresh, stale), new, old)
