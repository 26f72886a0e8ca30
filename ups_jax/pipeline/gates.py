"""Gates: rules on the metrics of a candidate that decide whether it may be promoted.

All functions are pure functions of metrics by name. A metric that was not measured is absent; one that is not finite is
NaN or None.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from ups_jax.config import GatesConfig
from ups_jax.pipeline.scores import strip_task

Numbers = Mapping[str, float | None]
Kind = Literal["delta", "ratio", "absolute", "trivial", "required"]
Direction = Literal["lower", "higher"]
# `ignored`: the baseline has no comparable value; `warned`: missing, with `gates.on_missing: warn`.
Status = Literal["pass", "fail", "missing", "not_applicable", "no_baseline", "ignored", "warned"]
_REFUSED = ("fail", "missing")


@dataclass(frozen=True, kw_only=True)
class Interval:
    """Bootstrap confidence interval of the improvement, in the unit of the delta gate."""

    lower: float
    upper: float


@dataclass(frozen=True, kw_only=True)
class Gate:
    """The result of one rule for one metric.

    Attributes:
        key: Name of the metric.
        kind: Kind of the rule.
        direction: Whether lower or higher values are better.
        status: Result of the rule.
        message: The result as text.
        limit: Bound on the candidate's value; for kind `delta`, on its improvement.
        baseline: Value of the baseline.
        candidate: Value of the candidate.
    """

    key: str
    kind: Kind
    direction: Direction
    status: Status
    message: str
    limit: float | None = None
    baseline: float | None = None
    candidate: float | None = None

    @property
    def passed(self) -> bool:
        """Whether the rule allows a promotion."""
        return self.status not in _REFUSED


@dataclass(frozen=True, kw_only=True)
class Decision:
    """The gate decision on an evaluation.

    Attributes:
        status: `passed`, `failed`, or `no_baseline`: passed, but there is no comparable baseline.
        gates: The result of each rule.
    """

    status: Literal["passed", "failed", "no_baseline"]
    gates: tuple[Gate, ...]

    @property
    def passed(self) -> bool:
        """Whether all rules allow a promotion."""
        return self.status != "failed"

    @property
    def reasons(self) -> list[str]:
        """The messages of the failed gates."""
        return [gate.message for gate in self.gates if not gate.passed]

    def to_dict(self) -> dict[str, Any]:
        """Return the decision as JSON values; non-finite numbers become None."""
        gates = [{key: _finite_or_none(value) for key, value in asdict(gate).items()} for gate in self.gates]
        return {"status": self.status, "passed": self.passed, "reasons": self.reasons, "gates": gates}


def decide(
    candidate: Numbers,
    baseline: Numbers | None,
    rules: GatesConfig,
    min_delta: float,
    *,
    trivial: Numbers | None = None,
    interval: Interval | None = None,
    incomparable: Mapping[str, str] = {},
) -> Decision:
    """Return the decision of all gates on a candidate.

    With several tasks, the mean of `rules.metric` has to improve, its value on each task may be worse than the
    baseline's only within the tolerance, and every other rule applies to each task separately.

    Args:
        candidate: Metrics of the candidate.
        baseline: Metrics of the baseline, or None.
        rules: Gate rules of the configuration.
        min_delta: Required improvement of `rules.metric`.
        trivial: Metrics of persistence or of the mean field on the same data.
        interval: Confidence interval of the improvement; if set, its lower bound has to reach `min_delta`.
        incomparable: Metrics that must not be compared with the baseline, with the reason.
    """
    gates = (
        _delta(candidate, baseline, rules, min_delta, interval, incomparable),
        *(gate for key in _task_keys(rules.metric, candidate) for gate in _trivial(key, candidate, trivial, rules)),
        *(
            _ratio(key, rules.ratios[rule], candidate, baseline, rules, incomparable)
            for rule in sorted(rules.ratios)
            for key in _task_keys(rule, candidate, baseline)
        ),
        # An improved mean must not hide that one task has become worse.
        *(
            _ratio(key, 1.0, candidate, baseline, rules, incomparable)
            for key in _task_keys(rules.metric, candidate, baseline)
            if key != rules.metric and rules.metric not in rules.ratios
        ),
        *(
            _limit(key, rules.limits[rule], candidate, rules)
            for rule in sorted(rules.limits)
            for key in _task_keys(rule, candidate)
        ),
        *(_required(key, candidate, rules) for rule in rules.required for key in _task_keys(rule, candidate)),
    )
    if not all(gate.passed for gate in gates):
        return Decision(status="failed", gates=gates)
    return Decision(status="no_baseline" if gates[0].status in ("no_baseline", "ignored") else "passed", gates=gates)


def improvement(candidate: float, baseline: float, rules: GatesConfig, key: str) -> float:
    """Return the improvement of the candidate over the baseline; positive is better.

    Args:
        candidate: Value of the candidate.
        baseline: Value of the baseline.
        rules: Gate rules; with `delta: absolute` the result has the metric's unit, else it is a fraction of `baseline`.
        key: Name of the metric.
    """
    gain = candidate - baseline if metric_direction(key, rules) == "higher" else baseline - candidate
    if rules.delta == "absolute" or gain == 0:
        return gain
    return gain / abs(baseline) if baseline else math.copysign(math.inf, gain)


def _delta(
    candidate: Numbers,
    baseline: Numbers | None,
    rules: GatesConfig,
    min_delta: float,
    interval: Interval | None,
    incomparable: Mapping[str, str],
) -> Gate:
    """Return the gate on the improvement of `rules.metric`."""
    key = rules.metric
    fields: dict[str, Any] = {
        "key": key,
        "kind": "delta",
        "direction": metric_direction(key, rules),
        "limit": min_delta,
    }
    value = _finite(candidate, key)
    if value is None:
        return _missing(fields, candidate)
    fields |= {"candidate": value}
    reference = _comparable(fields, baseline, incomparable)
    if isinstance(reference, Gate):
        return reference
    gain = improvement(value, reference, rules, key)
    compared = gain if interval is None else interval.lower
    passed = compared >= min_delta or math.isclose(compared, min_delta, rel_tol=1e-9, abs_tol=1e-12)
    bound = "" if interval is None else f", at least {_format_improvement(interval.lower, rules)} by the bootstrap"
    message = (
        f"{key}: {value:.4g} is {_format_improvement(abs(gain), rules)} {'better' if gain >= 0 else 'worse'} "
        f"than the baseline's {reference:.4g}{bound}; {_format_improvement(min_delta, rules)} better is required"
    )
    return Gate(**fields, baseline=reference, status="pass" if passed else "fail", message=message)


def _task_keys(rule: str, *sides: Numbers | None) -> list[str]:
    """Return the metrics that a rule applies to: one per task if any task has the metric, else the metric itself."""
    keys = {key for side in sides for key in side or () if strip_task(key) != key}
    if not any(strip_task(key) == rule for key in keys):
        return [rule]
    return [f"{rule}@{task}" for task in sorted({key.partition("@")[2] for key in keys})]


def _trivial(key: str, candidate: Numbers, trivial: Numbers | None, rules: GatesConfig) -> Iterator[Gate]:
    """Yield the gate against the trivial prediction, if there is a value to compare with."""
    bound, value = _finite(trivial or {}, key), _finite(candidate, key)
    # A candidate without the metric fails by its delta gate.
    if not rules.beat_trivial or bound is None or value is None:
        return
    better_direction = metric_direction(key, rules)
    better = value > bound if better_direction == "higher" else value < bound
    yield Gate(
        key=key,
        kind="trivial",
        direction=better_direction,
        limit=bound,
        candidate=value,
        status="pass" if better else "fail",
        message=f"{key}: {value:.4g} is {'' if better else 'not '}better than {bound:.4g} of the trivial prediction",
    )


def _ratio(
    key: str,
    factor: float,
    candidate: Numbers,
    baseline: Numbers | None,
    rules: GatesConfig,
    incomparable: Mapping[str, str],
) -> Gate:
    """Return the gate on the ratio between candidate and baseline."""
    better_direction = metric_direction(key, rules)
    fields: dict[str, Any] = {"key": key, "kind": "ratio", "direction": better_direction}
    value = _finite(candidate, key)
    if value is None and (key in candidate or key in (baseline or {})):
        # A measured value that is not finite always fails.
        warned = (
            rules.on_missing == "warn" and key not in candidate and not {key, strip_task(key)} & set(rules.required)
        )
        fields |= {"baseline": _finite(baseline or {}, key)}
        return _missing(fields, candidate, "warned" if warned else "missing")
    if value is None:
        return Gate(**fields, status="not_applicable", message=f"{key}: not measured for candidate and baseline")
    fields |= {"candidate": value}
    reference = _comparable(fields, baseline, incomparable)
    if isinstance(reference, Gate):
        return reference
    tolerance = _setting(rules.tolerances, key, rules.tolerance)
    if better_direction == "higher":
        limit = reference / factor - tolerance * abs(reference / factor)
        passed, side = value >= limit, "least"
    else:
        limit = max(factor * reference + tolerance * abs(factor * reference), _setting(rules.floors, key, rules.floor))
        passed, side = value <= limit, "most"
    message = f"{key}: {value:.4g} against the baseline's {reference:.4g}; at {side} {limit:.4g} is allowed"
    return Gate(**fields, baseline=reference, limit=limit, status="pass" if passed else "fail", message=message)


def _missing(fields: Mapping[str, Any], candidate: Numbers, status: Status = "missing") -> Gate:
    """Return the gate of a metric that the candidate lacks."""
    key = fields["key"]
    return Gate(**fields, status=status, message=f"{key}: the candidate's value is {_absence(candidate, key)}")


def _comparable(fields: Mapping[str, Any], baseline: Numbers | None, incomparable: Mapping[str, str]) -> float | Gate:
    """Return the baseline's value, or the finished gate if there is no value to compare with."""
    key, message = fields["key"], f"{fields['key']}: {fields['candidate']:.4g}"
    if baseline is None:
        return Gate(**fields, status="no_baseline", message=f"{message}; no comparable run has been promoted yet")
    reference = _finite(baseline, key)
    if reference is None or key in incomparable:
        why = incomparable.get(key, f"the baseline's value is {_absence(baseline, key)}")
        return Gate(**fields, status="ignored", message=f"{message}; {why} and is ignored")
    return reference


