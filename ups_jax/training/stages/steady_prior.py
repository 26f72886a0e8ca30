"""The stage that trains a steady simulator: it maps input fields to the steady solution, deterministically."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Key, PyTree

from ups_jax.config import Config
from ups_jax.core.task import Task
from ups_jax.data import Dataset
from ups_jax.losses import steady_losses
from ups_jax.metrics.field import all_metrics
from ups_jax.models import Batch, Conditions, SteadySimulator, conditions_of
from ups_jax.rollout.steady import solve
from ups_jax.training.stages.options import check_widths, compute_dtype, matmul_precision, recomputes_blocks
from ups_jax.training.stages.spec import Parents, StageSpec, Validate


def _build_model(cfg: Config, task: Task) -> SteadySimulator:
    check_widths(cfg.operator)
    return SteadySimulator(
        task, cfg.latent, cfg.operator, compute_dtype(cfg), recomputes_blocks(cfg), matmul_precision(cfg)
    )


def _init_params(model: SteadySimulator, key: Key[Array, ""], batch: Batch) -> PyTree:
    return model.init(key, jnp.asarray(batch.inputs), conditions_of(batch))["params"]


def _make_validation(model: SteadySimulator, dataset: Dataset, cfg: Config, parents: Parents) -> Validate:
    """Return the function from parameters to `steady`, the mean nRMSE of validation solutions."""
    solutions = dataset.trajectories("val", limit=cfg.evaluation.val_trajectories)
    inputs, truth = jnp.asarray(solutions.inputs), jnp.asarray(solutions.fields)
    cond = Conditions(
        dt=jnp.full(len(truth), model.task.dt, jnp.float32),
        coefficients=jnp.asarray(solutions.cond),
        mask=jnp.asarray(solutions.cond_mask, jnp.float32),
    )

    @jax.jit
    def mean_nrmse(params: PyTree) -> Array:
        solved = solve(model, params, inputs, cond)[:, None]
        return all_metrics(solved, truth, model.task)["nrmse"].mean()

    return lambda params: {"steady": float(mean_nrmse(params))}


STAGE = StageSpec(
    name="steady_prior",
    task_kinds=("steady",),
    model=_build_model,
    init=_init_params,
    losses=lambda model, cfg: steady_losses(model, cfg.training),
    validate=_make_validation,
    selection_metric=lambda _: "steady",
)
