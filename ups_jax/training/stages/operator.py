"""The stage that trains codec and operator of a transient task jointly, with a loss on decoded fields."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, Key, PyTree

from ups_jax.config import Config
from ups_jax.core.task import Task
from ups_jax.data import Dataset
from ups_jax.data.dataset import StoredTrajectories
from ups_jax.losses import StageLoss, latent_losses, operator_draws, operator_losses
from ups_jax.metrics.field import all_metrics
from ups_jax.models import Batch, PointSimulator, Simulator, conditions_of
from ups_jax.rollout.autoregressive import rollout
from ups_jax.training.stages.options import (
    check_pooling,
    check_widths,
    compute_dtype,
    matmul_precision,
    recomputes_blocks,
)
from ups_jax.training.stages.spec import Parents, StageSpec, Validate
from ups_jax.training.stages.validation_groups import mean_over_groups, validation_groups


def _build_model(cfg: Config, task: Task) -> Simulator | PointSimulator:
    check_widths(cfg.operator)
    if task.scattered:
        check_pooling(cfg)
    kind = PointSimulator if task.scattered else Simulator
    return kind(
        task,
        cfg.latent,
        cfg.operator,
        cfg.data.context,
        compute_dtype(cfg),
        recomputes_blocks(cfg),
        matmul_precision(cfg),
    )


def _init_params(model: Simulator | PointSimulator, key: Key[Array, ""], batch: Batch) -> PyTree:
    # A batch of latents has no fields; only their shape is needed.
    cond = conditions_of(batch)
    fields = jnp.zeros((len(cond.dt), model.context, *model.task.shape, len(model.task.channels)))
    return model.init(key, fields, cond)["params"]


def _make_validation(model: Simulator | PointSimulator, dataset: Dataset, cfg: Config, parents: Parents) -> Validate:
    """Return the function from parameters to the nRMSE of single steps (`one_step`) and of full rollouts (`rollout`).

    Both are means over the frames of up to `evaluation.val_trajectories` validation trajectories.
    """

    def read_group(trajectories: StoredTrajectories, rows: Int[np.ndarray, " b"]) -> Batch:
        point_arrays: dict[str, Any] = {name: values[rows] for name, values in trajectories.point_arrays.items()}
        return Batch(
            fields=trajectories.fields[rows],
            dt=np.full(len(rows), model.task.dt, np.float32),
            cond=trajectories.cond[rows],
            cond_mask=trajectories.cond_mask[rows],
            **point_arrays,
        )

    groups = validation_groups(dataset, cfg, read_group)

    @jax.jit
    def measure_nrmse(params: PyTree, group: Batch) -> dict[str, Array]:
        fields, cond = jnp.asarray(group.fields), conditions_of(group)
        starts = np.arange(fields.shape[1] - model.context)
        truth = fields[:, model.context :]
        rolled = rollout(model, params, fields[:, : model.context], cond, len(starts))

        def step_from(start: Int[Array, ""]) -> Array:
            window = jax.lax.dynamic_slice_in_dim(fields, start, model.context, axis=1)
            return rollout(model, params, window, cond, 1)[:, 0]

        stepped = jnp.moveaxis(jax.lax.map(step_from, jnp.asarray(starts)), 0, 1)
        return {
            "one_step": all_metrics(stepped, truth, model.task, cond.point_mask)["nrmse"].mean(),
            "rollout": all_metrics(rolled, truth, model.task, cond.point_mask)["nrmse"].mean(),
        }

    return lambda params: mean_over_groups(lambda group: measure_nrmse(params, group), groups())


# Losses by `data.source`.
_LOSSES: dict[str, Callable[..., StageLoss]] = {"fields": operator_losses, "latents": latent_losses}

STAGE = StageSpec(
    name="operator",
    task_kinds=("transient",),
    supports_points=True,
    model=_build_model,
    init=_init_params,
    losses=lambda model, cfg: _LOSSES[cfg.data.source](model, cfg.training),
    draw=lambda model, cfg: operator_draws(model, cfg.training),
    validate=_make_validation,
    selection_metric=lambda cfg: cfg.evaluation.metric,
)
