"""The baseline that a candidate has to beat, and by how much it does.

A baseline is the champion of the candidate's protocol or a row of the leaderboard, never the candidate itself. Over
several seeds the improvement has an interval, by a paired bootstrap over the trajectories.
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

RESAMPLES = 2000


@dataclass(frozen=True, kw_only=True)
class Baseline:
    """An earlier run with comparable numbers. `files` are its evaluations, which may not be there any more."""

    label: str
    run_id: str
    checkpoint: str
    numbers: Mapping[str, float | None]
    device: str
    files: tuple[Path, ...]

    def to_dict(self) -> dict[str, Any]:
        """What is kept of it beside a decision."""
        numbers = {name: value for name, value in self.numbers.items() if value is not None and math.isfinite(value)}
        return {"label": self.label, "run_id": self.run_id, "checkpoint": self.checkpoint, "numbers": numbers}


@dataclass(frozen=True, kw_only=True)
class Search:
    """Where baselines are looked for: the labels in the order of preference, or one run by its id. `scope` is of the
    full evaluation: a small one is held only against champions of the same."""

    champions: Champions
    board: Leaderboard
    labels: tuple[str, ...]
    champion_label: str
    scope: str
    run_id: str | None = None

    def champion(self, section: str, evaluated: Evaluation) -> dict[str, Any] | None:
        """The champion that an evaluation is to be held against, which may be the candidate itself."""
        scope = self.scope if section == "small" else None
        return self.champions.find(section, evaluated.task, evaluated.protocol, scope)


def find_baseline(
    search: Search, section: str, evaluated: Evaluation, candidate: str, rules: GatesConfig
) -> Baseline | None:
    """The baseline of a candidate's evaluation, None where nothing is comparable with it."""
    if search.run_id is not None:
        return _of_run(search, section, evaluated, candidate)
    for label in search.labels:
        if label == search.champion_label:
            champion = search.champion(section, evaluated)
            if champion is not None and not is_same(champion, evaluated):
                return of_champion(search, section, champion)
            continue
        rows = [row for row in _comparable(search, section, evaluated, candidate) if row.label == label]
        known = {row.key: value for row in rows if (value := _value(row, rules.metric)) is not None}
        if known:
            best = (max if metric_direction(rules.metric, rules) == "higher" else min)(
                known, key=lambda key: known[key]
            )
            return _of_row(next(row for row in rows if row.key == best))
    return None


def of_champion(search: Search, section: str, champion: Mapping[str, Any]) -> Baseline:
    """A champion as the baseline of an evaluation that it has."""
    return Baseline(
        label=search.champion_label,
        run_id=champion["run_id"],
        checkpoint=champion["checkpoint"],
        numbers=champion["evaluations"][section]["numbers"],
        device=champion["evaluations"][section]["device"],
        files=search.champions.files(champion, section),
    )


def is_same(champion: Mapping[str, Any], evaluated: Evaluation) -> bool:
    """Whether the candidate and a champion share a checkpoint, of whichever seed: nobody is better than himself."""
    return not evaluated.checkpoints.isdisjoint(champion["seeds"])


def judge(
    evaluated: Evaluation, baseline: Baseline | None, rules: GatesConfig, min_delta: float, *, seeds: int, seed: int
) -> Decision:
    """The gates of an evaluation. Of several seeds the improvement's lower bound counts, by a bootstrap over the
    trajectories; ConfigError where that cannot be had."""
    interval = None
    if seeds > 1 and baseline is not None:
        own = trajectory_scores(evaluated.results, rules.metric)
        files = baseline.files if all(file.is_file() for file in baseline.files) else ()
        theirs = trajectory_scores(Evaluation.read(files).results, rules.metric) if files else None
        if own is None or theirs is None:
            raise ConfigError(
                f"gates.metric={rules.metric}: has no value for each trajectory on both sides, which --n-seeds needs; "
                "use nrmse, and a baseline whose evaluation is still there"
            )
        interval = paired_interval(own, theirs, rules, seed=seed)
    if baseline is None:
        return decide(evaluated.numbers, None, rules, min_delta, trivial=evaluated.trivial)
    other = {}
    if baseline.device != evaluated.device:
        other = {"wall_clock": f"the baseline's was measured on {baseline.device}, not on {evaluated.device}"}
    return decide(
        evaluated.numbers,
        baseline.numbers,
        rules,
        min_delta,
        trivial=evaluated.trivial,
        interval=interval,
        incomparable=other,
    )


