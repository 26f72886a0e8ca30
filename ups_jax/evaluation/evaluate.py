"""One trained predictor on the trajectories of one task: metrics of decoded physical fields, baselines, intervals.

Pure of IO. The loops run on the host in chunks of one shape, so that a jitted predictor compiles
once for one-step and once for the rollout.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Protocol, runtime_checkable

import jax
import numpy as np
from jaxtyping import Float, Int

from ups_jax.config import EvaluationConfig
from ups_jax.core.errors import DataError
from ups_jax.core.task import Task
from ups_jax.data.dataset import Trajectories as SteadyFields
from ups_jax.evaluation.result import TransientEvaluation, Example, PointEvaluation, Spectra
from ups_jax.inference.inputs import condition_arrays, point_arrays_of, point_mask_of
from ups_jax.metrics.aggregate import (
    Table,
    bootstrap_interval,
    concatenate_tables,
    correlation_times,
    fixed_size_chunks,
    metrics_section,
    rollout_section,
    score_rows,
    steady_section,
)
from ups_jax.metrics.ensemble import ensemble_summary, ensemble_table
from ups_jax.metrics.field import energy_spectrum

_SPECTRUM_TIMES = 4


@runtime_checkable
class Rollout(Protocol):
    """A way to predict: the `steps` frames after the context `u0`, of a steady task the solution for given fields."""

    def __call__(
        self,
        u0: Float[np.ndarray, "b k *s c"],
        steps: int,
        cond: Float[np.ndarray, "b p"],
        cond_mask: Float[np.ndarray, "b p"],
    ) -> Float[np.ndarray, "b steps *s c"]: ...


@runtime_checkable
class Predictor(Protocol):
    """What is evaluated: physical fields in, physical fields out."""

    def rollout_arrays(
        self,
        u0: Float[np.ndarray, "b k *s c"],
        steps: int,
        cond: Float[np.ndarray, "b p"],
        cond_mask: Float[np.ndarray, "b p"],
    ) -> Float[np.ndarray, "b steps *s c"]:
        """The `steps` frames after the context `u0`."""

    def reconstruct(
        self, fields: Float[np.ndarray, "b t *s c"], cond: Float[np.ndarray, "b p"], cond_mask: Float[np.ndarray, "b p"]
    ) -> Float[np.ndarray, "b t *s c"]:
        """decode(encode(fields)): what the codec alone loses."""


@runtime_checkable
class Trajectories(Protocol):
    """The trajectories of one split of one task, in physical units."""

    @property
    def fields(self) -> Float[np.ndarray, "n t *s c"]: ...
    @property
    def cond(self) -> Float[np.ndarray, "n p"]: ...
    @property
    def cond_mask(self) -> Float[np.ndarray, "n p"]: ...
    @property
    def time(self) -> Float[np.ndarray, " t"]: ...
    @property
    def ids(self) -> Int[np.ndarray, " n"]: ...


def evaluate_predictor(
    predictor: Predictor,
    trajectories: Trajectories,
    task: Task,
    config: EvaluationConfig,
    *,
    context: int,
    seed: int,
    variants: Mapping[str, Rollout] = MappingProxyType({}),
    ensembles: Mapping[str, Members] = MappingProxyType({}),
) -> TransientEvaluation:
    """One-step errors of every window, the rollout from the first `context` frames to the last, and both baselines.

    `variants` are other ways to roll out the same run, by name; each gets a `rollout` section and its own seconds.
    `ensembles` are such with chance in them: the section is of the mean of `evaluation.members` rollouts, and has the
    scores of their distribution as well.
    Raises `DataError` where the trajectories are too short. A prediction that is not finite makes the mean metrics
    non-finite and counts in `nonfinite`, the number of (trajectory, time) frames without a finite error.
    """
    count, frames = trajectories.fields.shape[:2]
    if count == 0 or frames <= context:
        raise DataError(
            f"task {task.name}: {count} trajectories of {frames} frames cannot be evaluated with data.context="
            f"{context}; it takes one trajectory of at least {context + 1} frames"
        )
    one_step = _one_step(predictor, trajectories, task, config.batch_size, context)
    tables, spectra = _rollouts(predictor, trajectories, task, config.batch_size, context)
    rollout, codec = tables["rollout"], tables["codec"]
    scores = rollout["nrmse"].mean(1)
    examples, seconds = _examples(predictor, trajectories, task, config.batch_size, context, scores)
    kind = PointEvaluation if task.scattered else TransientEvaluation
    return kind(
        task=task,
        metrics={"one_step": metrics_section(one_step), "rollout": rollout_section(rollout, task.dt)},
        baselines={
            "persistence": {
                "one_step": metrics_section(tables["persistence_one_step"]),
                "rollout": rollout_section(tables["persistence_rollout"], task.dt),
            },
            # The codec sees the true frame at every time, so its floor is the same for one step and for the rollout.
            "codec": {"one_step": metrics_section(codec), "rollout": rollout_section(codec, task.dt)},
        },
        variants={name: _variant(way, trajectories, task, config.batch_size, context) for name, way in variants.items()}
        | {
            name: ensemble_variant(
                way, trajectories, task, batch_size=config.batch_size, context=context, members=config.members
            )
            for name, way in ensembles.items()
        },
        intervals={
            way: {name: bootstrap_interval(values, config.bootstrap, seed) for name, values in per_trajectory.items()}
            for way, per_trajectory in (
                ("one_step", {"nrmse": one_step["nrmse"].mean(1)}),
                ("rollout", {"nrmse": scores, "correlation_time": correlation_times(rollout, task.dt)}),
            )
        },
        meta={
            "trajectories": count,
            "horizon": frames - context,
            "seconds_per_rollout_step": seconds,
            "protocol": (
                f"{task.name}: one_step = each of the {frames - context} windows of {context} true frames, next frame; "
                f"rollout = first {context} frames to frame {frames}; seconds_per_rollout_step = warm wall clock per "
                f"trajectory and step, {min(config.batch_size, count)} trajectories at a time; correlation_time = time "
                "from the last given frame until the correlation with the truth is below 0.8, linear between frames"
            ),
        },
        ids=[int(number) for number in trajectories.ids],
        per_trajectory={"one_step": {"nrmse": one_step["nrmse"].mean(1)}, "rollout": {"nrmse": scores}},
        time=trajectories.time[context:],
        rollout_nrmse=scores,
        examples=examples,
        spectra=spectra,
    )


def _one_step(predictor: Predictor, trajectories: Trajectories, task: Task, batch_size: int, context: int) -> Table:
    """Metrics `(n, steps)` of the frame after each window of `context` true frames."""
    fields = trajectories.fields
    count, steps = fields.shape[0], fields.shape[1] - context
    windows = count * steps
    parts: list[Table] = []
    for rows, kept in fixed_size_chunks(windows, batch_size):
        owner, start = rows // steps, rows % steps
        window = fields[owner[:, None], start[:, None] + np.arange(context + 1)]
        pred = predictor.rollout_arrays(window[:, :context], 1, *condition_arrays(trajectories, owner))
        parts.append(score_rows(pred, window[:, context:], task, kept, point_mask_of(trajectories, owner)))
    return {name: value.reshape(count, steps) for name, value in concatenate_tables(parts).items()}


def _rollouts(
    predictor: Predictor, trajectories: Trajectories, task: Task, batch_size: int, context: int
) -> tuple[dict[str, Table], Spectra | None]:
    """Metrics `(n, steps)` of the rollout, of persistence in both ways and of the codec; spectra of the rollout, which
    a set of points has none of."""
    fields = trajectories.fields
    steps = fields.shape[1] - context
    picks = np.unique(np.linspace(0, steps - 1, _SPECTRUM_TIMES).round().astype(int))
    parts: list[dict[str, Table]] = []
    spectra: list[tuple[np.ndarray, np.ndarray]] = []
    for rows, kept in fixed_size_chunks(fields.shape[0], batch_size):
        chunk = fields[rows]
        truth = chunk[:, context:]
        pred = predictor.rollout_arrays(chunk[:, :context], steps, *condition_arrays(trajectories, rows))
        guesses = {
            "rollout": pred,
            "persistence_one_step": chunk[:, context - 1 : -1],
            "persistence_rollout": np.repeat(chunk[:, context - 1 : context], steps, 1),
            "codec": predictor.reconstruct(truth, *condition_arrays(trajectories, rows)),
        }
        there = point_mask_of(trajectories, rows)
        parts.append({name: score_rows(guess, truth, task, kept, there) for name, guess in guesses.items()})
        if not task.scattered:
            spectra.append((_spectrum(truth[:, picks], kept), _spectrum(pred[:, picks], kept)))
    tables = {name: concatenate_tables([part[name] for part in parts]) for name in parts[0]}
    if not spectra:
        return tables, None
    truth_spectra, pred_spectra = (np.concatenate(part).mean(0) for part in zip(*spectra, strict=True))
    times = trajectories.time[context:][picks]
    return tables, Spectra(time=times, truth=truth_spectra, prediction=pred_spectra)


def _variant(rollout: Rollout, trajectories: Trajectories, task: Task, batch_size: int, context: int) -> dict[str, Any]:
    """The `rollout` section of another way to predict, and its warm seconds per trajectory and step."""
    fields = trajectories.fields
    steps = fields.shape[1] - context
    parts: list[Table] = []
    for rows, kept in fixed_size_chunks(fields.shape[0], batch_size):
        pred = rollout(fields[rows, :context], steps, *condition_arrays(trajectories, rows))
        parts.append(score_rows(pred, fields[rows, context:], task, kept, point_mask_of(trajectories, rows)))
    # The last chunk once more: by now its shape is compiled.
    begin = time.perf_counter()
    rollout(fields[rows, :context], steps, *condition_arrays(trajectories, rows))
    seconds = (time.perf_counter() - begin) / (steps * len(rows))
    return {"rollout": rollout_section(concatenate_tables(parts), task.dt), "seconds_per_rollout_step": seconds}


def _examples(
    predictor: Predictor,
    trajectories: Trajectories,
    task: Task,
    batch_size: int,
    context: int,
    scores: Float[np.ndarray, " n"],
) -> tuple[list[Example], float]:
    """Best, median and worst trajectory, rolled out again, and the seconds of that warm call per trajectory and step.

    Again, because keeping every prediction of a split would hold it in memory twice.
    """
    fields, cond, mask = trajectories.fields, trajectories.cond, trajectories.cond_mask
    steps = fields.shape[1] - context
    order = np.argsort(np.where(np.isfinite(scores), scores, np.inf), kind="stable")
    rows = order[[0, (len(order) - 1) // 2, len(order) - 1]]
    size = min(batch_size, len(order))
    padded = np.resize(rows, -(-len(rows) // size) * size)
    begin = time.perf_counter()
    preds = np.concatenate(
        [
            predictor.rollout_arrays(fields[part][:, :context], steps, *condition_arrays(trajectories, part))
            for part in padded.reshape(-1, size)
        ]
    )
    seconds = (time.perf_counter() - begin) / (steps * len(padded))
    examples = [
        Example(
            label=label,
            id=str(trajectories.ids[row]),
            nrmse=float(scores[row]),
            coefficients={
                item.name: float(cond[row, index]) for index, item in enumerate(task.coefficients) if mask[row, index]
            },
            time=trajectories.time[context - 1 :],
            truth=fields[row, context - 1 :],
            prediction=np.concatenate([fields[row, context - 1 : context], pred]),
            point_arrays={name: values[row] for name, values in point_arrays_of(trajectories).items()},
        )
        for label, row, pred in zip(("best", "median", "worst"), rows, preds, strict=False)
    ]
    return examples, seconds


def _spectrum(fields: np.ndarray, kept: int) -> Float[np.ndarray, "b m k"]:
    return np.asarray(jax.jit(energy_spectrum)(fields))[:kept]


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


def steady_ensemble(way: Members, held: SteadyFields, task: Task, *, batch_size: int, members: int) -> dict[str, Any]:
    """The `steady` section of the mean of sampled solutions with the scores of their distribution beside it, and the
    number of members. Time has no part in it; ValueError below two members."""
    means, scores = _scored(way, held, held.inputs, held.fields, task, 1.0, batch_size, members)
    del scores["decorrelation_time"]
    return {"steady": steady_section(means) | scores, "members": members}


def ensemble_variant(
    way: Members, trajectories: Trajectories, task: Task, *, batch_size: int, context: int, members: int
) -> dict[str, Any]:
    """The `rollout` section of the ensemble's mean with the scores of the distribution beside it, the number of
    members, and the warm seconds per trajectory and step of all members together.

    Members are rolled out in batches of trajectories; ValueError below two of them.
    """
    starts, truth = trajectories.fields[:, :context], trajectories.fields[:, context:]
    means, scores = _scored(way, trajectories, starts, truth, task, task.dt, batch_size, members)
    # One more member of the last rows: by now their shape is compiled.
    *_, (rows, _) = fixed_size_chunks(len(starts), batch_size)
    steps, begin = truth.shape[1], time.perf_counter()
    way(starts[rows], steps, trajectories.cond[rows], trajectories.cond_mask[rows], members=1)
    seconds = members * (time.perf_counter() - begin) / (steps * len(rows))
    section = rollout_section(means, task.dt) | scores
    return {"rollout": section, "members": members, "seconds_per_rollout_step": seconds}


def _scored(
    way: Members,
    held: Trajectories | SteadyFields,
    starts: np.ndarray,
    truth: np.ndarray,
    task: Task,
    dt: float,
    batch_size: int,
    members: int,
) -> tuple[Table, dict[str, float]]:
    """Return the errors of the members' mean of each row, and the scores of their distribution."""
    means: list[Table] = []
    tables: list[Table] = []
    for rows, kept in fixed_size_chunks(len(truth), batch_size):
        drawn = way(starts[rows], truth.shape[1], held.cond[rows], held.cond_mask[rows], members=members)
        means.append(score_rows(drawn.mean(0), truth[rows], task, kept))
        scores = ensemble_table(drawn, truth[rows], dt)
        tables.append({name: np.asarray(value)[:kept] for name, value in scores.items()})
    return concatenate_tables(means), ensemble_summary(concatenate_tables(tables))
