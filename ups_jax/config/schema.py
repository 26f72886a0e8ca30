"""Frozen, typed configuration: the schema, and nothing that knows a feature's code.

Reading YAML files and overrides into it is `files`; every default of the system stands here, once.
"""

from __future__ import annotations

from dataclasses import field
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, TypeAdapter
from pydantic.dataclasses import dataclass

_STRICT = ConfigDict(extra="forbid")

Positive = Annotated[int, Field(gt=0)]
Count = Annotated[int, Field(ge=0)]
PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Weight = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0, lt=1)]


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class FilePair:
    """Training and test trajectories in two files; validation is split off the first."""

    train: str
    test: str


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class SymmetryConfig:
    """A symmetry of the dynamics by names: Burgers' u(x) -> -u(-x) is `{reflect: [x], negate: [u]}`."""

    reflect: tuple[str, ...] = ()
    negate: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class TaskConfig:
    """One task: where its data is and what is known about it. The facts are checked on the data at load.

    Without `path` the embedded generator writes the task's `preset` under `data.root` and reads it from there.
    A `steady` task has solutions for given fields instead of trajectories, in PDEBench's Darcy layout.
    """

    name: str
    kind: Literal["transient", "steady"] = "transient"
    preset: str = "default"
    path: str | FilePair | None = None
    channels: tuple[str, ...] = ("u",)
    periodic: tuple[str, ...] = ()
    symmetries: tuple[SymmetryConfig, ...] = ()
    conserved: tuple[str, ...] = ()
    coefficients: dict[str, Literal["linear", "log10"]] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class SplitConfig:
    """Shares of the trajectories, drawn by `seed`; with a file pair `test` is the second file."""

    val: Annotated[float, Field(gt=0, lt=1)] = 0.1
    test: Annotated[float, Field(gt=0, lt=1)] = 0.1
    seed: int = 0


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class LoaderConfig:
    """Background reading: `threads` prepare up to `buffer` batches ahead; smaller files are held in memory."""

    threads: Positive = 1
    buffer: Positive = 4
    memory_gib: Weight = 4.0


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class DataConfig:
    """The tasks and how windows of `context` + horizon frames are drawn from their trajectories.

    A share `change_sampling` of the windows starts at frames drawn in proportion to the mean relative change of the
    field there (the early, rough frames of a decaying field), the rest uniformly.
    """

    tasks: tuple[TaskConfig, ...]
    root: str = "data"
    context: Positive = 1
    windows_per_trajectory: Positive = 8
    change_sampling: Annotated[float, Field(ge=0, le=1)] = 0.5
    augment: bool = True
    normalize: Literal["zscore", "rms", "none"] = "zscore"
    split: SplitConfig = field(default_factory=SplitConfig)
    loader: LoaderConfig = field(default_factory=LoaderConfig)


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class LatentConfig:
    """The codec: one token a patch of `patch_size` points an axis (its largest divisor of the grid up to that).

    A token carries its patch of the field and `dim` learned features of the patch and its neighbours.
    """

    dim: Positive = 48
    patch_size: Positive = 4


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class SpectralConfig:
    """Spectral token mixer: `modes` Fourier modes an axis, whatever the grid, and a local convolution of `taps`."""

    hidden_dim: Positive = 48
    depth: Positive = 4
    modes: Positive = 16
    taps: Positive = 3


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class PdetConfig:
    """The PDE-Transformer cores of UPS. `depths` belongs to `pdet_unet`, `depth` and below to `pdet_stack`."""

    hidden_dim: Positive = 96
    num_heads: Positive = 4
    group_size: Positive = 32
    mlp_ratio: PositiveFloat = 2.0
    depths: tuple[Positive, ...] = (1, 1, 1)
    depth: Positive = 4
    attention_type: Literal["standard", "channel_separated"] = "standard"
    qk_norm: bool = False


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class OperatorConfig:
    """Which core advances the tokens, with the settings of each."""

    architecture_type: Literal["spectral", "pdet_unet", "pdet_stack"] = "spectral"
    spectral: SpectralConfig = field(default_factory=SpectralConfig)
    pdet: PdetConfig = field(default_factory=PdetConfig)


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class OptimizerConfig:
    """`muon` gives hidden matrices Muon with `lr` and everything else AdamW with `lr * adam_lr_ratio`."""

    name: Literal["adamw", "muon"] = "adamw"
    lr: PositiveFloat = 1e-3
    weight_decay: Weight = 0.0
    betas: tuple[Fraction, Fraction] = (0.9, 0.999)
    eps: PositiveFloat = 1e-8
    muon_momentum: Fraction = 0.95
    muon_ns_steps: Positive = 5
    adam_lr_ratio: PositiveFloat = 1.0


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class SchedulerConfig:
    """Learning rate per step: linear warm-up over `warmup` of the run, then constant or cosine down to `eta_min`."""

    name: Literal["constant", "cosineannealinglr"] = "cosineannealinglr"
    warmup: Fraction = 0.05
    eta_min: Weight = 0.0


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class StageConfig:
    """One stage. What it leaves out comes from `training`, `optimizer` and `scheduler`.

    `max_seconds` wins over `steps`, and `steps` over `epochs`: the seconds a step are measured before the first one,
    and the number of steps is set so that the schedule ends with the budget, validations included.
    Without `ema_decay` the average of the parameters reaches back a fortieth of the steps so far.
    """

    epochs: Weight = 0.0
    steps: Count | None = None
    batch_size: Positive = 32
    patience: Positive | None = None
    grad_clip: PositiveFloat | None = 1.0
    ema_decay: Fraction | None = None
    max_seconds: PositiveFloat | None = None
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    scheduler: SchedulerConfig = field(default_factory=SchedulerConfig)


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class StagesConfig:
    """The stages in their order; one with neither epochs nor steps is off."""

    operator: StageConfig = field(default_factory=StageConfig)
    steady_prior: StageConfig = field(default_factory=StageConfig)


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class TrainingConfig:
    """What all stages share. `patience` counts evaluations (one every `eval_every` epochs) without a better value;
    `input_noise`, on the frames that a time step is given, is in standard deviations of the field.
    """

    batch_size: Positive = 32
    time_stride: Positive = 1
    rollout_horizon: Positive = 1
    patience: Positive | None = None
    grad_clip: PositiveFloat | None = 1.0
    ema_decay: Fraction | None = None
    max_seconds: PositiveFloat | None = None
    precision: Literal["fp32", "bf16"] = "fp32"
    lambda_relative: Weight = 1.0
    lambda_h1: Weight = 0.1
    input_noise: Weight = 0.0
    eval_every: PositiveFloat = 1.0
    max_skips: Positive = 20


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class CheckpointConfig:
    """A save at every evaluation and every `every_seconds`; the best and the latest `keep` stay."""

    keep: Positive = 2
    every_seconds: PositiveFloat = 60.0


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class EvaluationConfig:
    """`metric` selects the best checkpoint on the validation split; `val_trajectories` bounds its cost."""

    enabled: bool = True
    metric: Literal["one_step", "rollout"] = "rollout"
    val_trajectories: Positive = 32
    batch_size: Positive = 64
    bootstrap: Positive = 1000
    plots: bool = True


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class WandbConfig:
    """Weights & Biases beside the JSONL. `mode: auto` is online where a login is found and offline elsewhere."""

    enabled: bool = True
    mode: Literal["auto", "online", "offline"] = "auto"
    project: str = "ups_jax"
    entity: str | None = None
    tags: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class LoggingConfig:
    """A record every `every_steps` steps in metrics.jsonl; a line every `every_seconds` where there is no terminal."""

    every_steps: Positive = 10
    every_seconds: PositiveFloat = 10.0
    wandb: WandbConfig = field(default_factory=WandbConfig)


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class Config:
    """The whole configuration of a run."""

    seed: int = 17
    runs: str = "runs"
    data: DataConfig
    latent: LatentConfig = field(default_factory=LatentConfig)
    operator: OperatorConfig = field(default_factory=OperatorConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    scheduler: SchedulerConfig = field(default_factory=SchedulerConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    stages: StagesConfig = field(default_factory=StagesConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    logging: LoggingConfig = field(default_factory=LoggingConfig)


ADAPTER: TypeAdapter[Config] = TypeAdapter(Config)


def to_dict(config: Config) -> dict[str, Any]:
    """The resolved configuration as plain JSON values."""
    return ADAPTER.dump_python(config, mode="json")
