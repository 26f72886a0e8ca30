"""The stage that trains a steady simulator: it maps input fields to the steady solution, deterministically."""

from __future__ import annotations

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, Key, PyTree

from ups_jax.config import Config
from ups_jax.core.task import Task
from ups_jax.data import Dataset
from ups_jax.data.dataset import StoredTrajectories
from ups_jax.losses import steady_losses
from ups_jax.metrics.field import all_metrics
from ups_jax.models import Batch, SteadySimulator, conditions_of
from ups_jax.rollout.steady import solve
from ups_jax.training.stages.options import check_widths, compute_dtype, matmul_precision, recomputes_blocks
from ups_jax.training.stages.spec import Parents, StageSpec, Validate
from ups_jax.training.stages.validation_groups import mean_over_groups, validation_groups


def _build_model(cfg: Config, task: Task) -> SteadySimulator:
    check_widths(cfg.operator)
    return SteadySimulator(
        task, cfg.latent, cfg.operator, compute_dtype(cfg), recomputes_blocks(cfg), matmul_precision(cfg)
    )


def _init_params(model: SteadySimulator, key: Key[Array, ""], batch: Batch) -> PyTree:
    return model.init(key, jnp.asarray(batch.inputs), conditions_of(batch))["params"]


def _make_validation(model: SteadySimulator, dataset: Dataset, cfg: Config, parents: Parents) -> Validate:
    """Return the function from parameters to `steady`, the mean nRMSE of validation solutions."""

    def read_group(solutions: StoredTrajectories, rows: Int[np.ndarray, " b"]) -> Batch:
        return Batch(
            fields=solutions.fields[rows],
            inputs=solutions.inputs[rows],
            dt=np.full(len(rows), model.task.dt, np.float32),
            cond=solutions.cond[rows],
            cond_mask=solutions.cond_mask[rows].astype(np.float32),
        )

    groups = validation_groups(dataset, cfg, read_group)

    @jax.jit
    def measure_nrmse(params: PyTree, group: Batch) -> dict[str, Array]:
        # The inputs of a grid are not part of its conditions.
        cond = conditions_of(replace(group, inputs=None))
        solved = solve(model, params, jnp.asarray(group.inputs), cond)[:, None]
        return {"steady": all_metrics(solved, jnp.asarray(group.fields), model.task)["nrmse"].mean()}

    return lambda params: mean_over_groups(lambda group: measure_nrmse(params, group), groups())


STAGE = StageSpec(
    name="steady_prior",
    task_kinds=("steady",),
    model=_build_model,
    init=_init_params,
    losses=lambda model, cfg: steady_losses(model, cfg.training),
    validate=_make_validation,
    selection_metric=lambda _: "steady",
)
