"""Evaluations as JSON, of numbers that a test chooses, without a model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ups_jax.metrics.field import METRICS


def section(nrmse: float | None, **values: Any) -> dict[str, Any]:
    """A section with every metric of the contract, all of them proportional to `nrmse`."""
    numbers = {name: None if nrmse is None else nrmse * (1 + index) for index, name in enumerate(METRICS)}
    return numbers | {"nonfinite": 0} | values


def evaluation(
    nrmse: float | None = 0.1,
    *,
    task: str = "waves",
    split: str = "test",
    scores: Sequence[float] = (),
    digest: str = "c0ffee",
    seconds: float = 1e-5,
    horizon: int = 8,
    **values: Any,
) -> dict[str, Any]:
    """The result of a run whose rollout has this nrmse, beside a persistence of 1."""
    rollout = section(nrmse, correlation_time=1.0, nrmse_by_time=[nrmse] * horizon, **values)
    scores = scores or [0.0 if nrmse is None else nrmse] * 3
    return {
        "metrics": {task: {"one_step": section(nrmse), "rollout": rollout}},
        "baselines": {"persistence": {task: {"one_step": section(1.0), "rollout": section(1.0, correlation_time=0.1)}}},
        "variants": {},
        "intervals": {task: {"rollout": {"nrmse": [scores[0], scores[-1]]}}},
        "per_trajectory": {task: {"ids": list(range(len(scores))), "rollout": {"nrmse": list(scores)}}},
        "meta": {
            "steps": 10,
            "seed": 17,
            "parameters": 100,
            "device": "cpu",
            "trajectories": len(scores),
            "trained_on": 0,
            "horizon": horizon,
            "seconds_per_rollout_step": seconds,
            "protocol": f"{task}: rollout",
            "checkpoint": "checkpoints/operator/10",
            "checkpoint_digest": digest,
            "architecture": {"digest": "arch"},
            "wall_clock": "2026-01-01T00:00:00+00:00",
            "data": {"file": "waves.hdf5", "fingerprint": "f00d", "split": split, "truth": f"{task}-{split}"},
        },
    }
