"""Gates: rules on the metrics of a candidate that decide whether it may be promoted.

All functions are pure. Metrics are mappings by metric name; a metric that was not measured is absent, and one that is
not finite is NaN or None.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from ups_jax.config import GatesConfig
from ups_jax.pipeline.scores import strip_task

Numbers = Mapping[str, float | None]
Kind = Literal["delta", "ratio", "absolute", "trivial", "required", "unseen"]
Direction = Literal["lower", "higher"]
# `ignored`: the baseline has no comparable value; `warned`: missing, with `gates.on_missing: warn`.
Status = Literal["pass", "fail", "missing", "not_applicable", "no_baseline", "ignored", "warned"]
_REFUSED = ("fail", "missing")


@dataclass(frozen=True, kw_only=True)
class Interval:
    """Bootstrap confidence interval of an improvement, relative or absolute as the key `gates.delta` selects."""

    lower: float
    upper: float


@dataclass(frozen=True, kw_only=True)
class Gate:
    """The result of one gate rule for one metric.

    Attributes:
        kind: Kind of the rule.
        direction: Whether lower or higher values are better.
        status: Result of the rule.
        limit: Bound on the candidate's value; for the kind `delta`, bound on its improvement.
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
        status: `passed`, `failed`, or `no_baseline` if all rules passed without a comparable baseline.
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
        gates = [{key: _none_if_not_finite(value) for key, value in asdict(gate).items()} for gate in self.gates]
        return {"status": self.status, "passed": self.passed, "reasons": self.reasons, "gates": gates}


def decide(
    candidate: Numbers,
    baseline: Numbers | None,
    rules: GatesConfig,
    min_delta: float,
    *,
    trained_on: float | None,
    trivial: Numbers | None = None,
    interval: Interval | None = None,
    incomparable: Mapping[str, str] = {},
    scales: Mapping[str, float] = {},
) -> Decision:
    """Apply all gate rules to the metrics of a candidate and return the decision.

    With several tasks, the mean of `rules.metric` over the tasks has to improve, and on no task may the metric be worse
    than the tolerance allows. Every other rule applies to each task separately.

    Args:
        min_delta: Required improvement of `rules.metric`.
        trained_on: Number of evaluated trajectories that the candidate was trained on; None if it is not known.
        trivial: Metrics of the trivial prediction, persistence or the mean field, on the same data.
        interval: Confidence interval of the improvement; if set, its lower bound has to reach `min_delta`.
        incomparable: Metrics that must not be compared with the baseline, each with the reason.
        scales: Factors of `rules.floor` for metrics with a unit: the training standard deviation of the fields.
    """

    def ratio_gate(key: str, max_ratio: float) -> Gate:
        floor = _metric_setting(rules.floors, key, rules.floor * scales.get(key, 1.0))
        return _ratio_gate(key, max_ratio, floor, candidate, baseline, rules, incomparable)

    gates = (
        _delta_gate(candidate, baseline, rules, min_delta, interval, incomparable),
        *(
            gate
            for key in _rule_metrics(rules.metric, candidate)
            for gate in _trivial_gate(key, candidate, trivial, rules)
        ),
        *(
            ratio_gate(key, rules.ratios[rule])
            for rule in sorted(rules.ratios)
            for key in _rule_metrics(rule, candidate, baseline)
        ),
        # An improved mean must not hide that one task has become worse.
        *(
            ratio_gate(key, 1.0)
            for key in _rule_metrics(rules.metric, candidate, baseline)
            if key != rules.metric and rules.metric not in rules.ratios
        ),
        *(
            _limit_gate(key, rules.limits[rule], candidate, rules)
            for rule in sorted(rules.limits)
            for key in _rule_metrics(rule, candidate)
        ),
        *(_required_gate(key, candidate, rules) for rule in rules.required for key in _rule_metrics(rule, candidate)),
        _unseen_gate(trained_on, rules),
    )
    if not all(gate.passed for gate in gates):
        return Decision(status="failed", gates=gates)
    return Decision(status="no_baseline" if gates[0].status in ("no_baseline", "ignored") else "passed", gates=gates)


def improvement(candidate: float, baseline: float, rules: GatesConfig, key: str) -> float:
    """Return the improvement of the candidate over the baseline; positive is better.

    Args:
        rules: Gate rules; with `delta: absolute` the result has the metric's unit, else it is a fraction of `baseline`.
    """
    gain = candidate - baseline if metric_direction(key, rules) == "higher" else baseline - candidate
    if rules.delta == "absolute" or gain == 0:
        return gain
    return gain / abs(baseline) if baseline else math.copysign(math.inf, gain)


