"""Frozen, typed configuration: the schema, and nothing that knows a feature's code.

Reading YAML files and overrides into it is `files`; every default of the system stands here, once.
"""

from __future__ import annotations

from dataclasses import field, replace
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, ConfigDict, Field, TypeAdapter, model_validator
from pydantic.dataclasses import dataclass

_STRICT = ConfigDict(extra="forbid")

Positive = Annotated[int, Field(gt=0)]
Count = Annotated[int, Field(ge=0)]
PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Weight = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0, lt=1)]

# Other names of the same thing, in any case of letters; the resolved configuration has the name on the right.
_OPTIMIZER_NAMES = {"muon_hybrid": "muon"}
_SCHEDULER_NAMES = {"reducelr": "reducelronplateau", "plateau": "reducelronplateau"}


def _alias(names: dict[str, str]) -> BeforeValidator:
    return BeforeValidator(lambda name: names.get(name.lower(), name.lower()) if isinstance(name, str) else name)


def _one_of(section: object, *keys: str) -> None:
    """A length in epochs and its twin in steps exclude each other."""
    for key in keys:
        if getattr(section, key) is not None and getattr(section, f"{key}_steps") is not None:
            raise ValueError(
                f"{key} (epochs) and {key}_steps (optimizer steps) are both given; set one of them to null"
            )


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class FilePair:
    """Training and test trajectories in files of their own, one or several; without `val` it is split off the first."""

    train: str | tuple[str, ...]
    test: str | tuple[str, ...]
    val: str | tuple[str, ...] | None = None


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class SymmetryConfig:
    """A symmetry of the dynamics by names: Burgers' u(x) -> -u(-x) is `{reflect: [x], negate: [u]}`.

    Two axes may be swapped after that, and two channels with them, as the components of a velocity are: vorticity's
    w(x, y) -> -w(y, x) is `{swap: [x, y], negate: [w]}`.
    """

    reflect: tuple[str, ...] = ()
    negate: tuple[str, ...] = ()
    swap: tuple[str, ...] = ()
    swap_channels: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class TaskConfig:
    """One task: where its data is and what is known about it. The facts are checked on the data at load.

    Without `path` the embedded generator writes the task's `preset` under `data.root` and reads it from there. Several
    files of one grid, of other coefficients each, are a list.
    A `steady` task has solutions for given fields instead of trajectories, in PDEBench's Darcy layout; with `solution:
    last_frame` they are the fixed points that trajectories come to from their first frames, at which the last two
    frames differ by at most `settled` of the first one's deviation.
    """

    name: str
    kind: Literal["transient", "steady"] = "transient"
    preset: str = "default"
    path: str | tuple[str, ...] | FilePair | None = None
    channels: tuple[str, ...] = ("u",)
    periodic: tuple[str, ...] = ()
    symmetries: tuple[SymmetryConfig, ...] = ()
    conserved: tuple[str, ...] = ()
    coefficients: dict[str, Literal["linear", "log10"]] = field(default_factory=dict)
    solution: Literal["stored", "last_frame"] = "stored"
    settled: PositiveFloat = 1e-2

    @model_validator(mode="after")
    def _fixed_points(self) -> TaskConfig:
        if self.solution == "last_frame" and self.kind != "steady":
            raise ValueError("solution last_frame is of a steady task; set kind: steady")
        if self.solution == "last_frame" and any(item.negate or item.swap_channels for item in self.symmetries):
            raise ValueError(
                "symmetries that change channels would act on the last frames alone, not on the first ones"
            )
        return self


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class SplitConfig:
    """Which trajectories train, validate and test, where the files do not say it themselves.

    Of `val` and `test`, shares: `random` draws them by `seed`; `pdebench` takes what PDEBench does, the first ones for
    test (of seed groups the last), and those next to them for validation; `hash` decides by each trajectory's file and
    number, so that it stays where it is when files are added. `file` and `native` insist that the files say it: a pair
    of them, or a folder with `train`, `valid` and `test`. `listed` takes the numbers in the JSON file `path`, which
    every run leaves as `split.json`.
    """

    method: Literal["random", "pdebench", "hash", "file", "native", "listed"] = "random"
    val: Annotated[float, Field(gt=0, lt=1)] = 0.1
    test: Annotated[float, Field(gt=0, lt=1)] = 0.1
    seed: int = 0
    path: str | None = None

    @model_validator(mode="after")
    def _path_of_a_list(self) -> SplitConfig:
        if (self.method == "listed") != (self.path is not None):
            raise ValueError("method listed and path, the JSON file of a split, go together")
        return self


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class LoaderConfig:
    """Background reading: `threads` prepare up to `buffer` batches ahead, or as many groups of small ones as there are
    threads; with 0 each is read when it is asked for. Smaller files are held in memory."""

    threads: Count = 1
    buffer: Positive = 4
    memory_gib: Weight = 4.0


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class MixingConfig:
    """Which of several tasks a training step is of: each has a share of the steps, drawn by the seed.

    `uniform` gives all the same; `proportional` by the numbers of training trajectories; `temperature` by these to the
    power 1 / `temperature` (1 is proportional, a high one uniform); `weights` as given, by the names of the tasks.
    """

    method: Literal["uniform", "proportional", "temperature", "weights"] = "uniform"
    temperature: PositiveFloat | None = None
    weights: dict[str, PositiveFloat] = field(default_factory=dict)

    @model_validator(mode="after")
    def _own_numbers(self) -> MixingConfig:
        if (self.method == "temperature") != (self.temperature is not None):
            raise ValueError("method temperature and a temperature go together")
        if (self.method == "weights") != bool(self.weights):
            raise ValueError("method weights and weights, a number for each task, go together")
        return self


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class DataConfig:
    """The tasks and how windows of `context` + horizon frames are drawn from their trajectories.

    A share `change_sampling` of the windows starts at frames drawn in proportion to the mean relative change of the
    field there (the early, rough frames of a decaying field), the rest uniformly.
    With `source: latents` the operator is trained on what scripts/encode_latents.py wrote into the folder `latents`,
    and the codec that made them is held; everything else still reads fields.
    """

    tasks: tuple[TaskConfig, ...]
    mixing: MixingConfig = field(default_factory=MixingConfig)
    root: str = "data"
    context: Positive = 1
    windows_per_trajectory: Positive = 8
    change_sampling: Annotated[float, Field(ge=0, le=1)] = 0.5
    augment: bool = True
    normalize: Literal["zscore", "rms", "none"] = "zscore"
    source: Literal["fields", "latents"] = "fields"
    latents: str | None = None
    split: SplitConfig = field(default_factory=SplitConfig)
    loader: LoaderConfig = field(default_factory=LoaderConfig)

    @model_validator(mode="after")
    def _names(self) -> DataConfig:
        names = [task.name for task in self.tasks]
        if len(set(names)) < len(names):
            raise ValueError("two of the tasks have the same name; give each its own (and its path)")
        if (self.source == "latents") != (self.latents is not None):
            raise ValueError("source latents and latents, the folder that scripts/encode_latents.py wrote, go together")
        kinds = {task.kind for task in self.tasks}
        if len(kinds) > 1:
            raise ValueError("transient and steady tasks are mixed; a stage trains one kind, give the others a run")
        return self


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class LatentConfig:
    """The codec: one token a patch of `patch_size` points an axis (its largest divisor of the grid up to that).

    A token carries its patch of the field and `dim` learned features of the patch and its neighbours.
    Of a set of points there are `nodes` tokens, each with means of `dim` features of points: about so many on a regular
    grid in its box, which hear the points around them, or as many learned `queries`, which attend to all points.
    Before that the points hear each their nearest `neighbours`, within `radius`, in some `rounds`; not where that is 0.
    """

    dim: Positive = 48
    patch_size: Positive = 4
    nodes: Positive = 256
    pooling: Literal["nodes", "queries"] = "nodes"
    neighbours: Count = 0
    radius: PositiveFloat | None = None
    rounds: Positive = 1

    @model_validator(mode="after")
    def _of_messages(self) -> LatentConfig:
        if not self.neighbours and (self.radius is not None or self.rounds > 1):
            raise ValueError("radius and rounds are of messages between points; set neighbours, such as 8")
        return self


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
class DiffusionConfig:
    """The corrector of a trained predictor: a model of its error, normalised, given what it saw and what it said.

    `flow` samples the error in `num_steps` steps of an ODE that begins in white noise; the noise that is left falls
    geometrically to `min_noise` (in the error's own rms) before the last step. `regression` predicts the mean error,
    with the same network. It is trained on states that the operator has reached in 0 to `own_steps` steps of its own.
    A single prediction is corrected by the expected error, in one evaluation of the network, which a share
    `expected_share` of the rows teaches, and after a distillation its teacher; the members of an ensemble by samples,
    each with noise of its own that it keeps for its whole rollout where that is `held_noise`.
    A share `fold` of the training trajectories is left out by the predictor, and is all that the corrector is trained
    on: errors of states that were never fitted.
    Without `hidden_dim` its core is as wide as the operator's, without `depth` half as deep.
    """

    objective: Literal["flow", "regression"] = "flow"
    hidden_dim: Positive | None = None
    depth: Positive | None = None
    num_steps: Positive = 6
    sampler: Literal["euler", "heun"] = "heun"
    min_noise: Annotated[float, Field(gt=0, lt=1)] = 0.05
    own_steps: Count = 1
    input_noise: Weight = 0.0
    fold: Fraction = 0.0
    held_noise: bool = True
    expected_share: Fraction = 0.25


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class OptimizerConfig:
    """`muon` (or `muon_hybrid`) gives hidden matrices Muon with `lr`, the rest AdamW with `lr * adam_lr_ratio`.

    Weight decay leaves biases and norm scales alone; it is decoupled, and a part of the gradient in `adam` and `sgd`.
    `momentum` and `nesterov` are those of `sgd`, `betas` and `eps` those of the Adams. `muon_scale: rms` makes Muon's
    steps as large as Adam's (0.2 sqrt(max(out, in)) instead of sqrt(max(1, out / in))), whose rate then suits both.
    """

    name: Annotated[Literal["adam", "adamw", "sgd", "muon"], _alias(_OPTIMIZER_NAMES)] = "adamw"
    lr: PositiveFloat = 1e-3
    weight_decay: Weight = 0.0
    betas: tuple[Fraction, Fraction] = (0.9, 0.999)
    eps: PositiveFloat = 1e-8
    momentum: Fraction = 0.9
    nesterov: bool = False
    muon_momentum: Fraction = 0.95
    muon_ns_steps: Positive = 5
    muon_scale: Literal["spectral", "rms"] = "spectral"
    adam_lr_ratio: PositiveFloat = 1.0


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class SchedulerConfig:
    """Learning rate per step: linear warm-up over `warmup` of the run, then the named curve.

    `cosineannealinglr` falls to `eta_min` at `t_max` (the end of the run) and stays there; `steplr` is multiplied by
    `gamma` every `step_size` (a third of the run); `reducelronplateau` (or `plateau`) by `factor`, not below `min_lr`,
    whenever more than `patience` (a tenth of the run) brought no validation metric below (1 - `threshold`) times the
    best. Lengths are epochs from the start of the run, or steps by their twins; in brackets what holds where neither
    is given.
    """

    name: Annotated[
        Literal["constant", "steplr", "cosineannealinglr", "reducelronplateau"], _alias(_SCHEDULER_NAMES)
    ] = "cosineannealinglr"
    warmup: Fraction = 0.05
    t_max: PositiveFloat | None = None
    t_max_steps: Positive | None = None
    eta_min: Weight = 0.0
    step_size: PositiveFloat | None = None
    step_size_steps: Positive | None = None
    gamma: PositiveFloat = 0.1
    factor: Annotated[float, Field(gt=0, lt=1)] = 0.1
    patience: Weight | None = None
    patience_steps: Count | None = None
    threshold: Fraction = 1e-4
    min_lr: Weight = 0.0

    @model_validator(mode="after")
    def _lengths(self) -> SchedulerConfig:
        _one_of(self, "t_max", "step_size", "patience")
        return self


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class StageConfig:
    """One stage. What it leaves out comes from `training`, `optimizer` and `scheduler`.

    `max_seconds` wins over `steps`, and `steps` over `epochs`: the seconds a step are measured before the first one,
    and the number of steps is set so that the schedule ends with the budget, validations included. It stops earlier
    when more than `patience` epochs (or `patience_steps`) brought no better validation metric.
    Without `ema_decay` the average of the parameters reaches back a fortieth of the steps so far.
    An optimizer step takes `batch_size * accum_steps` windows, `batch_size` of them in memory at a time.
    """

    epochs: Weight = 0.0
    steps: Count | None = None
    batch_size: Positive = 32
    accum_steps: Positive = 1
    patience: Weight | None = None
    patience_steps: Count | None = None
    grad_clip: PositiveFloat | None = 1.0
    ema_decay: Fraction | None = None
    max_seconds: PositiveFloat | None = None
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    scheduler: SchedulerConfig = field(default_factory=SchedulerConfig)

    @model_validator(mode="after")
    def _lengths(self) -> StageConfig:
        _one_of(self, "patience")
        return self


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class DistillConfig(StageConfig):
    """Distillation: `tau_schedule` gives the levels of noise that a row is compared at, epoch by epoch, the last from
    then on; it ends as soon as the validation's distance to the teacher is at most `target_loss`. `aim` is what the
    student is compared with: where the teacher's own steps end, or the average of the student at the next time.
    """

    aim: Literal["teacher", "average"] = "teacher"
    tau_schedule: tuple[Positive, ...] = ()
    target_loss: Weight = 0.0


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class StagesConfig:
    """The stages in their order; one with neither epochs nor steps is off."""

    operator: StageConfig = field(default_factory=StageConfig)
    steady_prior: StageConfig = field(default_factory=StageConfig)
    diffusion_residual: StageConfig = field(default_factory=StageConfig)
    consistency_distill: DistillConfig = field(default_factory=DistillConfig)


