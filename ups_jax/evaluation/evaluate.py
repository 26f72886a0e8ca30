"""Evaluation of a predictor on one transient task: metrics in physical units, baselines and bootstrap intervals.

No files are read or written. Trajectories are predicted in chunks of fixed shape, so that a jitted predictor compiles
once for single steps and once for the rollout.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Protocol, runtime_checkable

import jax
import numpy as np
from jaxtyping import Float, Int

from ups_jax.config import EvaluationConfig
from ups_jax.core.errors import DataError
from ups_jax.core.task import Task
from ups_jax.evaluation.result import Example, PointEvaluation, Spectra, TransientEvaluation
from ups_jax.inference.inputs import get_point_arrays, select_condition_arrays, select_point_mask
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
class RolloutFunction(Protocol):
    """A function that predicts `steps` frames from the context `u0`, or steady solutions from the input fields `u0`."""

    def __call__(
        self,
        u0: Float[np.ndarray, "b k *s c"],
        steps: int,
        cond: Float[np.ndarray, "b p"],
        cond_mask: Float[np.ndarray, "b p"],
    ) -> Float[np.ndarray, "b steps *s c"]: ...


@runtime_checkable
class EnsembleFunction(Protocol):
    """A function that samples `members` rollouts of `steps` frames from `u0`, or `members` steady solutions."""

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
class Predictor(Protocol):
    """A model to evaluate. Fields and coefficients are in physical units."""

    def rollout_arrays(
        self,
        u0: Float[np.ndarray, "b k *s c"],
        steps: int,
        cond: Float[np.ndarray, "b p"],
        cond_mask: Float[np.ndarray, "b p"],
    ) -> Float[np.ndarray, "b steps *s c"]:
        """Return the `steps` frames after the context `u0`."""

    def reconstruct(
        self, fields: Float[np.ndarray, "b t *s c"], cond: Float[np.ndarray, "b p"], cond_mask: Float[np.ndarray, "b p"]
    ) -> Float[np.ndarray, "b t *s c"]:
        """Return decode(encode(fields)), to measure the error of the codec alone."""


# Largest size of the true fields in a chunk: predictions and the arrays of the metrics take several times as much.
_CHUNK_BYTES = 16 * 2**20


@runtime_checkable
class Rows(Protocol):
    """An array in memory, or one whose rows are read when it is indexed with their numbers."""

    @property
    def shape(self) -> tuple[int, ...]: ...
    def __getitem__(self, rows: Any, /) -> Any: ...


@runtime_checkable
class TrajectoryArrays(Protocol):
    """The trajectories of one split of one task, in physical units: fields `(n, t, *s, c)`."""

    @property
    def fields(self) -> Rows: ...
    @property
    def cond(self) -> Float[np.ndarray, "n p"]: ...
    @property
    def cond_mask(self) -> Float[np.ndarray, "n p"]: ...
    @property
    def time(self) -> Float[np.ndarray, " t"]: ...
    @property
    def ids(self) -> Int[np.ndarray, " n"]: ...


@runtime_checkable
class SolutionArrays(TrajectoryArrays, Protocol):
    """The input fields `(n, *s, i)` and the true solutions, as single frames, of one split of a steady task."""

    @property
    def inputs(self) -> Rows: ...


def rows_per_chunk(fields: Rows, batch_size: int, *, frames: int | None = None, copies: int = 1) -> int:
    """Return the number of rows in a chunk: `batch_size`, fewer if their fields exceed 16 MiB, at least 1.

    Args:
        fields: True fields of all trajectories.
        frames: Number of frames in a row; all by default.
        copies: Number of arrays of the size of a row that its prediction takes.
    """
    row_bytes = 4 * copies * (frames or fields.shape[1]) * math.prod(fields.shape[2:])
    return max(1, min(batch_size, _CHUNK_BYTES // row_bytes))


def evaluate_predictor(
    predictor: Predictor,
    trajectories: TrajectoryArrays,
    task: Task,
    config: EvaluationConfig,
    *,
    context: int,
    seed: int,
    variants: Mapping[str, RolloutFunction] = MappingProxyType({}),
    ensembles: Mapping[str, EnsembleFunction] = MappingProxyType({}),
) -> TransientEvaluation:
    """Return the metrics of a predictor on a transient task: one-step errors, rollout errors, and two baselines.

    Fields are read in chunks of at most `config.batch_size` rows, fewer if they are large (`rows_per_chunk`).

    One-step predictions start from every window of `context` true frames. The rollout starts from the first `context`
    frames and ends at the last frame. The baselines are persistence (the last true frame, repeated) and the codec
    alone. A prediction that is not finite makes the mean metrics non-finite; the metric `nonfinite` counts the frames
    without a finite error.

    Args:
        predictor: The model.
        trajectories: The trajectories of a split.
        task: The task of the trajectories, on the grid of the data.
        config: Batch size, number of bootstrap samples and of ensemble members.
        context: Number of frames that the model takes as input.
        seed: Seed of the bootstrap.
        variants: Further rollout functions to evaluate, by name.
        ensembles: Functions that sample rollouts, by name; the ensemble's mean and distribution are evaluated.

    Raises:
        DataError: There are no trajectories, or they have too few frames.
    """
    count, frames = trajectories.fields.shape[:2]
    batch_size = rows_per_chunk(trajectories.fields, config.batch_size)
    if count == 0 or frames <= context:
        raise DataError(
            f"task {task.name}: cannot evaluate {count} trajectories of {frames} frames with "
            f"`data.context: {context}`; provide at least one trajectory of {context + 1} frames"
        )
    # A single step takes more memory for a frame than a rollout does.
    window_rows = rows_per_chunk(trajectories.fields, config.batch_size, frames=context + 1, copies=2)
    one_step = _one_step_table(predictor, trajectories, task, window_rows, context)
    tables, spectra = _rollout_tables(predictor, trajectories, task, batch_size, context)
    rollout, codec = tables["rollout"], tables["codec"]
    scores = rollout["nrmse"].mean(1)
    examples, seconds = _timed_examples(predictor, trajectories, task, batch_size, context, scores)
    evaluation_class = PointEvaluation if task.scattered else TransientEvaluation
    return evaluation_class(
        task=task,
        metrics={"one_step": metrics_section(one_step), "rollout": rollout_section(rollout, task.dt)},
        baselines={
            "persistence": {
                "one_step": metrics_section(tables["persistence_one_step"]),
                "rollout": rollout_section(tables["persistence_rollout"], task.dt),
            },
            # The codec encodes the true frame at every time, so its error is the same for one step and the rollout.
            "codec": {"one_step": metrics_section(codec), "rollout": rollout_section(codec, task.dt)},
        },
        variants={
            name: _evaluate_variant(predict, trajectories, task, batch_size, context)
            for name, predict in variants.items()
        }
        | {
            name: evaluate_rollout_ensemble(
                ensemble, trajectories, task, batch_size=config.batch_size, context=context, members=config.members
            )
            for name, ensemble in ensembles.items()
        },
        intervals={
            section: {name: bootstrap_interval(values, config.bootstrap, seed) for name, values in metrics.items()}
            for section, metrics in (
                ("one_step", {"nrmse": one_step["nrmse"].mean(1)}),
                ("rollout", {"nrmse": scores, "correlation_time": correlation_times(rollout, task.dt)}),
            )
        },
        meta={
            "trajectories": count,
            "horizon": frames - context,
            "seconds_per_rollout_step": seconds,
            "protocol": (
                f"{task.name}: one_step = prediction of the next frame from each of the {frames - context} windows of "
                f"{context} true frames; rollout = prediction from the first {context} frames to frame {frames}; "
                "seconds_per_rollout_step = wall time per trajectory and step after compilation, "
                f"{min(batch_size, count)} trajectories per batch; correlation_time = time after the context "
                "until the correlation with the truth falls below 0.8, interpolated linearly between frames"
            ),
        },
        ids=[int(index) for index in trajectories.ids],
        per_trajectory={"one_step": {"nrmse": one_step["nrmse"].mean(1)}, "rollout": {"nrmse": scores}},
        time=trajectories.time[context:],
        rollout_nrmse=scores,
        examples=examples,
        spectra=spectra,
    )


def steady_ensemble_section(
    ensemble: EnsembleFunction, trajectories: SolutionArrays, task: Task, *, batch_size: int, members: int
) -> dict[str, Any]:
    """Return the metrics of an ensemble's mean solution and the scores of its members, as the section `steady`.

    Args:
        batch_size: Number of solutions per call of `ensemble`.
        members: Number of members, at least two.
    """
    batch_size = rows_per_chunk(trajectories.fields, batch_size, copies=members)
    means, scores = _mean_metrics_and_scores(
        ensemble,
        trajectories,
        lambda rows: (trajectories.inputs[rows], trajectories.fields[rows]),
        task,
        1.0,
        batch_size,
        members,
    )
    del scores["decorrelation_time"]
    return {"steady": steady_section(means) | scores, "members": members}


def evaluate_rollout_ensemble(
    ensemble: EnsembleFunction,
    trajectories: TrajectoryArrays,
    task: Task,
    *,
    batch_size: int,
    context: int,
    members: int,
) -> dict[str, Any]:
    """Return the metrics of an ensemble's mean rollout and the scores of its members, as the section `rollout`.

    The value `seconds_per_rollout_step` is the time of all members together.

    Args:
        batch_size: Number of trajectories per call of `ensemble`.
        context: Number of frames that the model takes as input.
        members: Number of members, at least two.
    """
    count, frames = trajectories.fields.shape[:2]
    batch_size = rows_per_chunk(trajectories.fields, batch_size, copies=members)

    def start_and_truth(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        fields = trajectories.fields[rows]
        return fields[:, :context], fields[:, context:]

    means, scores = _mean_metrics_and_scores(
        ensemble, trajectories, start_and_truth, task, task.dt, batch_size, members
    )
    # Timed with one more member of the last chunk, whose shape is already compiled.
    *_, (rows, _) = fixed_size_chunks(count, batch_size)
    u0, steps = start_and_truth(rows)[0], frames - context
    begin = time.perf_counter()
    ensemble(u0, steps, trajectories.cond[rows], trajectories.cond_mask[rows], members=1)
    seconds = members * (time.perf_counter() - begin) / (steps * len(rows))
    section = rollout_section(means, task.dt) | scores
    return {"rollout": section, "members": members, "seconds_per_rollout_step": seconds}


def _one_step_table(
    predictor: Predictor, trajectories: TrajectoryArrays, task: Task, batch_size: int, context: int
) -> Table:
    """Return the metrics `(n, steps)` of predicting one frame from each window of `context` true frames."""
    count, steps = trajectories.fields.shape[0], trajectories.fields.shape[1] - context
    tables: list[Table] = []
    loaded = np.empty(0, int)
    for windows, real_rows in fixed_size_chunks(count * steps, batch_size):
        trajectory, start = windows // steps, windows % steps
        if not np.isin(trajectory, loaded).all():
            loaded = np.unique(trajectory)
            fields = trajectories.fields[loaded]
        rows = np.searchsorted(loaded, trajectory)
        window_fields = fields[rows[:, None], start[:, None] + np.arange(context + 1)]
        pred = predictor.rollout_arrays(
            window_fields[:, :context], 1, *select_condition_arrays(trajectories, trajectory)
        )
        point_mask = select_point_mask(trajectories, trajectory)
        tables.append(score_rows(pred, window_fields[:, context:], task, real_rows, point_mask))
    return {name: value.reshape(count, steps) for name, value in concatenate_tables(tables).items()}


def _rollout_tables(
    predictor: Predictor, trajectories: TrajectoryArrays, task: Task, batch_size: int, context: int
) -> tuple[dict[str, Table], Spectra | None]:
    """Return the metrics of rollouts and baselines, and the energy spectra of the rollouts (None on a point cloud)."""
    fields = trajectories.fields
    steps = fields.shape[1] - context
    spectrum_steps = np.unique(np.linspace(0, steps - 1, _SPECTRUM_TIMES).round().astype(int))
    chunk_tables: list[dict[str, Table]] = []
    spectra: list[tuple[np.ndarray, ...]] = []
    for rows, real_rows in fixed_size_chunks(fields.shape[0], batch_size):
        chunk = fields[rows]
        truth = chunk[:, context:]
        pred = predictor.rollout_arrays(chunk[:, :context], steps, *select_condition_arrays(trajectories, rows))
        predictions = {
            "rollout": pred,
            "persistence_one_step": chunk[:, context - 1 : -1],
            "persistence_rollout": np.repeat(chunk[:, context - 1 : context], steps, 1),
            "codec": predictor.reconstruct(truth, *select_condition_arrays(trajectories, rows)),
        }
        point_mask = select_point_mask(trajectories, rows)
        chunk_tables.append(
            {name: score_rows(values, truth, task, real_rows, point_mask) for name, values in predictions.items()}
        )
        if not task.scattered:
            truth_and_pred = truth[:, spectrum_steps], pred[:, spectrum_steps]
            spectra.append(tuple(_energy_spectra(frames, task, real_rows) for frames in truth_and_pred))
    tables = {name: concatenate_tables([chunk[name] for chunk in chunk_tables]) for name in chunk_tables[0]}
    if not spectra:
        return tables, None
    truth_spectra, pred_spectra = (np.concatenate(values).mean(0) for values in zip(*spectra, strict=True))
    times = trajectories.time[context:][spectrum_steps]
    return tables, Spectra(time=times, truth=truth_spectra, prediction=pred_spectra)


def _evaluate_variant(
    predict: RolloutFunction, trajectories: TrajectoryArrays, task: Task, batch_size: int, context: int
) -> dict[str, Any]:
    """Return the metrics of the rollouts of `predict`, and the seconds per trajectory and step without compilation."""
    fields = trajectories.fields
    steps = fields.shape[1] - context
    tables: list[Table] = []
    for rows, real_rows in fixed_size_chunks(fields.shape[0], batch_size):
        chunk, conditions = fields[rows], select_condition_arrays(trajectories, rows)
        pred = predict(chunk[:, :context], steps, *conditions)
        point_mask = select_point_mask(trajectories, rows)
        tables.append(score_rows(pred, chunk[:, context:], task, real_rows, point_mask))
    # Timed with the last chunk, whose shape is already compiled.
    begin = time.perf_counter()
    predict(chunk[:, :context], steps, *conditions)
    seconds = (time.perf_counter() - begin) / (steps * len(rows))
    return {"rollout": rollout_section(concatenate_tables(tables), task.dt), "seconds_per_rollout_step": seconds}


def _mean_metrics_and_scores(
    ensemble: EnsembleFunction,
    trajectories: TrajectoryArrays,
    start_and_truth: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]],
    task: Task,
    dt: float,
    batch_size: int,
    members: int,
) -> tuple[Table, dict[str, float]]:
    """Return the metrics of the ensemble mean for each trajectory, and the scores of the ensemble.

    Args:
        start_and_truth: Returns the arguments `u0` of `ensemble` and the true frames of some trajectories.
    """
    mean_tables: list[Table] = []
    score_tables: list[Table] = []
    for rows, real_rows in fixed_size_chunks(len(trajectories.ids), batch_size):
        cond, cond_mask = trajectories.cond[rows], trajectories.cond_mask[rows]
        u0, truth = start_and_truth(rows)
        samples = ensemble(u0, truth.shape[1], cond, cond_mask, members=members)
        mean_tables.append(score_rows(samples.mean(0), truth, task, real_rows))
        scores = ensemble_table(samples, truth, dt)
        score_tables.append({name: np.asarray(value)[:real_rows] for name, value in scores.items()})
    return concatenate_tables(mean_tables), ensemble_summary(concatenate_tables(score_tables))


def _timed_examples(
    predictor: Predictor,
    trajectories: TrajectoryArrays,
    task: Task,
    batch_size: int,
    context: int,
    rollout_nrmse: Float[np.ndarray, " n"],
) -> tuple[list[Example], float]:
    """Roll out the best, median and worst trajectory again, and return them with the seconds per trajectory and step.

    Keeping the predictions of the whole split instead would need as much memory as the data.
    """
    cond, mask, steps = trajectories.cond, trajectories.cond_mask, trajectories.fields.shape[1] - context
    order = np.argsort(np.where(np.isfinite(rollout_nrmse), rollout_nrmse, np.inf), kind="stable")
    rows = order[[0, (len(order) - 1) // 2, len(order) - 1]]
    # Padded to the chunk size of the rollout, so that nothing is compiled again.
    size = min(batch_size, len(order))
    padded_rows = np.resize(rows, -(-len(rows) // size) * size)
    truth, point_arrays = trajectories.fields[rows], get_point_arrays(trajectories)
    truth_row = np.resize(np.arange(len(rows)), len(padded_rows)).reshape(-1, size)
    preds: list[np.ndarray] = []
    seconds = 0.0
    for chunk, chunk_truth in zip(padded_rows.reshape(-1, size), truth_row, strict=True):
        arguments = (truth[chunk_truth, :context], steps, *select_condition_arrays(trajectories, chunk))
        begin = time.perf_counter()
        pred = predictor.rollout_arrays(*arguments)
        seconds += (time.perf_counter() - begin) / (steps * len(padded_rows))
        # The other rows repeat the same trajectories.
        preds += list(pred[: len(rows) - len(preds)])
    examples = [
        Example(
            label=label,
            id=str(trajectories.ids[row]),
            nrmse=float(rollout_nrmse[row]),
            coefficients={
                item.name: float(cond[row, index]) for index, item in enumerate(task.coefficients) if mask[row, index]
            },
            time=trajectories.time[context - 1 :],
            truth=fields[context - 1 :],
            prediction=np.concatenate([fields[context - 1 : context], pred]),
            point_arrays={name: values[[row]][0] for name, values in point_arrays.items()},
        )
        for label, row, fields, pred in zip(("best", "median", "worst"), rows, truth, preds, strict=True)
    ]
    return examples, seconds


def _energy_spectra(fields: np.ndarray, task: Task, real_rows: int) -> Float[np.ndarray, "b m k"]:
    """Return the energy spectra of the first `real_rows` samples in training deviations; the others are padding."""
    scale = np.asarray(task.statistics.scale, np.float32)
    return np.asarray(jax.jit(energy_spectrum)(fields / scale))[:real_rows]