def trajectory_scores(results: Sequence[Mapping[str, Any]], metric: str) -> Mapping[tuple[str, int], float] | None:
    """The metric of each trajectory (task, id), mean over the seeds; None where an evaluation has none of them."""
    names = [metric] if "/" in metric else [f"rollout/{metric}", f"steady/{metric}"]
    found: dict[tuple[str, int], list[float]] = {}
    for result in results:
        for task, own in result.get("per_trajectory", {}).items():
            for section, _, key in (name.partition("/") for name in names):
                values = own.get(section, {}).get(key)
                for number, value in zip(own["ids"], values or (), strict=values is not None):
                    found.setdefault((task, number), []).append(np.nan if value is None else value)
    if not found or any(len(values) != len(results) for values in found.values()):
        return None
    return {key: float(np.mean(values)) for key, values in found.items()}


def paired_interval(
    candidate: Mapping[tuple[str, int], float],
    baseline: Mapping[tuple[str, int], float],
    rules: GatesConfig,
    *,
    seed: int,
    resamples: int = RESAMPLES,
) -> Interval:
    """The 2.5 and 97.5 % quantiles of the improvement of the mean; NaN where a score is not finite.

    ConfigError where the two sides were measured on other trajectories.
    """
    if candidate.keys() != baseline.keys():
        raise ConfigError("candidate and baseline were measured on other trajectories; evaluate both on the same ones")
    keys = sorted(candidate)
    own, theirs = (np.array([side[key] for key in keys]) for side in (candidate, baseline))
    gains = _resampled(own, theirs, rules, np.random.default_rng(seed), resamples)
    if not np.isfinite(gains).all():
        return Interval(lower=float("nan"), upper=float("nan"))
    lower, upper = np.quantile(gains, (0.025, 0.975))
    return Interval(lower=float(lower), upper=float(upper))


def _of_run(search: Search, section: str, evaluated: Evaluation, candidate: str) -> Baseline:
    rows = [row for row in _comparable(search, section, evaluated, candidate) if row.run_id == search.run_id]
    if not rows:
        raise ConfigError(
            f"--baseline-run-id {search.run_id}: {search.board.jsonl} has no {section} evaluation of it with the same "
            f"task, split, horizon and data; list what there is with `{command('leaderboard')}`"
        )
    return _of_row(rows[-1])


def _comparable(search: Search, section: str, evaluated: Evaluation, candidate: str) -> list[Row]:
    """Rows of the same evaluation of other runs and other checkpoints."""
    return [
        row
        for row in search.board.read()
        if row.stage == f"{section}_eval"
        and row.protocol == evaluated.protocol
        and row.run_id != candidate
        and evaluated.checkpoints.isdisjoint(row.checkpoints or (row.checkpoint,))
    ]


def _of_row(row: Row) -> Baseline:
    return Baseline(
        label=row.label,
        run_id=row.run_id,
        checkpoint=row.checkpoint,
        numbers=row.metrics,
        device=row.device,
        files=tuple(Path(name) for name in row.results),
    )


def _value(row: Row, metric: str) -> float | None:
    value = row.metrics.get(metric)
    return value if value is not None and math.isfinite(value) else None


def _resampled(
    own: Float[np.ndarray, " n"],
    theirs: Float[np.ndarray, " n"],
    rules: GatesConfig,
    drawn: np.random.Generator,
    resamples: int,
) -> Float[np.ndarray, " r"]:
    rows = (drawn.integers(len(own), size=len(own)) for _ in range(resamples))
    means = ((float(own[row].mean()), float(theirs[row].mean())) for row in rows)
    return np.array([improvement(one, other, rules, rules.metric) for one, other in means])