# Other names of stages, on the command line and in `stages`.
STAGE_ALIASES = {"diff_residual": "diffusion_residual"}
# Which stages' results a stage is trained upon, on each kind of task.
STAGE_NEEDS: dict[str, dict[str, tuple[str, ...]]] = {
    "transient": {
        "diffusion_residual": ("operator",),
        "consistency_distill": ("operator", "diffusion_residual"),
    },
    "steady": {
        "diffusion_residual": ("steady_prior",),
        "consistency_distill": ("steady_prior", "diffusion_residual"),
    },
}


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class QuerySamplingConfig:
    """Score the losses that compare points (relative, relative_mse, forward, rollout, inverse encoding) at
    `num_queries` of the grid's points, drawn anew at every step; derivatives and spectra still take the whole grid.
    """

    enabled: bool = False
    num_queries: Positive | None = None
    strategy: Literal["uniform", "stratified"] = "uniform"


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class PhysicsPriorsConfig:
    """Weights of what the decoded prediction should satisfy, in physical units; `enabled: false` turns all of them off.

    `velocity` names a channel for each axis. `bc_type` says which sides of the grid the `bc_condition` holds on. Of the
    lists of channels, an empty one means all.
    """

    enabled: bool = True
    lambda_divergence: Weight = 0.0
    lambda_conservation: Weight = 0.0
    lambda_boundary: Weight = 0.0
    lambda_positivity: Weight = 0.0
    lambda_smoothness: Weight = 0.0
    lambda_latent_norm: Weight = 0.0
    lambda_latent_diversity: Weight = 0.0
    velocity: tuple[str, ...] = ()
    conservation_channels: tuple[str, ...] = ()
    boundary_channels: tuple[str, ...] = ()
    positivity_channels: tuple[str, ...] = ()
    smoothness_channels: tuple[str, ...] = ()
    bc_value: Annotated[float, Field(allow_inf_nan=False)] = 0.0
    bc_type: Literal["all", "left", "right", "bottom", "top", "front", "back"] = "all"
    bc_condition: Literal["dirichlet", "neumann", "periodic"] = "dirichlet"


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class TauConfig:
    """How the corrector's times of the flow, 0 noise and 1 data, are drawn while it is trained: uniformly, or as
    Beta(`alpha`, `beta`)."""

    type: Literal["uniform", "beta"] = "uniform"
    alpha: PositiveFloat = 1.0
    beta: PositiveFloat = 1.0


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class TrainingConfig:
    """What all stages share. A stage is evaluated every `eval_every` epochs; `input_noise`, on the frames that a time
    step is given, is the largest standard deviation that a window draws, in those of the field. The `lambda_*` weigh
    the loss's terms, of which one with weight 0 is not computed; `lambda_spectral_bands` is low, mid, high.
    `log_per_task_metrics` adds every task's own loss and count of samples to the records.

    The `rollout_horizon` that is scored starts after `pushforward` steps without a gradient, of which the model makes
    the last 0 to all, drawn for each window; in the horizon the gradient is cut every `truncate` steps. `remat`
    recomputes for the gradient what each block (`block`), and each time step as well (`full`), would otherwise keep in
    memory. A step whose loss exceeds the mean of the last `spike_window` accepted ones by `spike_sigma` of their
    standard deviations (1 % of the mean at the least) is skipped. `compile: false` runs every operation apart.
    `precision: bf16` is that of the core between entrance and exit; parameters, residuals, norms and transforms of
    Fourier stay in float32. `fp32` is that on every device; `tf32` leaves it to a GPU to take ten bits of the factors.
    """

    batch_size: Positive = 32
    accum_steps: Positive = 1
    time_stride: Positive = 1
    rollout_horizon: Positive = 1
    pushforward: Count = 0
    truncate: Positive | None = None
    patience: Weight | None = None
    patience_steps: Count | None = None
    grad_clip: PositiveFloat | None = 1.0
    ema_decay: Fraction | None = None
    max_seconds: PositiveFloat | None = None
    precision: Literal["fp32", "tf32", "bf16"] = "fp32"
    remat: Literal["none", "block", "full"] = "none"
    compile: bool = True
    lambda_relative: Weight = 1.0
    lambda_relative_mse: Weight = 0.0
    lambda_h1: Weight = 0.1
    lambda_forward: Weight = 0.0
    lambda_rollout: Weight = 0.0
    lambda_spectral: Weight = 0.0
    lambda_spectral_bands: tuple[Weight, Weight, Weight] = (0.0, 0.0, 0.0)
    lambda_inv_enc: Weight = 0.0
    lambda_inv_dec: Weight = 0.0
    inverse_loss_warmup_epochs: Weight = 15.0
    inverse_loss_max_weight: Weight = 0.05
    query_sampling: QuerySamplingConfig = field(default_factory=QuerySamplingConfig)
    physics_priors: PhysicsPriorsConfig = field(default_factory=PhysicsPriorsConfig)
    input_noise: Weight = 0.0
    tau_distribution: TauConfig = field(default_factory=TauConfig)
    distill_num_taus: Positive = 3
    eval_every: PositiveFloat = 1.0
    max_skips: Positive = 20
    spike_sigma: PositiveFloat | None = None
    spike_window: Annotated[int, Field(ge=2)] = 50
    log_per_task_metrics: bool = False

    @model_validator(mode="after")
    def _lengths(self) -> TrainingConfig:
        _one_of(self, "patience")
        return self


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class CheckpointConfig:
    """A save at every evaluation and every `every_seconds`; the best and the latest `keep` stay."""

    keep: Positive = 2
    every_seconds: PositiveFloat = 60.0


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class EvaluationConfig:
    """`metric` selects the best checkpoint on the validation split; `val_trajectories` bounds its cost. Where there is
    a corrector, an ensemble of `members` is scored as well; with fewer than two there is none. With two `candidates` or
    more for each step of its rollout, those that known physics chooses are scored beside one, a random one, their mean
    and the best.
    """

    enabled: bool = True
    metric: Literal["one_step", "rollout"] = "rollout"
    val_trajectories: Positive = 32
    batch_size: Positive = 64
    bootstrap: Positive = 1000
    members: Count = 8
    candidates: Count = 0
    plots: bool = True


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class WandbConfig:
    """Weights & Biases beside the JSONL. `mode: auto` is online where a login is found and offline elsewhere.

    It gets a training record every `every_seconds` at the most, each validation, and at the end of a stage its best
    checkpoint with `upload_checkpoints`.
    """

    enabled: bool = True
    mode: Literal["auto", "online", "offline"] = "auto"
    project: str = "ups_jax"
    entity: str | None = None
    tags: tuple[str, ...] = ()
    every_seconds: Weight = 0.5
    upload_checkpoints: bool = True


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class LoggingConfig:
    """A record every `every_steps` steps in metrics.jsonl; a line every `every_seconds` where there is no terminal.

    `tensorboard` writes event files as well; it needs the extra of that name.
    """

    every_steps: Positive = 10
    every_seconds: PositiveFloat = 10.0
    tensorboard: bool = False
    wandb: WandbConfig = field(default_factory=WandbConfig)


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class ParallelConfig:
    """The devices as `data` times `fsdp`: both share the rows of a batch, and `fsdp` the large arrays of the state as
    well. `data: -1` takes all devices. `multihost` joins the processes of a run, which Slurm, TPU pods, Kubernetes and
    MPI introduce to each other; elsewhere they need `coordinator` (host:port of process 0), `processes` and `process`.
    A process that is silent for `timeout_seconds` ends the others.
    """

    data: Annotated[int, Field(ge=-1)] = -1
    fsdp: Positive = 1
    multihost: bool = False
    coordinator: str | None = None
    processes: Positive | None = None
    process: Count | None = None
    timeout_seconds: Annotated[int, Field(ge=10)] = 100

    @model_validator(mode="after")
    def _explicit(self) -> ParallelConfig:
        if self.data == 0:
            raise ValueError("data: 0 devices; -1 takes all of them")
        given = [value is not None for value in (self.coordinator, self.processes, self.process)]
        if any(given) and not (all(given) and self.multihost):
            raise ValueError("coordinator, processes and process go together, with multihost: true")
        return self


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class GatesConfig:
    """What a candidate must be before it is promoted, in the names of `ups_jax.pipeline.scores`.

    The improvement of `metric` over the champion is at least `min_small_delta` and `min_full_delta`, as a share of the
    champion's value (`relative`) or in the metric's unit (`absolute`). Each of `ratios` is at most that many times the
    champion's value and `tolerance` of it more; what is at most `floor` counts as round-off and passes. `tolerances`
    and `floors` are those of single metrics. Each of `limits` bounds a metric whatever the champion has. Lower is
    better but for `higher_is_better`, whose bounds are lower bounds. `required` must be measured and finite. A ratio
    that only the champion has measured fails, or is told (`on_missing: warn`). With `beat_trivial` the candidate must
    be better than what needs no training: persistence, or the mean field of a steady task.
    """

    metric: str = "nrmse"
    delta: Literal["relative", "absolute"] = "relative"
    min_small_delta: Annotated[float, Field(allow_inf_nan=False)] = 0.02
    min_full_delta: Annotated[float, Field(allow_inf_nan=False)] = 0.02
    ratios: dict[str, PositiveFloat] = field(
        default_factory=lambda: {"conservation_gap": 1.0, "bc_violation": 1.0, "ece": 1.25, "wall_clock": 1.0}
    )
    tolerance: Weight = 0.05
    tolerances: dict[str, Weight] = field(default_factory=lambda: {"wall_clock": 0.5})
    floor: Weight = 1e-6
    floors: dict[str, Weight] = field(default_factory=lambda: {"ece": 0.02, "wall_clock": 1e-3})
    limits: dict[str, Annotated[float, Field(allow_inf_nan=False)]] = field(default_factory=dict)
    higher_is_better: tuple[str, ...] = ("correlation_time",)
    required: tuple[str, ...] = ()
    on_missing: Literal["fail", "warn"] = "fail"
    beat_trivial: bool = True


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class FullEvaluationConfig:
    """Which trajectories an evaluation of the pipeline takes: of a split the first `trajectories`, and of each the
    first `horizon` frames after its context."""

    split: Literal["val", "test"] = "test"
    trajectories: Positive | None = None
    horizon: Positive | None = None


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class SmallEvaluationConfig(FullEvaluationConfig):
    """The same of the small evaluation, which only has to find a bad candidate soon."""

    split: Literal["val", "test"] = "val"
    trajectories: Positive | None = 16


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class PipelineConfig:
    """The pipeline's two evaluations."""

    small: SmallEvaluationConfig = field(default_factory=SmallEvaluationConfig)
    full: FullEvaluationConfig = field(default_factory=FullEvaluationConfig)


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class Config:
    """The whole configuration of a run. `deterministic` asks XLA for kernels that repeat bit for bit on a GPU."""

    seed: int = 17
    deterministic: bool = False
    runs: str = "runs"
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


def of_task(config: Config, name: str) -> Config:
    """The configuration of a task alone, one of several; as it is where it has one."""
    if len(config.data.tasks) == 1:
        return config
    own = tuple(task for task in config.data.tasks if task.name == name)
    return replace(config, data=replace(config.data, tasks=own, mixing=MixingConfig()))


def to_dict(config: Config) -> dict[str, Any]:
    """The resolved configuration as plain JSON values."""
    return ADAPTER.dump_python(config, mode="json")
