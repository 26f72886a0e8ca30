"""Which terms of a loss can reach a trained parameter: one that cannot is a constant, and an error before the start."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array

from ups_jax.config import Config
from ups_jax.errors import ConfigError
from ups_jax.losses import Batch, key_of
from ups_jax.losses.spectral import BANDS
from ups_jax.models import normalize
from ups_jax.streams import stream
from ups_jax.task import Statistics, Task
from ups_jax.training.joint import JointModel
from ups_jax.training.memory import batch_key, memory_for, row_too_large
from ups_jax.training.stages import stage_of

# Rows that are looked at, standard deviation of the noise on the initial parameters (an untrained exit is zero and lets
# nothing through), and the gradient's norm below which it is round-off.
ROWS = 4
PERTURBATION = 0.05
ROUND_OFF = 1e-5
# Terms that compare the decoded prediction with data: no parameter is without an effect on it.
SURE = ("relative", "relative_mse", "h1", "forward", "rollout", "spectral", *(f"spectral_{band}" for band in BANDS))
WHY = {
    "inverse_encoding": "this codec carries the field in its tokens, so decoding gives it back by construction",
    "inverse_decoding": "this codec carries the field in its tokens, so encoding the decoded field gives them back",
    "conservation": "the model keeps the integrals of the task's conserved channels by itself",
}


def check_reach_of_all(model: JointModel, cfg: Config, stage: str, batches: Sequence[Batch]) -> None:
    """`check_reach` of each task's model, with a batch of it."""
    for own, batch in zip(model.models, batches, strict=True):
        check_reach(own, cfg, stage, batch)


def check_reach(model: Any, cfg: Config, stage: str, batch: Mapping[str, Array | np.ndarray]) -> None:
    """ConfigError where a weighted term cannot be had of the task, or has no gradient for any parameter of the stage.

    The gradient is measured on a few rows of `batch`, at initial parameters with noise on them; one row and one term
    at a time, so that it takes less memory than the smallest step. ConfigError where even that is too much.
    """
    spec = stage_of(stage)
    spec.losses(model, cfg)
    in_doubt = [name for name in spec.terms(cfg) if name not in SURE]
    if not in_doubt:
        return
    with memory_for(row_too_large(batch_key(stage))):
        norms = gradient_norms(model, cfg, stage, batch, in_doubt)
    for name, norm in norms.items():
        if not norm > ROUND_OFF:
            why = WHY.get(name, "it is the same whatever they are")
            raise ConfigError(f"{key_of(name)}: the term {name} reaches no trained parameter ({why}); set it to 0")


def gradient_norms(
    model: Any, cfg: Config, stage: str, batch: Mapping[str, Array | np.ndarray], names: list[str]
) -> dict[str, float]:
    """Norm of the gradients of each term, without its weight, for the parameters of a stage: root mean square of those
    of single rows.

    Fields are in standard deviations about their mean, so that one threshold fits any unit, and a field that is
    positive by far still meets the terms that are of negative values.
    """
    spec = stage_of(stage)
    scaled = model.clone(task=_in_deviations(model.task))
    losses = spec.losses(scaled, cfg)
    key = jax.random.key(cfg.seed)

    def row(number: int) -> Batch:
        own: Batch = {name: jnp.asarray(values[number : number + 1]) for name, values in batch.items()}
        return own | {
            "fields": normalize(jnp.asarray(own["fields"]), model.task.statistics),
            "mask": jnp.ones(1),
        }

    @jax.jit
    def noisy(key: Any, first: Batch) -> Any:
        params = spec.init(scaled, stream(key, "init"), first)
        leaves, structure = jax.tree.flatten(params)
        keys = jax.random.split(stream(key, "reach"), len(leaves))
        moved = [
            leaf + PERTURBATION * jax.random.normal(own, leaf.shape, leaf.dtype)
            for leaf, own in zip(leaves, keys, strict=True)
        ]
        return jax.tree.unflatten(structure, moved)

    @jax.jit
    def squares(params: Any, row: Batch, which: Any) -> Any:
        """The squared norm of the gradient of a term, which is told by a one among zeros."""

        def terms(params: Any) -> Any:
            values = losses(params, row, stream(key, "loss"), jnp.zeros(()))[1]
            return jnp.stack([values[name] for name in names])

        _, pull = jax.vjp(terms, params)
        return jnp.square(optax.tree.norm(pull(which)[0]))

    params, rows = noisy(key, row(0)), min(ROWS, len(batch["mask"]))
    totals = [
        sum(float(squares(params, row(number), one)) for number in range(rows))
        for one in np.eye(len(names), dtype=np.float32)
    ]
    return {name: math.sqrt(total / rows) for name, total in zip(names, totals, strict=True)}


def _in_deviations(task: Task) -> Task:
    """The task whose physical fields are the normalised ones of `task`."""
    channels = len(task.channels)
    change = [delta / std for delta, std in zip(task.statistics.delta_std, task.statistics.std, strict=True)]
    return replace(task, statistics=Statistics(mean=(0.0,) * channels, std=(1.0,) * channels, delta_std=tuple(change)))
