"""The corrector's sampler in one or two steps: a student that begins as the corrector and is taught by it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from ups_jax.config import Config
from ups_jax.core.errors import ConfigError
from ups_jax.core.stage_names import TEACHER
from ups_jax.core.task import Task
from ups_jax.data import Dataset
from ups_jax.losses import distillation_draws, distillation_losses, level_counts
from ups_jax.models import Batch, Simulator, SteadySimulator
from ups_jax.models.corrector import Corrector, CorrectorWeights
from ups_jax.rollout.flow_sampler import sample, sample_distilled
from ups_jax.training.stages import corrector_validation
from ups_jax.training.stages.diffusion_residual import corrector_model, corrector_weights, init_corrector
from ups_jax.training.stages.spec import Parents, StageSpec, Validate
from ups_jax.training.state import ScaledState, TrainState

# Size of the student's samples, in that of the teacher's, below which the student has collapsed.
COLLAPSED = 0.5


def _model(cfg: Config, task: Task) -> Corrector:
    if cfg.diffusion.objective == "regression":
        raise ConfigError(
            "diffusion.objective is regression, which answers in one step already: there is nothing to distil; "
            "set it to flow, or leave the stage consistency_distill out"
        )
    return corrector_model(cfg, task)


def _begin(model: Corrector, cfg: Config, parents: Parents, state: TrainState, batches: Iterator[Batch]) -> TrainState:
    """The teacher's parameters and scale; copies, as a step uses its state up."""
    if not isinstance(state, ScaledState):
        raise TypeError("the state of a distillation has a scale")
    teacher: CorrectorWeights = parents[TEACHER]
    return replace(state, params=jax.tree.map(jnp.copy, teacher.params), scale=jnp.copy(teacher.scale))


def distances(
    model: Corrector,
    weights: CorrectorWeights,
    teacher: CorrectorWeights,
    base: Simulator | SteadySimulator,
    params: PyTree,
    held: corrector_validation.Held,
) -> dict[str, Float[Array, ""]]:
    """`distance`: mean square of the student's one step less the teacher's steps from the same noise, in units of the
    mean square of these; `size`: root mean square of the one in that of the other. In normalised fields."""
    given, _ = corrector_validation.predictions(base, params, held)
    theirs = sample(model, teacher, held.key, given)
    ours = sample_distilled(model, weights, held.key, given)
    power = jnp.mean(jnp.square(theirs))
    return {
        "distance": jnp.mean(jnp.square(ours - theirs)) / power,
        "size": jnp.sqrt(jnp.mean(jnp.square(ours)) / power),
    }


def _validate(model: Corrector, dataset: Dataset, cfg: Config, parents: Parents) -> Validate:
    """weights -> distance and size beside the teacher, and the errors of one rollout with samples of the student's at
    every step; as `teacher/...` those with the teacher's."""
    held, base = corrector_validation.held_out(dataset, cfg), corrector_validation.predictor_model(cfg, model.task)
    predictor = corrector_validation.predictor_stage(model.task.kind)

    @jax.jit
    def teachers(parents: Parents, held: corrector_validation.Held) -> dict[str, Array]:
        theirs = corrector_validation.corrected_metrics(model, parents[TEACHER], base, parents[predictor], held, sample)
        return {name if name.startswith("alone/") else f"teacher/{name}": value for name, value in theirs.items()}

    @jax.jit
    def students(weights: CorrectorWeights, parents: Parents, held: corrector_validation.Held) -> dict[str, Array]:
        params = parents[predictor]
        own = corrector_validation.corrected_metrics(model, weights, base, params, held, sample_distilled)
        return {name: own[name] for name in own if not name.startswith("alone/")} | distances(
            model, weights, parents[TEACHER], base, params, held
        )

    # The teacher stays as it is.
    known: dict[str, Array] = {}

    def validate(weights: CorrectorWeights) -> dict[str, float]:
        if not known:
            known.update(teachers(parents, held))
        found = known | students(weights, parents, held)
        return {name: float(value) for name, value in jax.device_get(found).items()}

    return validate


def collapse(values: Mapping[str, float]) -> str | None:
    """What is to be told of a student whose samples are far smaller than its teacher's."""
    if values["size"] >= COLLAPSED:
        return None
    return (
        f"the student's samples have {values['size']:.2g} of the size of its teacher's: it has collapsed; lower "
        "stages.consistency_distill.optimizer.lr or its weight_decay, or train it for longer, in another run directory"
    )


STAGE = StageSpec(
    name="consistency_distill",
    task_kinds=("transient", "steady"),
    model=_model,
    init=init_corrector,
    losses=lambda model, cfg: distillation_losses(model, corrector_validation.predictor_model(cfg, model.task), cfg),
    draw=lambda model, cfg: distillation_draws(model, corrector_validation.predictor_model(cfg, model.task), cfg),
    validate=_validate,
    selection_metric=lambda _cfg: "distance",
    target=lambda cfg: cfg.stages.consistency_distill.target_loss,
    scaled=True,
    uses_ema_target=True,
    begin=_begin,
    weights=corrector_weights,
    weighted=False,
    depends_on_epoch=lambda cfg: len(level_counts(cfg)) > 1,
    fault=collapse,
)
