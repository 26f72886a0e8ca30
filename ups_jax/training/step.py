"""The train step: one optimizer step of one batch, pure, compiled once, with the state donated."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array

from ups_jax.config import Config, TrainingConfig
from ups_jax.core.rng import stream
from ups_jax.core.xla import remat_options
from ups_jax.data.mixture import task_number
from ups_jax.distributed.mesh import keep_in_place, make_mesh, put_everywhere
from ups_jax.losses import Batch, per_task_metrics
from ups_jax.models.parameter_sharing import Part
from ups_jax.optim import ema_params, ema_update
from ups_jax.training.build import all_but_codec, holds_codec, joint
from ups_jax.training.gradients import gradients_of
from ups_jax.training.multi_step import Batches, several
from ups_jax.training.stages import stage_of
from ups_jax.training.stages.spec import Parents
from ups_jax.training.state import ScaledState, SpikeMonitor, TrainState, judge, spike_metrics

Metrics = dict[str, Array]
# Of one batch, or of those of several steps.
TrainStep = Callable[[TrainState, Any], tuple[TrainState, Metrics]]


def make_train_step(
    model: Any,
    tx: optax.GradientTransformation,
    cfg: Config,
    *,
    stage: str = "operator",
    steps_per_epoch: int | None = None,
    micro_batches: int | None = None,
    parents: Parents | None = None,
    at_once: int = 1,
) -> TrainStep:
    """`train_step(state, batch) -> (state, metrics)` of a stage; the old state's buffers are reused. The `parents` of a
    stage that needs others are arguments of the compiled program, not constants of it.

    `steps_per_epoch` (`Plan.steps_per_epoch`) is needed where a loss's weight depends on the epoch. The batch is one
    optimizer step's; its gradient is taken in `micro_batches` groups of rows, by default the stage's `accum_steps`. Of
    a `JointModel` it is of one task, for which the step is compiled apart, and what that task has no use for stays; so
    does the codec of a stage that is trained on latents. A
    non-finite loss or gradient leaves parameters, optimizer and average as they are and counts as skipped; a loss spike
    does the same and counts as such. The new state is sharded on the mesh of `cfg.parallel`.
    With `at_once` more than 1 it makes up to so many steps, of batches as `several_steps.together` has them.
    """
    spec, settings, whole = stage_of(stage), getattr(cfg.stages, stage), joint(model)
    mesh = make_mesh(cfg.parallel)
    groups = settings.accum_steps if micro_batches is None else micro_batches
    each = [
        gradients_of(losses, groups, spec.draw(own, cfg), mesh)
        for losses, own in zip(whole.losses(spec, cfg), whole.models, strict=True)
    ]
    an_epoch = steps_per_epoch if spec.by_epoch(cfg) else None
    step = step_of(
        lambda params, batch, *rest, **told: each[task_number(batch)](params, batch, *rest, **told),
        tx,
        settings.ema_decay,
        cfg.training,
        an_epoch,
        self_taught=spec.self_taught,
        parts=[all_but_codec(spec, whole.models[0], cfg)] if holds_codec(cfg, stage) else whole.parts(),
    )

    def in_place(state: TrainState, batch: Batch, *parents: Parents) -> tuple[TrainState, Metrics]:
        new, metrics = step(state, batch, *parents)
        return keep_in_place(mesh, new), metrics

    made = in_place if at_once == 1 else several(in_place, at_once)
    compiled = jax.jit(made, donate_argnums=0, compiler_options=remat_options(cfg.training.remat))
    return compiled if not parents else StepWithParents(compiled, put_everywhere(mesh, parents))


@dataclass(frozen=True)
class StepWithParents:
    """A compiled step of (state, batch, parents) as one of (state, batch)."""

    compiled: Any
    parents: Parents

    def __call__(self, state: TrainState, batch: Batch | Batches) -> tuple[TrainState, Metrics]:
        return self.compiled(state, batch, self.parents)

    def lower(self, state: TrainState, batch: Batch | Batches) -> Any:
        """The program, to be compiled ahead of its first call."""
        return self.compiled.lower(state, batch, self.parents)


def step_of(
    gradients_of_batch: Callable[..., Any],
    tx: optax.GradientTransformation,
    ema_decay: float | None,
    config: TrainingConfig,
    steps_per_epoch: int | None = None,
    *,
    self_taught: bool = False,
    parts: Sequence[Part] = (Part(),),
) -> Callable[..., tuple[TrainState, Metrics]]:
    """The uncompiled step of any stage; `gradients_of_batch` is `gradients_of` its losses. Given `steps_per_epoch`, it
    tells them the epoch; of parents, a scale and an average, it tells those that there are. What is foreign to the task
    of the batch by its entry of `parts`, optimizer's state included, stays as it is: it has no gradient, and momentum
    alone would move it.
    """

    def train_step(state: TrainState, batch: Batch, parents: Parents | None = None) -> tuple[TrainState, Metrics]:
        key = jax.random.fold_in(stream(state.rng, "loss"), state.step)
        told: dict[str, Any] = {} if steps_per_epoch is None else {"epoch": state.step / steps_per_epoch}
        if parents:
            told["parents"] = parents
        if isinstance(state, ScaledState):
            told["scale"] = state.scale
        if self_taught:
            told["target"] = ema_params(state.params, state.ema, ema_decay)
        (loss, terms), gradients = gradients_of_batch(state.params, batch, key, **told)
        with jax.named_scope("optimizer"):
            grad_norm = optax.tree.norm(gradients)
            updates, opt_state = tx.update(gradients, state.opt_state, state.params)
            params = optax.apply_updates(state.params, updates)
            part = parts[task_number(batch)]
            params, opt_state = _own(part, (params, opt_state), (state.params, state.opt_state))
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


def _own(part: Part, new: Any, old: Any) -> Any:
    """`new`, with the leaves of foreign parameters as they were."""
    if not part.foreign:
        return new
    return jax.tree_util.tree_map_with_path(lambda path, fresh, stale: stale if part.lacks(path) else fresh, new, old)


def _keep(accept: Array, new: Any, old: Any) -> Any:
    return jax.tree.map(lambda fresh, stale: jnp.where(accept, fresh, stale), new, old)
