"""The corrector: what a trained predictor gets wrong, as a distribution, learned on frozen averaged weights of it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import islice

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key, PyTree

from ups_jax.config import Config
from ups_jax.core.rng import stream
from ups_jax.core.task import Task
from ups_jax.data import Dataset
from ups_jax.losses import diffusion_draws, diffusion_losses, flow_draws, predictor_residual
from ups_jax.models import Batch, conditions_of
from ups_jax.models.corrector import Corrector, CorrectorInputs, CorrectorWeights, corrector_architecture
from ups_jax.training.stages.corrector_validation import corrected_metrics, held_out, predictor_model, predictor_stage
from ups_jax.training.stages.options import check_widths, compute_dtype, products, remat
from ups_jax.training.stages.spec import Parents, StageSpec, Validate
from ups_jax.training.state import ScaledState, TrainState

# Batches of the stage that the scale of the error is measured on, and what it is at the least.
SCALE_BATCHES = 16
MIN_SCALE = 1e-7


def corrector_model(cfg: Config, task: Task) -> Corrector:
    """The corrector of a task, with a core of the operator's kind."""
    core = corrector_architecture(cfg.operator, cfg.diffusion)
    check_widths(core, "diffusion")
    context = cfg.data.context if task.kind == "transient" else 1
    return Corrector(task, cfg.latent, core, cfg.diffusion, context, compute_dtype(cfg), remat(cfg), products(cfg))


def init_corrector(model: Corrector, key: Key[Array, ""], batch: Batch) -> PyTree:
    """Fresh parameters: the network says nothing yet."""
    task = model.task
    rows, shape = batch.rows, task.shape
    # The frames that a step sees and its change, or the given fields of a solution and that.
    seen = len(task.inputs) or model.context * len(task.channels)
    given = CorrectorInputs(fields=jnp.zeros((rows, *shape, seen + len(task.channels))), cond=conditions_of(batch))
    return model.init(key, jnp.zeros((rows, *shape, len(task.channels))), jnp.zeros(rows), given)["params"]


def corrector_weights(params: PyTree, scale: Float[Array, " c"] | None) -> CorrectorWeights:
    """What samplers take."""
    if scale is None:
        raise ValueError("the state of a corrector has a scale")
    return CorrectorWeights(params=params, scale=scale)


def measure_scale(
    model: Corrector, cfg: Config, parents: Parents, key: Key[Array, ""], batches: Iterator[Batch]
) -> Float[Array, " c"]:
    """Root mean square by channel of the predictor's error, on the states that the stage is trained on."""
    base = predictor_model(cfg, model.task)
    residual, draw = predictor_residual(base, cfg.diffusion), flow_draws(model, base, cfg)

    @jax.jit
    def squares(params: PyTree, batch: Batch, key: Key[Array, ""]) -> Float[Array, " c"]:
        error = residual(params, draw(batch, key))[1]
        return jnp.square(error).mean(tuple(range(error.ndim - 1)))

    found = [
        squares(parents[predictor_stage(model.task.kind)], batch, jax.random.fold_in(key, number))
        for number, batch in enumerate(islice(batches, SCALE_BATCHES))
    ]
    return jnp.maximum(jnp.sqrt(jnp.stack(found).mean(0)), MIN_SCALE)


def _begin(model: Corrector, cfg: Config, parents: Parents, state: TrainState, batches: Iterator[Batch]) -> TrainState:
    if not isinstance(state, ScaledState):
        raise TypeError("the state of a corrector has a scale")
    return replace(state, scale=measure_scale(model, cfg, parents, stream(state.rng, "scale"), batches))


def _validate(model: Corrector, dataset: Dataset, cfg: Config, parents: Parents) -> Validate:
    """weights -> errors with the corrector at every step, and those of the predictor alone, whose names say so."""
    held = held_out(dataset, cfg)
    base = predictor_model(cfg, model.task)
    measure = jax.jit(lambda weights, params, held: corrected_metrics(model, weights, base, params, held))
    params = parents[predictor_stage(model.task.kind)]

    return lambda weights: {
        name: float(value) for name, value in jax.device_get(measure(weights, params, held)).items()
    }


def selection_metric(cfg: Config) -> str:
    """The error that selects a checkpoint: the operator's own, of the corrected prediction."""
    return "steady" if cfg.data.tasks[0].kind == "steady" else cfg.evaluation.metric


STAGE = StageSpec(
    name="diffusion_residual",
    task_kinds=("transient", "steady"),
    model=corrector_model,
    init=init_corrector,
    losses=lambda model, cfg: diffusion_losses(model, predictor_model(cfg, model.task), cfg),
    draw=lambda model, cfg: diffusion_draws(model, predictor_model(cfg, model.task), cfg),
    validate=_validate,
    selection_metric=selection_metric,
    scaled=True,
    begin=_begin,
    weights=corrector_weights,
    weighted=False,
    depends_on_epoch=lambda _cfg: False,
)
