"""The baseline that a candidate is compared with, and the gate decision on this comparison.

A baseline is the champion of the candidate's protocol or a row of the leaderboard, never the candidate itself. With
several seeds, a paired bootstrap over the trajectories gives the improvement a confidence interval.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from ups_jax.config import GatesConfig
from ups_jax.core.commands import command
from ups_jax.core.errors import ConfigError
from ups_jax.pipeline.champions import Champions
from ups_jax.pipeline.gates import Decision, Interval, decide, improvement, metric_direction
from ups_jax.pipeline.leaderboard import Leaderboard, Row
from ups_jax.pipeline.scores import Evaluation

# Number of bootstrap samples.
RESAMPLES = 2000


@dataclass(frozen=True, kw_only=True)
class Baseline:
    """An evaluation of an earlier run that a candidate is compared with.

    Attributes:
        label: Label of the run on the leaderboard.
        run_id: Id of the run.
        checkpoint: Digest of its checkpoint.
        numbers: Its metrics by name.
        device: Device that it was evaluated on.
        files: Its evaluation files, one per seed; they may have been deleted.
    """

    label: str
    run_id: str
    checkpoint: str
    numbers: Mapping[str, float | None]
    device: str
    files: tuple[Path, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return the values that are stored with a gate decision; non-finite numbers are dropped."""
        numbers = {name: value for name, value in self.numbers.items() if value is not None and math.isfinite(value)}
        return {"label": self.label, "run_id": self.run_id, "checkpoint": self.checkpoint, "numbers": numbers}


@dataclass(frozen=True, kw_only=True)
class BaselineSearch:
    """The champions and the leaderboard, with the rules that select a baseline from them.

    Attributes:
        champions: All champions.
        board: The leaderboard.
        labels: Labels of possible baselines, in order of preference.
        champion_label: The label that stands for the champion.
        scope: Digest of what the full evaluation covers. A small evaluation is compared only with champions of the
            same scope.
        run_id: Id of the run to use as baseline instead of a label, or None.
    """

    champions: Champions
    board: Leaderboard
    labels: tuple[str, ...]
    champion_label: str
    scope: str
    run_id: str | None = None

    def find_champion(self, section: str, evaluation: Evaluation) -> dict[str, Any] | None:
        """Return the champion to compare an evaluation with, or None; it may have the same checkpoint."""
        scope = self.scope if section == "small" else None
        return self.champions.find(section, evaluation.task, evaluation.protocol, scope)


def find_baseline(
    search: BaselineSearch, section: str, evaluation: Evaluation, candidate_id: str, rules: GatesConfig
) -> Baseline | None:
    """Return the baseline for a candidate's evaluation, or None if there is no comparable one.

    Args:
        search: Where to search.
        section: `small` or `full`.
        evaluation: The evaluation of the candidate.
        candidate_id: Run id of the candidate.
        rules: Gate rules; `rules.metric` decides between several rows with the same label.

    Raises:
        ConfigError: If `search.run_id` is set and this run has no comparable evaluation.
    """
    if search.run_id is not None:
        return _run_baseline(search, section, evaluation, candidate_id)
    for label in search.labels:
        if label == search.champion_label:
            champion = search.find_champion(section, evaluation)
            if champion is not None and not shares_checkpoint(champion, evaluation):
                return champion_baseline(search, section, champion)
            continue
        rows = [row for row in _comparable(search, section, evaluation, candidate_id) if row.label == label]
        values = {row.key: value for row in rows if (value := _finite_metric(row, rules.metric)) is not None}
        if values:
            best = (max if metric_direction(rules.metric, rules) == "higher" else min)(
                values, key=lambda key: values[key]
            )
            return _row_baseline(next(row for row in rows if row.key == best))
    return None


def champion_baseline(search: BaselineSearch, section: str, champion: Mapping[str, Any]) -> Baseline:
    """Return a champion as the baseline for the evaluation `section`, `small` or `full`."""
    return Baseline(
        label=search.champion_label,
        run_id=champion["run_id"],
        checkpoint=champion["checkpoint"],
        numbers=champion["evaluations"][section]["numbers"],
        device=champion["evaluations"][section]["device"],
        files=search.champions.evaluation_files(champion, section),
    )


def shares_checkpoint(champion: Mapping[str, Any], evaluation: Evaluation) -> bool:
    """Return whether the candidate and a champion have a checkpoint in common, which rules out a comparison."""
    return not evaluation.checkpoints.isdisjoint(champion["seeds"])


def decide_against_baseline(
    evaluation: Evaluation, baseline: Baseline | None, rules: GatesConfig, min_delta: float, *, seeds: int, seed: int
) -> Decision:
    """Return the gate decision on an evaluation.

    With several seeds, the lower bound of the improvement's bootstrap interval has to reach `min_delta`.

    Args:
        evaluation: The evaluation of the candidate.
        baseline: The evaluation to compare with, or None.
        rules: Gate rules.
        min_delta: Required improvement of `rules.metric`.
        seeds: Number of seeds of the candidate.
        seed: Seed of the bootstrap.

    Raises:
        ConfigError: If there are several seeds and a side has no values per trajectory.
    """
    interval = None
    if seeds > 1 and baseline is not None:
        candidate_scores = trajectory_scores(evaluation.results, rules.metric)
        files = baseline.files if all(file.is_file() for file in baseline.files) else ()
        baseline_scores = trajectory_scores(Evaluation.read(files).results, rules.metric) if files else None
        if candidate_scores is None or baseline_scores is None:
            raise ConfigError(
                f"gates.metric={rules.metric}: candidate or baseline has no values per trajectory, which --n-seeds "
                "needs; use nrmse, and a baseline whose evaluation files still exist"
            )
        interval = paired_interval(candidate_scores, baseline_scores, rules, seed=seed)
    if baseline is None:
        return decide(evaluation.numbers, None, rules, min_delta, trivial=evaluation.trivial_numbers)
    incomparable = {}
    if baseline.device != evaluation.device:
        incomparable = {"wall_clock": f"the baseline's was measured on {baseline.device}, not on {evaluation.device}"}
    return decide(
        evaluation.numbers,
        baseline.numbers,
        rules,
        min_delta,
        trivial=evaluation.trivial_numbers,
        interval=interval,
        incomparable=incomparable,
    )


