"""The ensemble of a corrector on the trajectories of one task: scores of its distribution, errors of its mean."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float

from ups_jax.data.dataset import Trajectories as SteadyFields
from ups_jax.ensemble_metrics import ensemble_summary, ensemble_table
from ups_jax.evaluation.tables import Table, chunks, join, measure, rollout_section, steady_section
from ups_jax.task import Task

if TYPE_CHECKING:
    from ups_jax.evaluation.evaluate import Trajectories


@runtime_checkable
class Members(Protocol):
    """A way to predict with chance in it: `members` rollouts of `steps` frames after the context `u0`."""

    def __call__(
        self,
        u0: Float[np.ndarray, "b k *s c"],
        steps: int,
        cond: Float[np.ndarray, "b p"],
        cond_mask: Float[np.ndarray, "b p"],
        *,
        members: int,
    ) -> Float[np.ndarray, "m b steps *s c"]: ...


@runtime_checkable
class Solutions(Protocol):
    """`members` samples of the steady solutions for given fields."""

    def __call__(
        self,
        inputs: Float[np.ndarray, "b *s i"],
        cond: Float[np.ndarray, "b p"],
        cond_mask: Float[np.ndarray, "b p"],
        *,
        members: int,
    ) -> Float[np.ndarray, "m b *s c"]: ...


def steady_ensemble(way: Solutions, held: SteadyFields, task: Task, *, batch_size: int, members: int) -> dict[str, Any]:
    """The `steady` section of the mean of sampled solutions with the scores of their distribution beside it, and the
    number of members. Time has no part in it; ValueError below two members."""
    means: list[Table] = []
    tables: list[Table] = []
    for rows, kept in chunks(len(held.fields), batch_size):
        drawn = way(held.inputs[rows], held.cond[rows], held.cond_mask[rows], members=members)[:, :, None]
        means.append(measure(drawn.mean(0), held.fields[rows], task, kept))
        scores = ensemble_table(drawn, held.fields[rows], 1.0)
        tables.append({name: np.asarray(value)[:kept] for name, value in scores.items()})
    scored = ensemble_summary(join(tables))
    del scored["decorrelation_time"]
    return {"steady": steady_section(join(means)) | scored, "members": members}


def ensemble_variant(
    way: Members, trajectories: Trajectories, task: Task, *, batch_size: int, context: int, members: int
) -> dict[str, Any]:
    """The `rollout` section of the ensemble's mean with the scores of the distribution beside it, the number of
    members, and the warm seconds per trajectory and step of all members together.

    Members are rolled out in batches of trajectories; ValueError below two of them.
    """
    fields, cond, mask = trajectories.fields, trajectories.cond, trajectories.cond_mask
    steps = fields.shape[1] - context
    means: list[Table] = []
    tables: list[Table] = []
    for rows, kept in chunks(fields.shape[0], batch_size):
        drawn = way(fields[rows, :context], steps, cond[rows], mask[rows], members=members)
        truth = fields[rows, context:]
        means.append(measure(drawn.mean(0), truth, task, kept))
        scores = ensemble_table(drawn, truth, task.dt)
        tables.append({name: np.asarray(value)[:kept] for name, value in scores.items()})
    # One more member of the last rows: by now their shape is compiled.
    begin = time.perf_counter()
    way(fields[rows, :context], steps, cond[rows], mask[rows], members=1)
    seconds = members * (time.perf_counter() - begin)
    section = rollout_section(join(means), task.dt) | ensemble_summary(join(tables))
    return {
        "rollout": section,
        "members": members,
        "seconds_per_rollout_step": seconds / (steps * len(rows)),
    }
