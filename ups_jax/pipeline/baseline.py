"""The baseline that a candidate is compared with, and the gate decision on this comparison.

A baseline is the evaluation of another run, the champion or one on the leaderboard, by the same protocol: task, split,
trajectories and horizon. With several seeds, a paired bootstrap gives a confidence interval of the improvement.
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
    """The evaluation of an earlier run that a candidate is compared with.

    Attributes:
        label: Label of the run on the leaderboard.
        checkpoint: Digest of the evaluated checkpoint.
        numbers: Metrics by name.
        device: Device of the evaluation.
        files: Evaluation files, one per seed; they may have been deleted.
    """

    label: str
    run_id: str
    checkpoint: str
    numbers: Mapping[str, float | None]
    device: str
    files: tuple[Path, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return label, run id, checkpoint and finite metrics as JSON values, to be stored with a gate decision."""
        numbers = {name: value for name, value in self.numbers.items() if value is not None and math.isfinite(value)}
        return {"label": self.label, "run_id": self.run_id, "checkpoint": self.checkpoint, "numbers": numbers}


@dataclass(frozen=True, kw_only=True)
class BaselineSearch:
    """The champions and the leaderboard, with the rules that select a baseline from them.

    Attributes:
        labels: Labels of possible baselines, in order of preference.
        champion_label: The label that selects the champion instead of a row of the leaderboard.
        scope: Digest of the settings, tasks and data of the candidate's full evaluation. A small evaluation is
            compared only with a champion that has the same digest.
        run_id: Id of the run to use as baseline; None selects the baseline by its label.
    """

    champions: Champions
    leaderboard: Leaderboard
    labels: tuple[str, ...]
    champion_label: str
    scope: str
    run_id: str | None = None

    def find_champion(self, section: str, evaluation: Evaluation) -> dict[str, Any] | None:
        """Return the champion that was evaluated by the protocol of `evaluation`, or None."""
        scope = self.scope if section == "small" else None
        return self.champions.find_latest(section, evaluation.task, evaluation.protocol, scope)


def find_baseline(
    search: BaselineSearch, section: str, evaluation: Evaluation, candidate_id: str, rules: GatesConfig
) -> Baseline | None:
    """Return the baseline for the evaluation of a candidate, or None if no other run has a comparable evaluation.

    Args:
        search: The champions and the leaderboard, with the selection rules.
        section: `small` or `full`.
        rules: Gate rules. Of several rows with the same label, the best by `rules.metric` is the baseline.

    Raises:
        ConfigError: If the run `search.run_id` has no comparable evaluation.
    """
    if search.run_id is not None:
        return _baseline_from_run(search, section, evaluation, candidate_id)
    for label in search.labels:
        if label == search.champion_label:
            champion = search.find_champion(section, evaluation)
            if champion is not None and not shares_checkpoint(champion, evaluation):
                return champion_baseline(search, section, champion)
            continue
        rows = [row for row in _comparable_rows(search, section, evaluation, candidate_id) if row.label == label]
        values = {row.key: value for row in rows if (value := _finite_metric(row, rules.metric)) is not None}
        if values:
            best = (max if metric_direction(rules.metric, rules) == "higher" else min)(
                values, key=lambda key: values[key]
            )
            return _baseline_from_row(next(row for row in rows if row.key == best))
    return None


def champion_baseline(search: BaselineSearch, section: str, champion: Mapping[str, Any]) -> Baseline:
    """Return the evaluation of a champion as a baseline; `section` is `small` or `full`."""
    return Baseline(
        label=search.champion_label,
        run_id=champion["run_id"],
        checkpoint=champion["checkpoint"],
        numbers=champion["evaluations"][section]["numbers"],
        device=champion["evaluations"][section]["device"],
        files=search.champions.evaluation_files(champion, section),
    )


def shares_checkpoint(champion: Mapping[str, Any], evaluation: Evaluation) -> bool:
    """Return whether a champion has one of the evaluated checkpoints and thus cannot be the evaluation's baseline."""
    return not evaluation.checkpoints.isdisjoint(champion["seeds"])


def decide_against_baseline(
    evaluation: Evaluation,
    baseline: Baseline | None,
    rules: GatesConfig,
    min_delta: float,
    *,
    n_seeds: int,
    bootstrap_seed: int,
) -> Decision:
    """Return the gate decision on the evaluation of a candidate, compared with a baseline if there is one.

    With several seeds, the improvement gets a confidence interval, whose lower bound has to reach `min_delta`.

    Args:
        min_delta: Required improvement of `rules.metric`.
        n_seeds: Number of seeds of the candidate.
        bootstrap_seed: Seed of the bootstrap that gives the interval.

    Raises:
        ConfigError: If there are several seeds, and candidate or baseline lacks metric values per trajectory.
    """
    interval = None
    if n_seeds > 1 and baseline is not None:
        candidate_scores = trajectory_scores(evaluation.results, rules.metric)
        files = baseline.files if all(file.is_file() for file in baseline.files) else ()
        baseline_scores = trajectory_scores(Evaluation.read(files).results, rules.metric) if files else None
        if candidate_scores is None or baseline_scores is None:
            raise ConfigError(
                f"key `gates.metric`: --n-seeds needs `{rules.metric}` of each trajectory, which evaluation files of "
                "candidate or baseline lack; set `gates.metric: nrmse`, or evaluate the baseline again"
            )
        interval = bootstrap_interval(candidate_scores, baseline_scores, rules, seed=bootstrap_seed)
    if baseline is None:
        return decide(
            evaluation.numbers,
            None,
            rules,
            min_delta,
            trained_on=evaluation.trained_on,
            trivial=evaluation.trivial_numbers,
            scales=evaluation.scales,
        )
    incomparable = {}
    if baseline.device != evaluation.device:
        incomparable = {"wall_clock": f"the baseline's was measured on {baseline.device}, not on {evaluation.device}"}
    return decide(
        evaluation.numbers,
        baseline.numbers,
        rules,
        min_delta,
        trained_on=evaluation.trained_on,
        trivial=evaluation.trivial_numbers,
        interval=interval,
        incomparable=incomparable,
        scales=evaluation.scales,
    )


