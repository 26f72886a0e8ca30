"""Whether a candidate may be promoted: pure rules on named numbers, each answered with a record that says why.

A number that was not measured is absent; one that was and is not finite is NaN. `None` counts as NaN.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from ups_jax.config import GatesConfig
from ups_jax.pipeline.scores import without_task

Numbers = Mapping[str, float | None]
Kind = Literal["delta", "ratio", "absolute", "trivial", "required"]
Direction = Literal["lower", "higher"]
# `ignored`: the baseline's number is not finite, and says nothing; `warned`: missing, where that is only told.
Status = Literal["pass", "fail", "missing", "not_applicable", "no_baseline", "ignored", "warned"]
_REFUSED = ("fail", "missing")


@dataclass(frozen=True, kw_only=True)
class Interval:
    """The bounds of an improvement by the bootstrap, in the unit of the delta gate."""

    lower: float
    upper: float


@dataclass(frozen=True, kw_only=True)
class Gate:
    """One rule's answer. `limit` is what the candidate's number (of a delta: its improvement) was compared with."""

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
        return self.status not in _REFUSED


@dataclass(frozen=True, kw_only=True)
class Decision:
    """All gates of an evaluation: `no_baseline` passes as well, as nothing comparable has been promoted yet."""

    status: Literal["passed", "failed", "no_baseline"]
    gates: tuple[Gate, ...]

    @property
    def passed(self) -> bool:
        return self.status != "failed"

    @property
    def reasons(self) -> list[str]:
        """What the refused gates say."""
        return [gate.message for gate in self.gates if not gate.passed]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; a number that is not finite is null."""
        gates = [{key: _plain(value) for key, value in asdict(gate).items()} for gate in self.gates]
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
    """Hold a candidate's numbers against the rules and the champion's (`baseline`, None where there is none).

    `trivial` are the numbers of persistence or the mean field on the same data. With `interval`, of the improvement
    over the baseline, its lower bound has to reach `min_delta` instead of the improvement itself. `incomparable` are
    numbers that both sides have and that say nothing side by side, with the reason.

    Of several tasks the mean has to improve, no task's `metric` may be worse than the baseline's by more than its
    tolerance, and every other rule is one for each task's own number.
    """
    gates = (
        _delta(candidate, baseline, rules, min_delta, interval, incomparable),
        *(gate for key in _each(rules.metric, candidate) for gate in _trivial(key, candidate, trivial, rules)),
        *(
            _ratio(key, rules.ratios[rule], candidate, baseline, rules, incomparable)
            for rule in sorted(rules.ratios)
            for key in _each(rule, candidate, baseline)
        ),
        # That the mean improves is not to be one task's gain at another's cost.
        *(
            _ratio(key, 1.0, candidate, baseline, rules, incomparable)
            for key in _each(rules.metric, candidate, baseline)
            if key != rules.metric and rules.metric not in rules.ratios
        ),
        *(
            _limit(key, rules.limits[rule], candidate, rules)
            for rule in sorted(rules.limits)
            for key in _each(rule, candidate)
        ),
        *(_required(key, candidate, rules) for rule in rules.required for key in _each(rule, candidate)),
    )
    if not all(gate.passed for gate in gates):
        return Decision(status="failed", gates=gates)
    return Decision(status="no_baseline" if gates[0].status in ("no_baseline", "ignored") else "passed", gates=gates)


def improvement(candidate: float, baseline: float, rules: GatesConfig, key: str) -> float:
    """By how much the candidate is better, positive is better: a share of the baseline, or in the metric's unit."""
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
    key = rules.metric
    parts: dict[str, Any] = {"key": key, "kind": "delta", "direction": metric_direction(key, rules), "limit": min_delta}
    own = _finite(candidate, key)
    if own is None:
        return _missing(parts, candidate)
    parts |= {"candidate": own}
    theirs = _comparable(parts, baseline, incomparable)
    if isinstance(theirs, Gate):
        return theirs
    gain = improvement(own, theirs, rules, key)
    reached = gain if interval is None else interval.lower
    passed = reached >= min_delta or math.isclose(reached, min_delta, rel_tol=1e-9, abs_tol=1e-12)
    bound = "" if interval is None else f", at least {_share(interval.lower, rules)} by the bootstrap"
    said = (
        f"{key}: {own:.4g} is {_share(abs(gain), rules)} {'better' if gain >= 0 else 'worse'} than the baseline's "
        f"{theirs:.4g}{bound}; {_share(min_delta, rules)} better is required"
    )
    return Gate(**parts, baseline=theirs, status="pass" if passed else "fail", message=said)


def _each(rule: str, *sides: Numbers | None) -> list[str]:
    """The numbers that a rule is for: those of each of several tasks, where any task has one, else its own."""
    keys = {key for side in sides for key in side or () if without_task(key) != key}
    if not any(without_task(key) == rule for key in keys):
        return [rule]
    return [f"{rule}@{task}" for task in sorted({key.partition("@")[2] for key in keys})]


