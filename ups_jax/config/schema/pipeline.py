"""Sections of the configuration about the pipeline: its two evaluations and the gates of a promotion."""

from __future__ import annotations

from dataclasses import field
from typing import Literal

from pydantic.dataclasses import dataclass

from ups_jax.config.schema.fields import STRICT, FiniteFloat, Positive, PositiveFloat, Weight


@dataclass(frozen=True, kw_only=True, config=STRICT)
class GatesConfig:
    """Conditions under which `ups-jax pipeline` promotes a candidate; [docs/pipeline.md](pipeline.md) explains them.

    Metrics have the names of an evaluation, such as `nrmse` of a rollout and `one_step/nrmse` of single steps. Further
    metrics are `conservation_gap`, `bc_violation`, `ece` and `wall_clock`. Lower values are better, except for the
    metrics in `higher_is_better`.
    """

    metric: str = "nrmse"
    """Metric that has to improve over the champion."""

    delta: Literal["relative", "absolute"] = "relative"
    """Unit of an improvement: `relative`, as a share of the champion's value, or `absolute`, in the metric's unit."""

    min_small_delta: FiniteFloat = 0.02
    """Smallest improvement in the small evaluation."""

    min_full_delta: FiniteFloat = 0.02
    """Smallest improvement in the full evaluation."""

    ratios: dict[str, PositiveFloat] = field(
        default_factory=lambda: {"conservation_gap": 1.0, "bc_violation": 1.0, "ece": 1.25, "wall_clock": 1.0}
    )
    """Largest ratio of a metric to the champion's value."""

    tolerance: Weight = 0.05
    """Relative tolerance of the ratios."""

    tolerances: dict[str, Weight] = field(default_factory=lambda: {"wall_clock": 0.5})
    """Relative tolerances of single metrics, in place of `tolerance`."""

    floor: Weight = 1e-6
    """A value up to this is round-off and passes its ratio, whatever the champion's value is. For metrics in the unit
    of the fields, the floor is in units of their training standard deviation."""

    floors: dict[str, Weight] = field(default_factory=lambda: {"ece": 0.02, "wall_clock": 1e-3})
    """Floors of single metrics in their own units, in place of `floor`."""

    limits: dict[str, FiniteFloat] = field(default_factory=dict)
    """Bounds of metrics in their own units, independent of the champion. With several tasks they hold for each task;
    the bound of one task is written as `nrmse@burgers1d`."""

    higher_is_better: tuple[str, ...] = ("correlation_time",)
    """Metrics that should be high; their bounds are lower bounds."""

    required: tuple[str, ...] = ()
    """Metrics that must be measured and finite, in addition to `gates.metric` and those of `gates.limits`."""

    on_missing: Literal["fail", "warn"] = "fail"
    """Result of a ratio that only the champion has measured, and of an evaluation for which it is not known how many of
    its trajectories were trained on: `fail` or `warn`."""

    beat_trivial: bool = True
    """The candidate must be better than persistence (for steady tasks, than the mean field)."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class FullEvaluationConfig:
    """The full evaluation, which decides whether a candidate is promoted."""

    split: Literal["val", "test"] = "test"
    """Split that is evaluated: `val` or `test`."""

    trajectories: Positive | None = None
    """Number of trajectories, from the first; `null` takes `evaluation.trajectories`."""

    horizon: Positive | None = None
    """Frames of each trajectory that are predicted; `null` takes all."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class SmallEvaluationConfig(FullEvaluationConfig):
    """The small evaluation, which rejects a bad candidate early."""

    split: Literal["val", "test"] = "val"
    trajectories: Positive | None = 16


@dataclass(frozen=True, kw_only=True, config=STRICT)
class PipelineConfig:
    """The two evaluations of the pipeline."""

    small: SmallEvaluationConfig = field(default_factory=SmallEvaluationConfig)
    full: FullEvaluationConfig = field(default_factory=FullEvaluationConfig)
