"""The stage that distils the corrector (teacher) into a consistency model (student), which samples in 1 or 2 steps."""

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
from ups_jax.losses import distillation_draws, distillation_losses, level_count_schedule
from ups_jax.models import Batch, Simulator, SteadySimulator
from ups_jax.models.corrector import Corrector, CorrectorWeights
from ups_jax.rollout.flow_sampler import sample_distilled, sample_error
from ups_jax.training.stages import corrector_validation
from ups_jax.training.stages.diffusion_residual import corrector_model, corrector_weights, init_corrector
from ups_jax.training.stages.spec import Parents, StageSpec, Validate
from ups_jax.training.stages.validation_groups import mean_over_groups
from ups_jax.training.state import ScaledState, TrainState

# Root mean square of the student's samples, relative to the teacher's, below which the student has collapsed.
MIN_SAMPLE_SIZE = 0.5


def _build_model(cfg: Config, task: Task) -> Corrector:
    if cfg.diffusion.objective == "regression":
        raise ConfigError(
            "diffusion.objective=regression: this corrector already needs a single step only and cannot be distilled; "
            "set diffusion.objective=flow, or disable the stage consistency_distill"
        )
    return corrector_model(cfg, task)


def _init_from_parents(
    model: Corrector, cfg: Config, parents: Parents, state: TrainState, batches: Iterator[Batch]
) -> TrainState:
    """Return the state with the teacher's parameters and scale, as copies, because the train step donates its state."""
    if not isinstance(state, ScaledState):
        raise TypeError("the stage consistency_distill requires a ScaledState; create it with init_state(stage=...)")
    teacher: CorrectorWeights = parents[TEACHER]
    return replace(state, params=jax.tree.map(jnp.copy, teacher.params), scale=jnp.copy(teacher.scale))


def distance_to_teacher(
    model: Corrector,
    weights: CorrectorWeights,
    teacher: CorrectorWeights,
    predictor: Simulator | SteadySimulator,
    predictor_params: PyTree,
    segments: corrector_validation.ValidationSegments,
) -> dict[str, Float[Array, ""]]:
    """Compare samples of the student and of the teacher that are drawn with the same noise, on normalised fields.

    Args:
        weights: Weights of the student.
        teacher: Weights of the teacher.

    Returns:
        `distance`, the mean square difference relative to the mean square of the teacher's samples, and `size`, the
        root mean square of the student's samples relative to that of the teacher's samples.
    """
    inputs, _ = corrector_validation.first_inputs_and_prediction(predictor, predictor_params, segments)
    teacher_samples = sample_error(model, teacher, segments.key, inputs)
    student_samples = sample_distilled(model, weights, segments.key, inputs)
    power = jnp.mean(jnp.square(teacher_samples))
    return {
        "distance": jnp.mean(jnp.square(student_samples - teacher_samples)) / power,
        "size": jnp.sqrt(jnp.mean(jnp.square(student_samples)) / power),
    }


def _make_validation(model: Corrector, dataset: Dataset, cfg: Config, parents: Parents) -> Validate:
    """Return the function from the student's weights to the distance from the teacher and the errors of rollouts.

    The rollouts add a sample of the student at every step. Errors with samples of the teacher have the prefix
    `teacher/`, errors without correction `alone/`.
    """
    segments = corrector_validation.validation_segments(dataset, cfg)
    predictor = corrector_validation.predictor_model(cfg, model.task)
    predictor_stage = corrector_validation.predictor_stage(model.task.kind)

    @jax.jit
    def measure_teacher(parents: Parents, segments: corrector_validation.ValidationSegments) -> dict[str, Array]:
        errors = corrector_validation.corrected_metrics(
            model, parents[TEACHER], predictor, parents[predictor_stage], segments, sample_error
        )
        return {name if name.startswith("alone/") else f"teacher/{name}": value for name, value in errors.items()}

    @jax.jit
    def measure_student(
        weights: CorrectorWeights, parents: Parents, segments: corrector_validation.ValidationSegments
    ) -> dict[str, Array]:
        params = parents[predictor_stage]
        errors = corrector_validation.corrected_metrics(model, weights, predictor, params, segments, sample_distilled)
        return {name: errors[name] for name in errors if not name.startswith("alone/")} | distance_to_teacher(
            model, weights, parents[TEACHER], predictor, params, segments
        )

    # The teacher is constant: it is measured once.
    teacher_metrics: dict[str, float] = {}

    def validate(weights: CorrectorWeights) -> dict[str, float]:
        if not teacher_metrics:
            teacher_metrics.update(mean_over_groups(lambda group: measure_teacher(parents, group), segments()))
        return teacher_metrics | mean_over_groups(lambda group: measure_student(weights, parents, group), segments())

    return validate


def collapse_warning(values: Mapping[str, float]) -> str | None:
    """Return a message if the student's samples are much smaller than the teacher's (metric `size`), otherwise None."""
    if values["size"] >= MIN_SAMPLE_SIZE:
        return None
    return (
        f"the distilled corrector has collapsed: its samples have {values['size']:.2g} times the size of its teacher's "
        "samples; lower lr or weight_decay in stages.consistency_distill.optimizer, or train the stage for longer, in "
        "a new run directory"
    )


STAGE = StageSpec(
    name="consistency_distill",
    task_kinds=("transient", "steady"),
    model=_build_model,
    init=init_corrector,
    losses=lambda model, cfg: distillation_losses(model, corrector_validation.predictor_model(cfg, model.task), cfg),
    draw=lambda model, cfg: distillation_draws(model, corrector_validation.predictor_model(cfg, model.task), cfg),
    validate=_make_validation,
    selection_metric=lambda _cfg: "distance",
    target_metric=lambda cfg: cfg.stages.consistency_distill.target_loss,
    has_scale=True,
    uses_ema_target=True,
    init_from_parents=_init_from_parents,
    build_weights=corrector_weights,
    uses_term_weights=False,
    depends_on_epoch=lambda cfg: len(level_count_schedule(cfg)) > 1,
    check_metrics=collapse_warning,
)
