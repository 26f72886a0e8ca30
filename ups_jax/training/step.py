"""The train step: one optimizer step of one batch, pure, compiled once, with the state donated."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PyTree

from ups_jax.config import Config, TrainingConfig
from ups_jax.core.rng import stream
from ups_jax.core.xla import remat_options
from ups_jax.distributed.mesh import device_put_replicated, is_one_cpu, make_mesh, with_sharding
from ups_jax.losses import StageLoss, StepContext, per_task_metrics
from ups_jax.models import Batch
from ups_jax.models.parameter_sharing import ParameterSubset
from ups_jax.optim import ema_params, ema_update
from ups_jax.training.build import JointModel, frozen_codec_subset, joint, trains_on_latents
from ups_jax.training.gradients import make_gradient_fn
from ups_jax.training.multi_step import Batches, scan_steps
from ups_jax.training.stages import stage_spec
from ups_jax.training.stages.spec import Parents, StageModel
from ups_jax.training.state import SpikeMonitor, TrainState, judge, spike_metrics, state_scale

Metrics = dict[str, Array]


@dataclass(frozen=True, eq=False)
class TrainStep:
    """The compiled train step of a stage: `step(state, batch) -> (state, metrics)`.

    Attributes:
        compiled: The jitted function of (state, batch, parents), which donates the state.
        parents: Weights of the stages that this stage needs: arguments of the program, not constants of it.
    """

    compiled: jax.stages.Wrapped | jax.stages.Compiled
    parents: Parents

    def __call__(self, state: TrainState, batch: Batch | Batches) -> tuple[TrainState, Metrics]:
        """Return the next state and the metrics of the step; the buffers of `state` are used up."""
        return self.compiled(state, batch, self.parents)

    def lower(self, state: PyTree, batch: PyTree) -> jax.stages.Lowered:
        """Return the program for arguments of these shapes, to be compiled ahead of its first call."""
        if not isinstance(self.compiled, jax.stages.Wrapped):
            raise TypeError("the step is compiled for its shapes already")
        return self.compiled.lower(state, batch, self.parents)

    def compile(self, state: PyTree, batch: PyTree, options: Mapping[str, str | bool] | None = None) -> TrainStep:
        """Return the step compiled for arguments of these shapes, with further compiler options."""
        return replace(self, compiled=self.lower(state, batch).compile(dict(options or {})))

    @property
    def text(self) -> str:
        """The compiled program of a step that `compile` returned, as XLA prints it."""
        if not isinstance(self.compiled, jax.stages.Compiled):
            raise TypeError("the step is not compiled yet; call `compile` first")
        return str(self.compiled.as_text())


def make_train_step(
    model: StageModel | JointModel,
    tx: optax.GradientTransformation,
    cfg: Config,
    *,
    stage: str = "operator",
    steps_per_epoch: int | None = None,
    micro_batches: int | None = None,
    parents: Parents | None = None,
    losses: Sequence[StageLoss] | None = None,
    steps_per_call: int = 1,
) -> TrainStep:
    """Return the train step of a stage, jitted, with the state donated.

    A non-finite loss or gradient leaves parameters, optimizer and average as they are and counts as skipped; a loss
    spike does the same and counts as such. The new state is sharded on the mesh of `cfg.parallel`.

    Args:
        model: Model of the stage; of several tasks a `JointModel`, whose step is compiled once per task. Parameters
            that a task does not use stay as they are in a step of that task, and so does a frozen codec.
        tx: Optimizer of the stage.
        cfg: Configuration.
        stage: Name of the stage.
        steps_per_epoch: Needed where the weight of a loss depends on the epoch.
        micro_batches: Groups of rows that the gradient is accumulated over; `accum_steps` of the stage by default.
        parents: Weights of the stages that this stage needs, by stage.
        losses: Loss of each task's model, where the caller has built them: `joint(model).losses(...)`.
        steps_per_call: Most steps that a call makes; with more than 1, it takes batches from `stack_batches`.
    """
    spec, settings, whole = stage_spec(stage), getattr(cfg.stages, stage), joint(model)
    mesh = make_mesh(cfg.parallel)
    groups = settings.accum_steps if micro_batches is None else micro_batches
    gradients = [
        make_gradient_fn(loss, groups, spec.draw(task_model, cfg), mesh)
        for loss, task_model in zip(losses or whole.losses(spec, cfg), whole.models, strict=True)
    ]
    parts = [frozen_codec_subset(spec, whole.models[0], cfg)] if trains_on_latents(cfg, stage) else whole.parts()
    uses_epoch = steps_per_epoch is not None and spec.depends_on_epoch(cfg)

    def train_step(state: TrainState, batch: Batch, parents: Parents) -> tuple[TrainState, Metrics]:
        key = jax.random.fold_in(stream(state.rng, "loss"), state.step)
        context = StepContext(
            epoch=state.step / steps_per_epoch if uses_epoch else None,
            parents=parents,
            scale=state_scale(state),
            target=ema_params(state.params, state.ema, settings.ema_decay) if spec.uses_ema_target else None,
        )
        (loss, terms), gradient = gradients[batch.task](state.params, batch, key, context)
        update = Update(tx, settings.ema_decay, cfg.training, parts[batch.task], branch=is_one_cpu(mesh))
        state, metrics = update.apply(state, loss, gradient)
        return with_sharding(mesh, state), metrics | per_task_metrics(terms, jnp.sum(batch.mask))

    return TrainStep(
        jax.jit(
            train_step if steps_per_call == 1 else scan_steps(train_step, steps_per_call),
            donate_argnums=0,
            compiler_options=remat_options(cfg.training.remat),
        ),
        device_put_replicated(mesh, parents or {}),
    )


@dataclass(frozen=True)
class Update:
    """What a step does with its gradient.

    Attributes:
        tx: Optimizer.
        ema_decay: Decay of the average, None for the power-function average.
        training: Which steps are left out.
        part: Parameters that the task of the batch uses; the others and their optimizer state stay as they are, since
            momentum alone would move them.
        branch: Whether the optimizer step is a branch of the program, which a step that is left out does not enter;
            otherwise it is always computed, and old or new is selected for each leaf. A branch is faster on one CPU
            device. With several devices it would hold their communication, and a GPU reads its condition on the host.
    """

    tx: optax.GradientTransformation
    ema_decay: float | None
    training: TrainingConfig
    part: ParameterSubset
    branch: bool

    def apply(self, state: TrainState, loss: Float[Array, ""], gradient: PyTree) -> tuple[TrainState, Metrics]:
        """Return the state after an optimizer step and its metrics; a step that is left out only counts."""
        grad_norm = optax.tree.norm(gradient)
        finite = jnp.isfinite(loss) & jnp.isfinite(grad_norm)
        window = state.monitor.spikes if isinstance(state.monitor, SpikeMonitor) else None
        accepted, window = judge(window, loss, finite, self.training)
        old = state.params, state.opt_state, state.ema
        if self.branch:
            params, opt_state, ema = jax.lax.cond(accepted, self._moved, lambda old, _: old, old, gradient)
        else:
            new = self._moved(old, gradient)
            params, opt_state, ema = jax.tree.map(lambda new, old: jnp.where(accepted, new, old), new, old)
        skip = jnp.where(finite, 0, 1).astype(jnp.int32)
        monitor = replace(
            state.monitor,
            skipped=state.monitor.skipped + skip,
            skipped_in_row=jnp.where(accepted, 0, state.monitor.skipped_in_row + skip),
            **({} if window is None else {"spikes": window}),
        )
        metrics = {
            "loss": loss,
            "grad_norm": grad_norm,
            "skipped": monitor.skipped,
            "skipped_in_row": monitor.skipped_in_row,
            **spike_metrics(window),
        }
        return replace(
            state, step=state.step + 1, params=params, opt_state=opt_state, ema=ema, monitor=monitor
        ), metrics

    def _moved(
        self, old: tuple[PyTree, PyTree, optax.EmaState], gradient: PyTree
    ) -> tuple[PyTree, PyTree, optax.EmaState]:
        """Return parameters, optimizer state and average after an optimizer step."""
        before, opt_before, ema = old
        with jax.named_scope("optimizer"):
            updates, opt_state = self.tx.update(gradient, opt_before, before)
            params = optax.apply_updates(before, updates)
            params, opt_state = self._unless_foreign((params, opt_state), (before, opt_before))
        with jax.named_scope("average"):
            return params, opt_state, ema_update(params, ema, self.ema_decay)

    def _unless_foreign(self, new: PyTree, old: PyTree) -> PyTree:
        """Return `new`, with the leaves of foreign parameters as they are in `old`."""
        if not self.part.frozen:
            return new
        return jax.tree_util.tree_map_with_path(
            lambda path, fresh, stale: stale if self.part.is_frozen(path) else fresh, new, old
        )
