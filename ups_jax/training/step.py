"""The train step: a jitted optimizer step on a batch; it donates the buffers of the old state."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PyTree

from ups_jax.config import Config, TrainingConfig
from ups_jax.core.deprecation import renamed_keywords
from ups_jax.core.rng import jax_stream_key
from ups_jax.core.xla import remat_options
from ups_jax.distributed.mesh import device_put_replicated, is_one_cpu, make_mesh, with_sharding
from ups_jax.losses import StageLoss, StepContext, per_task_metrics
from ups_jax.models import Batch
from ups_jax.models.parameter_sharing import ParameterSubset
from ups_jax.optim import ema_params, ema_update
from ups_jax.training.build import JointModel, as_joint_model, subset_without_codec, trains_on_latents
from ups_jax.training.gradients import make_gradient_fn
from ups_jax.training.multi_step import Batches, scan_steps
from ups_jax.training.stages import stage_spec
from ups_jax.training.stages.spec import Parents, StageModel
from ups_jax.training.state import SpikeMonitor, TrainState, accept_and_update_window, spike_metrics, state_scale

Metrics = dict[str, Array]


@dataclass(frozen=True, eq=False)
class TrainStep:
    """The compiled train step of a stage: `step(state, batch) -> (state, metrics)`.

    Attributes:
        compiled: The jitted function of (state, batch, parents), which donates the state.
        parents: Weights of the stages that this stage needs. They are arguments of the program, so that one compiled
            program fits all values.
    """

    compiled: jax.stages.Wrapped | jax.stages.Compiled
    parents: Parents

    def __call__(self, state: TrainState, batch: Batch | Batches) -> tuple[TrainState, Metrics]:
        """Return the next state and the metrics of the step; the buffers of `state` are donated."""
        return self.compiled(state, batch, self.parents)

    def lower(self, state: PyTree, batch: PyTree) -> jax.stages.Lowered:
        """Return the lowered program for arguments of these shapes, which can be compiled before the first call."""
        if not isinstance(self.compiled, jax.stages.Wrapped):
            raise TypeError(
                "this train step is already compiled; call `lower` on the step that `make_train_step` returns"
            )
        return self.compiled.lower(state, batch, self.parents)

    def compile(self, state: PyTree, batch: PyTree, options: Mapping[str, str | bool] | None = None) -> TrainStep:
        """Return the step, compiled for arguments of these shapes with additional XLA compiler options."""
        return replace(self, compiled=self.lower(state, batch).compile(dict(options or {})))

    @property
    def hlo_text(self) -> str:
        """The compiled program as HLO text; TypeError if this step is not a result of `compile`."""
        if not isinstance(self.compiled, jax.stages.Compiled):
            raise TypeError("this train step is not compiled yet; call `compile` first")
        return str(self.compiled.as_text())


@renamed_keywords(at_once="steps_per_call")
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

    A step with a non-finite loss or gradient, or with a loss spike, leaves parameters, optimizer and average unchanged
    and increments the count of skipped steps or of spikes. The new state is sharded over the mesh of `cfg.parallel`.

    Args:
        model: Model of the stage; a `JointModel` for several tasks, whose step is compiled once per task. Parameters
            that the task of a batch does not use stay unchanged in a step, and so does a frozen codec.
        steps_per_epoch: Steps of an epoch; required if a loss weight depends on the epoch.
        micro_batches: Number of micro-batches over which the gradient is accumulated; `accum_steps` of the stage by
            default.
        parents: Weights of the stages that this stage needs, by stage.
        losses: Results of `JointModel.losses`, if the caller has them already.
        steps_per_call: Maximum number of steps per call; with more than 1, a call takes the result of `stack_batches`.
    """
    spec, settings, joint = stage_spec(stage), getattr(cfg.stages, stage), as_joint_model(model)
    mesh = make_mesh(cfg.parallel)
    if micro_batches is None:
        micro_batches = settings.accum_steps
    gradients = [
        make_gradient_fn(loss, micro_batches, spec.draw(task_model, cfg), mesh)
        for loss, task_model in zip(losses or joint.losses(spec, cfg), joint.models, strict=True)
    ]
    subsets = (
        [subset_without_codec(spec, joint.models[0], cfg)]
        if trains_on_latents(cfg, stage)
        else joint.parameter_subsets()
    )
    uses_epoch = steps_per_epoch is not None and spec.depends_on_epoch(cfg)

    def train_step(state: TrainState, batch: Batch, parents: Parents) -> tuple[TrainState, Metrics]:
        key = jax.random.fold_in(jax_stream_key(state.rng, "loss"), state.step)
        context = StepContext(
            epoch=state.step / steps_per_epoch if uses_epoch else None,
            parents=parents,
            scale=state_scale(state),
            target=ema_params(state.params, state.ema, settings.ema_decay) if spec.uses_ema_target else None,
        )
        (loss, terms), gradient = gradients[batch.task](state.params, batch, key, context)
        update = StateUpdate(tx, settings.ema_decay, cfg.training, subsets[batch.task], branch=is_one_cpu(mesh))
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
class StateUpdate:
    """The rule that computes the next train state from a loss and its gradient.

    Attributes:
        ema_decay: Decay of the average, None for the power-function average.
        training: Training section of the configuration, with the criterion for spikes.
        subset: The parameters that the batch's task trains, and the frozen parameters. Frozen parameters and their
            optimizer state stay unchanged; without this rule, momentum would change them.
        branch: Whether a skipped step avoids the optimizer's computation by `lax.cond`; otherwise every step computes
            the update and selects old or new leaves. A branch is faster on a single CPU device. With several devices it
            would contain their communication, and on a GPU it would synchronise with the host.
    """

    tx: optax.GradientTransformation
    ema_decay: float | None
    training: TrainingConfig
    subset: ParameterSubset
    branch: bool

    def apply(self, state: TrainState, loss: Float[Array, ""], gradient: PyTree) -> tuple[TrainState, Metrics]:
        """Return the next state and the metrics of the step; a skipped step changes only the counters."""
        grad_norm = optax.tree.norm(gradient)
        finite = jnp.isfinite(loss) & jnp.isfinite(grad_norm)
        window = state.monitor.spikes if isinstance(state.monitor, SpikeMonitor) else None
        accepted, window = accept_and_update_window(window, loss, finite, self.training)
        old = state.params, state.opt_state, state.ema
        if self.branch:
            params, opt_state, ema = jax.lax.cond(accepted, self._optimizer_step, lambda old, _: old, old, gradient)
        else:
            new = self._optimizer_step(old, gradient)
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

    def _optimizer_step(
        self, old: tuple[PyTree, PyTree, optax.EmaState], gradient: PyTree
    ) -> tuple[PyTree, PyTree, optax.EmaState]:
        """Return parameters, optimizer state and average after an optimizer step; `old` are those before the step."""
        before, opt_before, ema = old
        with jax.named_scope("optimizer"):
            updates, opt_state = self.tx.update(gradient, opt_before, before)
            params = optax.apply_updates(before, updates)
            params, opt_state = self._keep_frozen((params, opt_state), (before, opt_before))
        with jax.named_scope("average"):
            return params, opt_state, ema_update(params, ema, self.ema_decay)

    def _keep_frozen(self, new: PyTree, old: PyTree) -> PyTree:
        """Return `new`, with the leaves of frozen parameters from `old`."""
        if not self.subset.frozen:
            return new
        return jax.tree_util.tree_map_with_path(
            lambda path, fresh, stale: stale if self.subset.is_frozen(path) else fresh, new, old
        )