def _delta_gate(
    candidate: Numbers,
    baseline: Numbers | None,
    rules: GatesConfig,
    min_delta: float,
    interval: Interval | None,
    incomparable: Mapping[str, str],
) -> Gate:
    """Return the gate that requires an improvement of `rules.metric` by `min_delta` over the baseline."""
    key = rules.metric
    fields: dict[str, Any] = {
        "key": key,
        "kind": "delta",
        "direction": metric_direction(key, rules),
        "limit": min_delta,
    }
    value = _finite_value(candidate, key)
    if value is None:
        return _missing_gate(fields, candidate)
    fields |= {"candidate": value}
    reference = _baseline_value_or_gate(fields, baseline, incomparable)
    if isinstance(reference, Gate):
        return reference
    gain = improvement(value, reference, rules, key)
    compared = gain if interval is None else interval.lower
    # An improvement has the rounding error of the two values that are subtracted.
    rounding = 1e-12 * (abs(reference) if rules.delta == "absolute" else 1.0)
    passed = compared >= min_delta or math.isclose(compared, min_delta, rel_tol=1e-9, abs_tol=rounding)
    bound = "" if interval is None else f", at least {_format_improvement(interval.lower, rules)} by the bootstrap"
    message = (
        f"{key}: {value:.4g} is {_format_improvement(abs(gain), rules)} {'better' if gain >= 0 else 'worse'} "
        f"than the baseline's {reference:.4g}{bound}; {_format_improvement(min_delta, rules)} better is required"
    )
    return Gate(**fields, baseline=reference, status="pass" if passed else "fail", message=message)


def _rule_metrics(rule: str, *evaluations: Numbers | None) -> list[str]:
    """Return the metrics that a rule applies to: `RULE@TASK` for each task if any task has the metric, else `RULE`."""
    keys = {key for numbers in evaluations for key in numbers or () if strip_task(key) != key}
    if not any(strip_task(key) == rule for key in keys):
        return [rule]
    return [f"{rule}@{task}" for task in sorted({key.partition("@")[2] for key in keys})]


def _trivial_gate(key: str, candidate: Numbers, trivial: Numbers | None, rules: GatesConfig) -> Iterator[Gate]:
    """Yield the gate `beat_trivial` (the candidate is better than the trivial prediction), if enabled and measured."""
    bound, value = _finite_value(trivial or {}, key), _finite_value(candidate, key)
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


def _ratio_gate(
    key: str,
    max_ratio: float,
    floor: float,
    candidate: Numbers,
    baseline: Numbers | None,
    rules: GatesConfig,
    incomparable: Mapping[str, str],
) -> Gate:
    """Return the gate that limits the ratio of the candidate's value of the metric `key` to the baseline's value."""
    better_direction = metric_direction(key, rules)
    fields: dict[str, Any] = {"key": key, "kind": "ratio", "direction": better_direction}
    value = _finite_value(candidate, key)
    if value is None and (key in candidate or key in (baseline or {})):
        # A measured value that is not finite always fails.
        warned = (
            rules.on_missing == "warn" and key not in candidate and not {key, strip_task(key)} & set(rules.required)
        )
        fields |= {"baseline": _finite_value(baseline or {}, key)}
        return _missing_gate(fields, candidate, "warned" if warned else "missing")
    if value is None:
        return Gate(**fields, status="not_applicable", message=f"{key}: not measured for candidate and baseline")
    fields |= {"candidate": value}
    reference = _baseline_value_or_gate(fields, baseline, incomparable)
    if isinstance(reference, Gate):
        return reference
    tolerance = _metric_setting(rules.tolerances, key, rules.tolerance)
    if better_direction == "higher":
        limit = reference / max_ratio - tolerance * abs(reference / max_ratio)
        passed, side = value >= limit, "least"
    else:
        limit = max(max_ratio * reference + tolerance * abs(max_ratio * reference), floor)
        passed, side = value <= limit, "most"
    message = f"{key}: {value:.4g} against the baseline's {reference:.4g}; at {side} {limit:.4g} is allowed"
    return Gate(**fields, baseline=reference, limit=limit, status="pass" if passed else "fail", message=message)


def _missing_gate(gate_fields: Mapping[str, Any], candidate: Numbers, status: Status = "missing") -> Gate:
    """Return the gate for a metric that the candidate lacks or that is not finite."""
    key = gate_fields["key"]
    return Gate(
        **gate_fields, status=status, message=f"{key}: the candidate's value is {_absence_reason(candidate, key)}"
    )


