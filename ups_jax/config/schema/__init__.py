"""Every key of the configuration with its type, default and meaning, as frozen dataclasses: one file for each subject.

`Config` is the whole configuration of a run. Reading YAML files and overrides into it is `ups_jax.config.loading`.
"""

from __future__ import annotations

from dataclasses import field, replace
from typing import Any

from pydantic import TypeAdapter
from pydantic.dataclasses import dataclass

from ups_jax.config.schema.data import (
    DataConfig,
    FilePair,
    LoaderConfig,
    MixingConfig,
    SplitConfig,
    SymmetryConfig,
    TaskConfig,
)
from ups_jax.config.schema.evaluation import CheckpointConfig, EvaluationConfig, LoggingConfig, WandbConfig
from ups_jax.config.schema.fields import STRICT
from ups_jax.config.schema.model import DiffusionConfig, LatentConfig, OperatorConfig, PdetConfig, SpectralConfig
from ups_jax.config.schema.pipeline import FullEvaluationConfig, GatesConfig, PipelineConfig, SmallEvaluationConfig
from ups_jax.config.schema.training import (
    DistillConfig,
    OptimizerConfig,
    ParallelConfig,
    PhysicsPriorsConfig,
    QuerySamplingConfig,
    SchedulerConfig,
    StageConfig,
    StageDefaults,
    StagesConfig,
    TauConfig,
    TrainingConfig,
)

# What `ups_jax.config` exports.
__all__ = [
    "CheckpointConfig", "Config", "DataConfig", "DiffusionConfig",
    "DistillConfig", "EvaluationConfig", "FilePair", "FullEvaluationConfig", "GatesConfig", "LatentConfig",
    "LoaderConfig", "LoggingConfig", "MixingConfig", "OperatorConfig", "OptimizerConfig", "ParallelConfig",
    "PdetConfig", "PhysicsPriorsConfig", "PipelineConfig", "QuerySamplingConfig", "SchedulerConfig",
    "SmallEvaluationConfig", "SpectralConfig", "SplitConfig", "StageConfig", "StageDefaults", "StagesConfig",
    "SymmetryConfig", "TaskConfig", "TauConfig", "TrainingConfig", "WandbConfig", "restrict_to_task", "to_dict",
]  # fmt: skip


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Config:
    """The whole configuration of a run."""

    seed: int = 17
    """Seed of every random stream of a run: initial parameters, batches, noise."""

    deterministic: bool = False
    """Request GPU kernels from XLA that are bit-identical in every run; they are expected to be slower. CPU kernels are
    always bit-identical."""

    runs: str = "runs"
    """Folder of the run directories, for commands without `--run-dir`."""

    data: DataConfig
    latent: LatentConfig = field(default_factory=LatentConfig)
    operator: OperatorConfig = field(default_factory=OperatorConfig)
    diffusion: DiffusionConfig = field(default_factory=DiffusionConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    scheduler: SchedulerConfig = field(default_factory=SchedulerConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    stages: StagesConfig = field(default_factory=StagesConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    logging: LoggingConfig = field(default_factory=LoggingConfig)
    gates: GatesConfig = field(default_factory=GatesConfig)
    pipeline: PipelineConfig = field(default_factory=PipelineConfig)


ADAPTER: TypeAdapter[Config] = TypeAdapter(Config)


def restrict_to_task(config: Config, name: str) -> Config:
    """Return the configuration with the task `name` alone and with the default mixing.

    A configuration with only one task is returned unchanged, whatever the name is.
    """
    if len(config.data.tasks) == 1:
        return config
    tasks = tuple(task for task in config.data.tasks if task.name == name)
    return replace(config, data=replace(config.data, tasks=tasks, mixing=MixingConfig()))


def to_dict(config: Config) -> dict[str, Any]:
    """Return the resolved configuration as plain JSON values."""
    return ADAPTER.dump_python(config, mode="json")
