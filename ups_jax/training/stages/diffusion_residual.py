"""The stage that trains the corrector: it models the distribution of the error of a frozen, trained predictor."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import islice

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key, PyTree

from ups_jax.config import Config
from ups_jax.core.rng import jax_stream_key
from ups_jax.core.task import Task
from ups_jax.data import Dataset
from ups_jax.losses import diffusion_draws, diffusion_losses, flow_draws, predictor_error_function
from ups_jax.models import Batch, conditions_of
from ups_jax.models.corrector import Corrector, CorrectorInputs, CorrectorWeights, corrector_architecture
from ups_jax.training.stages.corrector_validation import (
    corrected_metrics,
    predictor_model,
    predictor_stage,
    validation_segments,
)
from ups_jax.training.stages.options import check_widths, compute_dtype, matmul_precision, recomputes_blocks
from ups_jax.training.stages.spec import Parents, StageSpec, Validate
from ups_jax.training.stages.validation_groups import mean_over_groups
from ups_jax.training.state import ScaledState, TrainState

# Number of batches on which the scale of the error is measured, and the lower bound of the scale.
SCALE_BATCHES = 16
MIN_SCALE = 1e-7


def corrector_model(cfg: Config, task: Task) -> Corrector:
    """Return the corrector of a task; its architecture has the same type as the operator's."""
    architecture = corrector_architecture(cfg.operator, cfg.diffusion)
    check_widths(architecture, "diffusion")
    context = cfg.data.context if task.kind == "transient" else 1
    return Corrector(
        task,
        cfg.latent,
        architecture,
        cfg.diffusion,
        context,
        compute_dtype(cfg),
        recomputes_blocks(cfg),
        matmul_precision(cfg),
    )


def init_corrector(model: Corrector, key: Key[Array, ""], batch: Batch) -> PyTree:
    """Return the initial parameters of the corrector; only the shapes of the batch matter."""
    task = model.task
    rows, shape = batch.num_rows, task.shape
    # Channels of the input: context frames and predicted change, or input fields and solution.
    input_channels = len(task.inputs) or model.context * len(task.channels)
    inputs = CorrectorInputs(
        fields=jnp.zeros((rows, *shape, input_channels + len(task.channels))), cond=conditions_of(batch)
    )
    return model.init(key, jnp.zeros((rows, *shape, len(task.channels))), jnp.zeros(rows), inputs)["params"]


def corrector_weights(params: PyTree, scale: Float[Array, " c"] | None) -> CorrectorWeights:
    """Combine the parameters and the scale of a corrector into the weights that the samplers take.

    Raises:
        ValueError: `scale` is None.
    """
    if scale is None:
        raise ValueError("the weights of a corrector require the scale of its ScaledState, got None")
    return CorrectorWeights(params=params, scale=scale)


def measure_scale(
    model: Corrector, cfg: Config, parents: Parents, key: Key[Array, ""], batches: Iterator[Batch]
) -> Float[Array, " c"]:
    """Return the root mean square of the predictor's error in each channel, measured on training batches of the stage.

    Args:
        parents: Weights of the predictor, by the name of its stage.
        key: Key of the random numbers that the loss draws for a batch.
    """
    base = predictor_model(cfg, model.task)
    residual, draw = predictor_error_function(base, cfg.diffusion), flow_draws(model, base, cfg)

    @jax.jit
    def mean_square_error(params: PyTree, batch: Batch, key: Key[Array, ""]) -> Float[Array, " c"]:
        error = residual(params, draw(batch, key))[1]
        return jnp.square(error).mean(tuple(range(error.ndim - 1)))

    mean_squares = [
        mean_square_error(parents[predictor_stage(model.task.kind)], batch, jax.random.fold_in(key, number))
        for number, batch in enumerate(islice(batches, SCALE_BATCHES))
    ]
    return jnp.maximum(jnp.sqrt(jnp.stack(mean_squares).mean(0)), MIN_SCALE)


def _init_from_parents(
    model: Corrector, cfg: Config, parents: Parents, state: TrainState, batches: Iterator[Batch]
) -> TrainState:
    if not isinstance(state, ScaledState):
        raise TypeError("the stage diffusion_residual requires a ScaledState; create it with init_state(stage=...)")
    return replace(state, scale=measure_scale(model, cfg, parents, jax_stream_key(state.rng, "scale"), batches))


def _make_validation(model: Corrector, dataset: Dataset, cfg: Config, parents: Parents) -> Validate:
    """Return the function from weights to the errors with correction at every step, and with none (`alone/...`)."""
    segments = validation_segments(dataset, cfg)
    predictor = predictor_model(cfg, model.task)
    measure = jax.jit(lambda weights, params, segments: corrected_metrics(model, weights, predictor, params, segments))
    params = parents[predictor_stage(model.task.kind)]

    return lambda weights: mean_over_groups(lambda group: measure(weights, params, group), segments())


def selection_metric(cfg: Config) -> str:
    """Return the name of the metric, computed from corrected predictions, that selects the best checkpoint."""
    return "steady" if cfg.data.tasks[0].kind == "steady" else cfg.evaluation.metric


STAGE = StageSpec(
    name="diffusion_residual",
    task_kinds=("transient", "steady"),
    model=corrector_model,
    init=init_corrector,
    losses=lambda model, cfg: diffusion_losses(model, predictor_model(cfg, model.task), cfg),
    draw=lambda model, cfg: diffusion_draws(model, predictor_model(cfg, model.task), cfg),
    validate=_make_validation,
    selection_metric=selection_metric,
    has_scale=True,
    init_from_parents=_init_from_parents,
    build_weights=corrector_weights,
    uses_term_weights=False,
    depends_on_epoch=lambda _cfg: False,
)
