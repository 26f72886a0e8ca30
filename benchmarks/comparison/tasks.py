"""The tasks of the comparison: the configuration of each, and over which frames its rollout is scored."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class BenchmarkTask:
    """`config` is a file in configs/. `scored_frames` bounds the rollout's score where the dynamics are chaotic."""

    config: str
    dimensions: int
    scored_frames: int | None = None


TASKS = {
    "burgers1d": BenchmarkTask(config="burgers1d.yaml", dimensions=1),
    "burgers1d_fine": BenchmarkTask(config="burgers1d_fine.yaml", dimensions=1),
    "advection1d": BenchmarkTask(config="advection1d.yaml", dimensions=1),
    "ks1d": BenchmarkTask(config="ks1d.yaml", dimensions=1, scored_frames=10),
    "ns2d": BenchmarkTask(config="ns2d.yaml", dimensions=2),
    "tiny": BenchmarkTask(config="tiny.yaml", dimensions=1),
}

# `tiny` is for --quick.
DEFAULT_TASKS = tuple(name for name in TASKS if name != "tiny")
