"""One row of the comparison of stages: a way to predict with a chain of trained stages, and where its run lies."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

from comparison.tasks import TASKS
from ups_jax.config import Config, digest, load
from ups_jax.config.packaged import CONFIGS


@dataclass(frozen=True, kw_only=True)
class Way:
    """`stages` are trained one upon the other, for `lengths` budgets each; the last one predicts.

    `sampler_steps` are those of its sampler, None where it has its own number or is no corrector.
    """

    stages: tuple[str, ...]
    lengths: float = 1.0
    sampler_steps: int | None = None
    overrides: tuple[str, ...] = ()


_CORRECTED = ("operator", "diffusion_residual")
WAYS = {
    "operator": Way(stages=("operator",)),
    # The seconds of operator and corrector together.
    "operator_twice": Way(stages=("operator",), lengths=2.0),
    "corrector": Way(stages=_CORRECTED),
    "distilled_1": Way(stages=(*_CORRECTED, "consistency_distill"), sampler_steps=1),
    "distilled_2": Way(stages=(*_CORRECTED, "consistency_distill"), sampler_steps=2),
    "regression": Way(stages=_CORRECTED, overrides=("diffusion.objective=regression",)),
}


@dataclass(frozen=True, kw_only=True)
class StageRow:
    """A way on a task, each stage trained for `budget` seconds or for `fixed_steps`, and measured on `split`."""

    worker: ClassVar[str] = "comparison.stage_worker"

    task: str
    way: str
    seed: int
    budget: float
    split: str = "test"
    data_root: str = "data"
    runs: str = "runs/stages"
    overrides: tuple[str, ...] = ()
    fixed_steps: int | None = None

    @property
    def key(self) -> str:
        """Where the store keeps it."""
        return f"{self.task}/{self.way}/seed{self.seed}/{self.length}" + ("" if self.split == "test" else "/val")

    @property
    def length(self) -> str:
        """How long each stage is trained."""
        return f"{self.budget:g}s" if self.fixed_steps is None else f"{self.fixed_steps}steps"

    def config(self, *more: str) -> Config:
        """The task's configuration with the lengths of the way's stages."""
        way = WAYS[self.way]
        overrides = [f"seed={self.seed}", f"data.root={self.data_root}", "logging.wandb.enabled=false"]
        for stage in way.stages:
            if self.fixed_steps is None:
                overrides.append(f"stages.{stage}.max_seconds={self.budget * way.lengths:g}")
            else:
                overrides.append(f"stages.{stage}={{steps: {round(self.fixed_steps * way.lengths)}}}")
        return load(CONFIGS / TASKS[self.task].config, [*overrides, *way.overrides, *self.overrides, *more])

    def long_config(self) -> Config | None:
        """Return the configuration with longer trajectories for the correlation time, or None without such."""
        preset = TASKS[self.task].long
        return None if preset is None else self.config(f"data.tasks.0.preset={preset}")

    def run_path(self, stages: int) -> Path:
        """The run that holds the first so many stages of the way; ways that begin alike share it."""
        parts = [(stage, digest(self.config(), stage)) for stage in WAYS[self.way].stages[:stages]]
        text = json.dumps([parts, WAYS[self.way].lengths])
        name = hashlib.sha256(text.encode()).hexdigest()[:12]
        return Path(self.runs) / f"{self.task}-seed{self.seed}-{self.length}" / f"{parts[-1][0]}-{name}"

    def complete(self, values: Mapping[str, Any]) -> bool:
        """Is a row on file of these settings?"""
        return bool(values["digest"] == self.digest())

    def digest(self) -> str:
        """Twelve hex digits over the settings, the same for all seeds: a row with another one is stale."""
        config, way, task = replace(self.config(), seed=0), WAYS[self.way], TASKS[self.task]
        values = [digest(config, stage) for stage in way.stages]
        text = json.dumps([values, way.lengths, way.sampler_steps, task.scored_frames, config.evaluation.members])
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    def to_json(self) -> str:
        """For the command line of a worker."""
        return json.dumps(asdict(self))

    @staticmethod
    def from_json(text: str) -> StageRow:
        """Inverse of `to_json`."""
        values = json.loads(text)
        return StageRow(**(values | {"overrides": tuple(values["overrides"])}))
