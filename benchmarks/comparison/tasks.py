"""The tasks of the comparison: the configuration of each, what is trained on it, and how its result is scored."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class BenchmarkTask:
    """`config` is a file in configs/. `scored_frames` bounds the rollout's score where the dynamics are chaotic.

    `double` is the preset of the same trajectories on twice the points an axis; `slow_double` where making it takes
    more than a minute. `long` is the preset of other, longer trajectories for the time until the correlation is lost,
    where the task's own are too short for it.
    """

    config: str
    dimensions: int
    kind: Literal["transient", "steady"] = "transient"
    scored_frames: int | None = None
    double: str
    slow_double: bool = False
    long: str | None = None

    @property
    def stage(self) -> str:
        """The stage that is trained."""
        return {"transient": "operator", "steady": "steady_prior"}[self.kind]

    @property
    def group(self) -> int | str:
        """Under which key a model keeps its settings for tasks like this one."""
        return "steady" if self.kind == "steady" else self.dimensions


TASKS = {
    "burgers1d": BenchmarkTask(config="burgers1d.yaml", dimensions=1, double="double"),
    "burgers1d_fine": BenchmarkTask(config="burgers1d_fine.yaml", dimensions=1, double="fine_double", slow_double=True),
    "advection1d": BenchmarkTask(config="advection1d.yaml", dimensions=1, double="double"),
    "ks1d": BenchmarkTask(config="ks1d.yaml", dimensions=1, scored_frames=10, double="double"),
    "ns2d": BenchmarkTask(config="ns2d.yaml", dimensions=2, double="double", slow_double=True, long="long"),
    "darcy2d": BenchmarkTask(config="darcy2d.yaml", dimensions=2, kind="steady", double="fine", slow_double=True),
    "tiny": BenchmarkTask(config="tiny.yaml", dimensions=1, double="tiny_double"),
    "tiny_steady": BenchmarkTask(config="tiny_steady.yaml", dimensions=2, kind="steady", double="tiny_fine"),
}

# The others are for --quick and tests.
DEFAULT_TASKS = tuple(name for name in TASKS if not name.startswith("tiny"))