def trajectory_scores(results: Sequence[Mapping[str, Any]], metric: str) -> Mapping[tuple[str, int], float] | None:
    """Return a metric for each trajectory (task, trajectory id), averaged over the seeds.

    Args:
        results: The evaluation of each seed.
        metric: Name of the metric, with or without its section (`rollout/nrmse` or `nrmse`).

    Returns:
        The values, NaN where a value is not finite, or None if an evaluation lacks values per trajectory.
    """
    names = [metric] if "/" in metric else [f"rollout/{metric}", f"steady/{metric}"]
    scores: dict[tuple[str, int], list[float]] = {}
    for result in results:
        for task, task_values in result.get("per_trajectory", {}).items():
            for section, _, key in (name.partition("/") for name in names):
                values = task_values.get(section, {}).get(key)
                for trajectory, value in zip(task_values["ids"], values or (), strict=values is not None):
                    scores.setdefault((task, trajectory), []).append(np.nan if value is None else value)
    if not scores or any(len(values) != len(results) for values in scores.values()):
        return None
    return {key: float(np.mean(values)) for key, values in scores.items()}


def paired_interval(
    candidate: Mapping[tuple[str, int], float],
    baseline: Mapping[tuple[str, int], float],
    rules: GatesConfig,
    *,
    seed: int,
    resamples: int = RESAMPLES,
) -> Interval:
    """Return the 2.5 % and 97.5 % quantiles of the improvement of the mean, by a paired bootstrap.

    Args:
        candidate: Metric of the candidate for each trajectory (task, trajectory id).
        baseline: Metric of the baseline for the same trajectories.
        rules: Gate rules, which define the improvement.
        seed: Seed of the resampling.
        resamples: Number of bootstrap samples.

    Returns:
        The interval; both bounds are NaN if any improvement is not finite.

    Raises:
        ConfigError: If the trajectories differ.
    """
    if candidate.keys() != baseline.keys():
        raise ConfigError(
            "candidate and baseline were evaluated on different trajectories; evaluate both on the same ones"
        )
    keys = sorted(candidate)
    candidate_scores, baseline_scores = (np.array([side[key] for key in keys]) for side in (candidate, baseline))
    gains = _bootstrap_gains(candidate_scores, baseline_scores, rules, np.random.default_rng(seed), resamples)
    if not np.isfinite(gains).all():
        return Interval(lower=float("nan"), upper=float("nan"))
    lower, upper = np.quantile(gains, (0.025, 0.975))
    return Interval(lower=float(lower), upper=float(upper))


def _run_baseline(search: BaselineSearch, section: str, evaluation: Evaluation, candidate_id: str) -> Baseline:
    """Return the latest comparable evaluation of the run `search.run_id`."""
    rows = [row for row in _comparable(search, section, evaluation, candidate_id) if row.run_id == search.run_id]
    if not rows:
        raise ConfigError(
            f"--baseline-run-id {search.run_id}: {search.board.jsonl} has no {section} evaluation of this run with the "
            f"same task, split, horizon and data; list all evaluations with `{command('leaderboard')}`"
        )
    return _row_baseline(rows[-1])


def _comparable(search: BaselineSearch, section: str, evaluation: Evaluation, candidate_id: str) -> list[Row]:
    """Return the rows of other runs and other checkpoints that were evaluated by the same protocol."""
    return [
        row
        for row in search.board.read()
        if row.stage == f"{section}_eval"
        and row.protocol == evaluation.protocol
        and row.run_id != candidate_id
        and evaluation.checkpoints.isdisjoint(row.checkpoints or (row.checkpoint,))
    ]


def _row_baseline(row: Row) -> Baseline:
    """Return a row of the leaderboard as a baseline."""
    return Baseline(
        label=row.label,
        run_id=row.run_id,
        checkpoint=row.checkpoint,
        numbers=row.metrics,
        device=row.device,
        files=tuple(Path(name) for name in row.results),
    )


def _finite_metric(row: Row, metric: str) -> float | None:
    """Return a metric of a row, or None if it is missing or not finite."""
    value = row.metrics.get(metric)
    return value if value is not None and math.isfinite(value) else None


def _bootstrap_gains(
    candidate: Float[np.ndarray, " n"],
    baseline: Float[np.ndarray, " n"],
    rules: GatesConfig,
    rng: np.random.Generator,
    resamples: int,
) -> Float[np.ndarray, " r"]:
    """Return the improvement of the mean for each bootstrap sample of the trajectories."""
    samples = (rng.integers(len(candidate), size=len(candidate)) for _ in range(resamples))
    means = ((float(candidate[sample].mean()), float(baseline[sample].mean())) for sample in samples)
    return np.array([improvement(value, reference, rules, rules.metric) for value, reference in means])