def _setting(values: Mapping[str, float], key: str, default: float) -> float:
    """Return the setting for a metric of a task, else for the metric, else the default."""
    return values.get(key, values.get(strip_task(key), default))


def _limit(key: str, limit: float, candidate: Numbers, rules: GatesConfig) -> Gate:
    """Return the gate on an absolute limit."""
    better_direction, value = metric_direction(key, rules), _finite(candidate, key)
    fields: dict[str, Any] = {"key": key, "kind": "absolute", "direction": better_direction, "limit": limit}
    if value is None:
        return _missing(fields, candidate)
    passed = value >= limit if better_direction == "higher" else value <= limit
    message = f"{key}: {value:.4g}; at {'least' if better_direction == 'higher' else 'most'} {limit:.4g} is allowed"
    return Gate(**fields, candidate=value, status="pass" if passed else "fail", message=message)


def _required(key: str, candidate: Numbers, rules: GatesConfig) -> Gate:
    """Return the gate on the presence of a metric."""
    value = _finite(candidate, key)
    fields: dict[str, Any] = {
        "key": key,
        "kind": "required",
        "direction": metric_direction(key, rules),
        "candidate": value,
    }
    if value is None:
        return _missing(fields, candidate)
    return Gate(**fields, status="pass", message=f"{key}: {value:.4g} is measured, as required")


def metric_direction(key: str, rules: GatesConfig) -> Direction:
    """Return whether lower or higher values of a metric are better; task and section are ignored.

    Args:
        key: Name of the metric, such as `rollout/correlation_time@waves`.
        rules: Gate rules; `higher_is_better` lists the metrics with direction `higher`.
    """
    name = strip_task(key)
    return "higher" if {key, name, name.rpartition("/")[2]} & set(rules.higher_is_better) else "lower"


def _finite(numbers: Numbers, key: str) -> float | None:
    """Return a metric, or None if it is missing or not finite."""
    value = numbers.get(key)
    return float(value) if value is not None and math.isfinite(value) else None


def _absence(numbers: Numbers, key: str) -> str:
    """Return why a metric has no finite value."""
    return "not a finite number" if key in numbers else "not measured"


def _format_improvement(value: float, rules: GatesConfig) -> str:
    """Return an improvement as text, in percent or in the metric's unit."""
    return f"{value:.4g}" if rules.delta == "absolute" else f"{100 * value:.2f} %"


def _finite_or_none(value: Any) -> Any:
    """Return the value, or None for a non-finite number."""
    return None if isinstance(value, float) and not math.isfinite(value) else value