def trajectory_scores(results: Sequence[Mapping[str, Any]], metric: str) -> Mapping[tuple[str, int], float] | None:
    """Return the value of a metric for each trajectory, averaged over the seeds.

    Args:
        results: Content of the evaluation file of each seed.
        metric: Name of the metric, with or without its section (`rollout/nrmse` or `nrmse`).

    Returns:
        The values by (task, trajectory id), or None if an evaluation has no values per trajectory.
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


def bootstrap_interval(
    candidate: Mapping[tuple[str, int], float],
    baseline: Mapping[tuple[str, int], float],
    rules: GatesConfig,
    *,
    seed: int,
    resamples: int = RESAMPLES,
) -> Interval:
    """Return a bootstrap confidence interval (95 %) of the candidate's improvement over the baseline.

    The improvement is that of the mean over trajectories; a bootstrap sample draws the same trajectories for both runs.

    Args:
        candidate: Metric of the candidate by (task, trajectory id).
        baseline: Metric of the baseline by (task, trajectory id).

    Returns:
        The interval; both bounds are NaN if the improvement of any sample is not finite.

    Raises:
        ConfigError: If the trajectories differ.
    """
    if candidate.keys() != baseline.keys():
        raise ConfigError(
            "candidate and baseline were evaluated on different trajectories; evaluate both on the same data"
        )
    keys = sorted(candidate)
    candidate_scores, baseline_scores = (np.array([side[key] for key in keys]) for side in (candidate, baseline))
    gains = _bootstrap_improvements(candidate_scores, baseline_scores, rules, np.random.default_rng(seed), resamples)
    if not np.isfinite(gains).all():
        return Interval(lower=float("nan"), upper=float("nan"))
    lower, upper = np.quantile(gains, (0.025, 0.975))
    return Interval(lower=float(lower), upper=float(upper))


def _baseline_from_run(search: BaselineSearch, section: str, evaluation: Evaluation, candidate_id: str) -> Baseline:
    """Return the latest comparable evaluation of the run `search.run_id` as a baseline."""
    rows = [row for row in _comparable_rows(search, section, evaluation, candidate_id) if row.run_id == search.run_id]
    if not rows:
        raise ConfigError(
            f"--baseline-run-id {search.run_id}: {search.leaderboard.jsonl} has no {section} evaluation of this run "
            f"to compare with the candidate; choose a run with the same protocol from `{command('leaderboard')}`"
        )
    return _baseline_from_row(rows[-1])


def _comparable_rows(search: BaselineSearch, section: str, evaluation: Evaluation, candidate_id: str) -> list[Row]:
    """Return the leaderboard rows with an evaluation's section and protocol, but other runs and checkpoints."""
    return [
        row
        for row in search.leaderboard.read()
        if row.stage == f"{section}_eval"
        and row.protocol == evaluation.protocol
        and row.run_id != candidate_id
        and evaluation.checkpoints.isdisjoint(row.checkpoints or (row.checkpoint,))
    ]


def _baseline_from_row(row: Row) -> Baseline:
    """Return the evaluation of a leaderboard row as a baseline."""
    return Baseline(
        label=row.label,
        run_id=row.run_id,
        checkpoint=row.checkpoint,
        numbers=row.metrics,
        device=row.device,
        files=tuple(Path(name) for name in row.results),
    )


def _finite_metric(row: Row, metric: str) -> float | None:
    """Return a metric of a leaderboard row, or None if it is missing or not finite."""
    value = row.metrics.get(metric)
    return value if value is not None and math.isfinite(value) else None


def _bootstrap_improvements(
    candidate: Float[np.ndarray, " trajectories"],
    baseline: Float[np.ndarray, " trajectories"],
    rules: GatesConfig,
    rng: np.random.Generator,
    resamples: int,
) -> Float[np.ndarray, " resamples"]:
    """Return the improvement of the mean metric over the trajectories for each bootstrap sample."""
    samples = (rng.integers(len(candidate), size=len(candidate)) for _ in range(resamples))
    means = ((float(candidate[sample].mean()), float(baseline[sample].mean())) for sample in samples)
    return np.array([improvement(value, reference, rules, rules.metric) for value, reference in means])