def _trivial(key: str, candidate: Numbers, trivial: Numbers | None, rules: GatesConfig) -> Iterator[Gate]:
    bound, own = _finite(trivial or {}, key), _finite(candidate, key)
    # A candidate without the metric fails by its delta gate.
    if not rules.beat_trivial or bound is None or own is None:
        return
    way = metric_direction(key, rules)
    better = own > bound if way == "higher" else own < bound
    yield Gate(
        key=key,
        kind="trivial",
        direction=way,
        limit=bound,
        candidate=own,
        status="pass" if better else "fail",
        message=f"{key}: {own:.4g} is {'' if better else 'not '}better than {bound:.4g}, which takes no training",
    )


def _ratio(
    key: str,
    factor: float,
    candidate: Numbers,
    baseline: Numbers | None,
    rules: GatesConfig,
    incomparable: Mapping[str, str],
) -> Gate:
    way = metric_direction(key, rules)
    parts: dict[str, Any] = {"key": key, "kind": "ratio", "direction": way}
    own = _finite(candidate, key)
    if own is None and (key in candidate or key in (baseline or {})):
        # What was measured and is not a number is never only told.
        warned = (
            rules.on_missing == "warn" and key not in candidate and not {key, without_task(key)} & set(rules.required)
        )
        parts |= {"baseline": _finite(baseline or {}, key)}
        return _missing(parts, candidate, "warned" if warned else "missing")
    if own is None:
        return Gate(**parts, status="not_applicable", message=f"{key}: neither side has it")
    parts |= {"candidate": own}
    theirs = _comparable(parts, baseline, incomparable)
    if isinstance(theirs, Gate):
        return theirs
    tolerance = _of_key(rules.tolerances, key, rules.tolerance)
    if way == "higher":
        limit = theirs / factor - tolerance * abs(theirs / factor)
        passed, side = own >= limit, "least"
    else:
        limit = max(factor * theirs + tolerance * abs(factor * theirs), _of_key(rules.floors, key, rules.floor))
        passed, side = own <= limit, "most"
    said = f"{key}: {own:.4g} against the baseline's {theirs:.4g}; at {side} {limit:.4g} is allowed"
    return Gate(**parts, baseline=theirs, limit=limit, status="pass" if passed else "fail", message=said)


def _missing(parts: Mapping[str, Any], candidate: Numbers, status: Status = "missing") -> Gate:
    key = parts["key"]
    return Gate(**parts, status=status, message=f"{key}: the candidate's is {_absence(candidate, key)}")


def _comparable(parts: Mapping[str, Any], baseline: Numbers | None, incomparable: Mapping[str, str]) -> float | Gate:
    """The baseline's number, or the answer where there is none to compare the candidate's with."""
    key, said = parts["key"], f"{parts['key']}: {parts['candidate']:.4g}"
    if baseline is None:
        return Gate(**parts, status="no_baseline", message=f"{said}; nothing comparable was promoted yet")
    theirs = _finite(baseline, key)
    if theirs is None or key in incomparable:
        why = incomparable.get(key, f"the baseline's is {_absence(baseline, key)}")
        return Gate(**parts, status="ignored", message=f"{said}; {why} and is ignored")
    return theirs


def _of_key(values: Mapping[str, float], key: str, default: float) -> float:
    """A setting of a number, or of the one of all tasks."""
    return values.get(key, values.get(without_task(key), default))


def _limit(key: str, limit: float, candidate: Numbers, rules: GatesConfig) -> Gate:
    way, own = metric_direction(key, rules), _finite(candidate, key)
    parts: dict[str, Any] = {"key": key, "kind": "absolute", "direction": way, "limit": limit}
    if own is None:
        return _missing(parts, candidate)
    passed = own >= limit if way == "higher" else own <= limit
    said = f"{key}: {own:.4g}; at {'least' if way == 'higher' else 'most'} {limit:.4g} is allowed"
    return Gate(**parts, candidate=own, status="pass" if passed else "fail", message=said)


def _required(key: str, candidate: Numbers, rules: GatesConfig) -> Gate:
    own = _finite(candidate, key)
    parts: dict[str, Any] = {
        "key": key,
        "kind": "required",
        "direction": metric_direction(key, rules),
        "candidate": own,
    }
    if own is None:
        return _missing(parts, candidate)
    return Gate(**parts, status="pass", message=f"{key}: {own:.4g}, as is required")


def metric_direction(key: str, rules: GatesConfig) -> Direction:
    """Whether a metric should be low or high; of `rollout/correlation_time` as of `correlation_time`."""
    name = without_task(key)
    return "higher" if {key, name, name.rpartition("/")[2]} & set(rules.higher_is_better) else "lower"


def _finite(numbers: Numbers, key: str) -> float | None:
    value = numbers.get(key)
    return float(value) if value is not None and math.isfinite(value) else None


def _absence(numbers: Numbers, key: str) -> str:
    return "not a finite number" if key in numbers else "not measured"


def _share(value: float, rules: GatesConfig) -> str:
    return f"{value:.4g}" if rules.delta == "absolute" else f"{100 * value:.2f} %"


def _plain(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
