"""The validation metric that selects the best checkpoint and feeds patience: nRMSE of decoded physical fields."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ups_jax.config import EvaluationConfig
from ups_jax.data import Dataset
from ups_jax.metrics import all_metrics
from ups_jax.models import Conditions, Simulator
from ups_jax.rollout import rollout

Validate = Callable[[Any], dict[str, float]]


def make_validate(model: Simulator, dataset: Dataset, config: EvaluationConfig) -> Validate:
    """params -> {"one_step", "rollout"}: mean nRMSE over frames of up to `val_trajectories` validation trajectories."""
    held = dataset.trajectories("val", limit=config.val_trajectories)
    fields = jnp.asarray(held.fields)
    count, frames = fields.shape[:2]
    cond = Conditions(
        dt=jnp.full(count, model.task.dt, jnp.float32),
        coefficients=jnp.asarray(held.cond),
        mask=jnp.asarray(held.cond_mask, jnp.float32),
    )
    starts = np.arange(frames - model.context)

    @jax.jit
    def measure(params: Any) -> dict[str, Any]:
        truth = fields[:, model.context :]
        rolled = rollout(model, params, fields[:, : model.context], cond, len(starts))

        def from_start(start: Any) -> Any:
            window = jax.lax.dynamic_slice_in_dim(fields, start, model.context, axis=1)
            return rollout(model, params, window, cond, 1)[:, 0]

        stepped = jnp.moveaxis(jax.lax.map(from_start, jnp.asarray(starts)), 0, 1)
        return {
            "one_step": all_metrics(stepped, truth, model.task)["nrmse"].mean(),
            "rollout": all_metrics(rolled, truth, model.task)["nrmse"].mean(),
        }

    return lambda params: {name: float(value) for name, value in jax.device_get(measure(params)).items()}