def _baseline_value_or_gate(
    gate_fields: Mapping[str, Any], baseline: Numbers | None, incomparable: Mapping[str, str]
) -> float | Gate:
    """Return the baseline's value of a metric; if it has no comparable value, return a gate that says so."""
    key, message = gate_fields["key"], f"{gate_fields['key']}: {gate_fields['candidate']:.4g}"
    if baseline is None:
        return Gate(**gate_fields, status="no_baseline", message=f"{message}; no comparable run has been promoted yet")
    reference = _finite_value(baseline, key)
    if reference is None or key in incomparable:
        why = incomparable.get(key, f"the baseline's value is {_absence_reason(baseline, key)}")
        return Gate(**gate_fields, status="ignored", message=f"{message}; {why} and is ignored")
    return reference


def _metric_setting(settings: Mapping[str, float], key: str, default: float) -> float:
    """Return the setting for `NAME@TASK` if there is one, else the setting for `NAME`, else the default."""
    return settings.get(key, settings.get(strip_task(key), default))


def _limit_gate(key: str, limit: float, candidate: Numbers, rules: GatesConfig) -> Gate:
    """Return the gate that compares the candidate's value of the metric `key` with an absolute limit."""
    better_direction, value = metric_direction(key, rules), _finite_value(candidate, key)
    fields: dict[str, Any] = {"key": key, "kind": "absolute", "direction": better_direction, "limit": limit}
    if value is None:
        return _missing_gate(fields, candidate)
    passed = value >= limit if better_direction == "higher" else value <= limit
    message = f"{key}: {value:.4g}; at {'least' if better_direction == 'higher' else 'most'} {limit:.4g} is allowed"
    return Gate(**fields, candidate=value, status="pass" if passed else "fail", message=message)


def _required_gate(key: str, candidate: Numbers, rules: GatesConfig) -> Gate:
    """Return the gate that passes if the candidate's value of the metric `key` is measured and finite."""
    value = _finite_value(candidate, key)
    fields: dict[str, Any] = {
        "key": key,
        "kind": "required",
        "direction": metric_direction(key, rules),
        "candidate": value,
    }
    if value is None:
        return _missing_gate(fields, candidate)
    return Gate(**fields, status="pass", message=f"{key}: {value:.4g} is measured, as required")


def _unseen_gate(trained_on: float | None, rules: GatesConfig) -> Gate:
    """Return the gate that passes if the candidate was trained on none of the evaluated trajectories."""
    fields: dict[str, Any] = {"key": "trained_on", "kind": "unseen", "direction": "lower", "limit": 0.0}
    if trained_on is None:
        status: Status = "warned" if rules.on_missing == "warn" else "missing"
        message = (
            "trained_on: it is not known how many of the evaluated trajectories the candidate was trained on; train or "
            "evaluate it again with this version of ups_jax, or set gates.on_missing=warn"
        )
        return Gate(**fields, status=status, message=message)
    message = f"trained_on: the candidate was trained on {trained_on:g} of the evaluated trajectories"
    if trained_on:
        message += "; evaluate it on others"
    return Gate(**fields, candidate=trained_on, status="fail" if trained_on else "pass", message=message)


def metric_direction(key: str, rules: GatesConfig) -> Direction:
    """Return whether lower or higher values of a metric are better.

    Args:
        key: Name of the metric, such as `rollout/correlation_time@waves`.
        rules: Gate rules; `higher_is_better` lists metrics with or without section and task (`correlation_time`).
    """
    name = strip_task(key)
    return "higher" if {key, name, name.rpartition("/")[2]} & set(rules.higher_is_better) else "lower"


def _finite_value(numbers: Numbers, key: str) -> float | None:
    """Return the value of a metric, or None if it is missing or not finite."""
    value = numbers.get(key)
    return float(value) if value is not None and math.isfinite(value) else None


def _absence_reason(numbers: Numbers, key: str) -> str:
    """Return why a metric has no finite value, as part of a message."""
    return "not a finite number" if key in numbers else "not measured"


def _format_improvement(value: float, rules: GatesConfig) -> str:
    """Return an improvement as text, in percent or, with `delta: absolute`, in the metric's unit."""
    return f"{value:.4g}" if rules.delta == "absolute" else f"{100 * value:.2f} %"


def _none_if_not_finite(value: str | float | None) -> str | float | None:
    """Return a field of a gate unchanged, or None if it is a number that is not finite."""
    return None if isinstance(value, float) and not math.isfinite(value) else value
