"""Sections of the configuration about training: optimizer, schedule, stages, losses and devices."""

from __future__ import annotations

from dataclasses import field
from typing import Annotated, Literal

from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass

from ups_jax.config.schema.fields import (
    STRICT,
    Count,
    FiniteFloat,
    Fraction,
    OpenFraction,
    Positive,
    PositiveFloat,
    Weight,
    check_one_unit,
    name_normalizer,
)

_OPTIMIZER_ALIASES = {"muon_hybrid": "muon"}
_SCHEDULER_ALIASES = {"reducelr": "reducelronplateau", "plateau": "reducelronplateau"}


@dataclass(frozen=True, kw_only=True, config=STRICT)
class OptimizerConfig:
    """The optimizer of every stage that does not override it."""

    name: Annotated[Literal["adam", "adamw", "sgd", "muon"], name_normalizer(_OPTIMIZER_ALIASES)] = "adamw"
    """`adam`, `adamw`, `sgd` or `muon` (also `muon_hybrid`): Muon for hidden matrices, AdamW for all other
    parameters."""

    lr: PositiveFloat = 1e-3
    """Peak learning rate; with `muon`, that of the hidden matrices."""

    weight_decay: Weight = 0.0
    """Weight decay: decoupled (times the learning rate) in `adamw` and `muon`, added to the gradient in `adam` and
    `sgd`. Biases and norm scales are not decayed."""

    betas: tuple[Fraction, Fraction] = (0.9, 0.999)
    """Decay rates of the two moments of `adam`, `adamw` and the AdamW part of `muon`."""

    eps: PositiveFloat = 1e-8
    """Added to the root of the second moment by `adam`, `adamw` and the AdamW part of `muon`."""

    momentum: Fraction = 0.9
    """Momentum of `sgd`."""

    nesterov: bool = False
    """Use Nesterov momentum in `sgd`."""

    muon_momentum: Fraction = 0.95
    """Momentum of Muon, always in Nesterov form."""

    muon_ns_steps: Positive = 5
    """Newton-Schulz iterations of a Muon step."""

    muon_scale: Literal["spectral", "rms"] = "spectral"
    """Scale of a Muon step for a matrix of shape (in, out): `spectral` sqrt(max(1, out / in)), or `rms`
    0.2 sqrt(max(out, in)), which matches Adam's step size so that one rate suits both."""

    adam_lr_ratio: PositiveFloat = 1.0
    """Learning rate of the AdamW part of `muon`, relative to `lr`."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class SchedulerConfig:
    """The learning rate at each step: a linear warm-up, then the curve `name`.

    The default warm-up belongs to the default curve: if `name` is set and `warmup` is not, there is no warm-up, as in
    the original system. For a stage, the keys of its section and of this one count together.
    """

    name: Annotated[
        Literal["constant", "steplr", "cosineannealinglr", "reducelronplateau"], name_normalizer(_SCHEDULER_ALIASES)
    ] = "cosineannealinglr"
    """`constant`, `steplr`, `cosineannealinglr`, or `reducelronplateau` (also `plateau`, `reducelr`)."""

    warmup: Fraction = 0.05
    """Share of the run in which the learning rate rises linearly, with any curve."""

    t_max: PositiveFloat | None = None
    """Epochs from the start of the run to the end of the cosine, after which the rate stays at `eta_min`; `null` is the
    whole run."""

    t_max_steps: Positive | None = None
    """`t_max` in optimizer steps."""

    eta_min: Weight = 0.0
    """Learning rate at the end of the cosine."""

    step_size: PositiveFloat | None = None
    """Epochs between two reductions of `steplr`; `null` is a third of the run."""

    step_size_steps: Positive | None = None
    """`step_size` in optimizer steps."""

    gamma: PositiveFloat = 0.1
    """Factor of a reduction of `steplr`."""

    factor: OpenFraction = 0.1
    """Factor of a reduction of `reducelronplateau`."""

    patience: Weight | None = None
    """`reducelronplateau` reduces the rate after more than this many epochs without a better validation metric; `null`
    is a tenth of the run."""

    patience_steps: Count | None = None
    """`patience` in optimizer steps."""

    threshold: Fraction = 1e-4
    """A metric of `reducelronplateau` is better if it is below 1 - `threshold` times the best."""

    min_lr: Weight = 0.0
    """Smallest learning rate of `reducelronplateau`."""

    @model_validator(mode="after")
    def _check_lengths(self) -> SchedulerConfig:
        check_one_unit(self, "t_max", "step_size", "patience")
        return self


@dataclass(frozen=True, kw_only=True, config=STRICT)
class StageDefaults:
    """Keys of `training` that each stage may override."""

    batch_size: Positive = 32
    """Windows of a micro-batch, over all devices; halved automatically if memory runs out. A run may be resumed with
    another value and the same `batch_size * accum_steps`."""

    accum_steps: Positive = 1
    """Micro-batches whose gradients are averaged for one optimizer step."""

    patience: Weight | None = None
    """A stage stops after more than this many epochs without a better validation metric; `null` never stops it."""

    patience_steps: Count | None = None
    """`patience` in optimizer steps."""

    grad_clip: PositiveFloat | None = 1.0
    """Largest global norm of a gradient; `null` turns clipping off."""

    ema_decay: Fraction | None = None
    """Decay for each step of the moving average of the parameters, which evaluations use. `null` is the power-function
    average, which covers about the last fortieth of the steps so far."""

    max_seconds: PositiveFloat | None = None
    """Time limit of a stage in seconds, validations included. The number of steps is computed from it before the first
    step, so that the schedule ends with the limit."""

    @model_validator(mode="after")
    def _check_lengths(self) -> StageDefaults:
        check_one_unit(self, "patience")
        return self


@dataclass(frozen=True, kw_only=True, config=STRICT)
class QuerySamplingConfig:
    """Evaluation of some losses at a random subset of the grid's points.

    These are the losses that compare values point by point: relative, relative_mse, forward, rollout and inverse
    encoding. Losses of derivatives and spectra still use the whole grid.
    """

    enabled: bool = False
    """Compute these losses at `num_queries` points only."""

    num_queries: Positive | None = None
    """Number of points, which are drawn anew in each step; required with `enabled`."""

    strategy: Literal["uniform", "stratified"] = "uniform"
    """`uniform` over the grid, or `stratified`: evenly from equal blocks of the grid."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class PhysicsPriorsConfig:
    """Loss terms of the decoded prediction.

    The unit of a value is the standard deviation of its channel in the training set, and the unit of length is the
    geometric mean of the domain's sides.
    """

    enabled: bool = True
    """`false` turns off all terms of this section, whatever their weights."""

    lambda_divergence: Weight = 0.0
    """Weight of the mean absolute divergence of `velocity`, whose unit is the root mean square of the components'
    standard deviations."""

    lambda_conservation: Weight = 0.0
    """Weight of the change of the field's spatial mean, relative to the field's root mean square about its training
    mean."""

    lambda_boundary: Weight = 0.0
    """Weight of the squared residual of the boundary condition on the grid's walls."""

    lambda_positivity: Weight = 0.0
    """Weight of the mean size of negative physical values."""

    lambda_smoothness: Weight = 0.0
    """Weight of the mean absolute slope."""

    lambda_latent_norm: Weight = 0.0
    """Weight of the difference between 1 and the norm of the learned features of predicted tokens."""

    lambda_latent_diversity: Weight = 0.0
    """Weight of the mean absolute cosine similarity of these features between two tokens."""

    velocity: tuple[str, ...] = ()
    """Channels of the velocity, one for each axis in order; empty: all channels."""

    conservation_channels: tuple[str, ...] = ()
    """Channels of the conservation term; empty: all channels."""

    boundary_channels: tuple[str, ...] = ()
    """Channels of the boundary term; empty: all channels."""

    positivity_channels: tuple[str, ...] = ()
    """Channels of the positivity term; empty: all channels, which is an error if the field has several."""

    smoothness_channels: tuple[str, ...] = ()
    """Channels of the smoothness term; empty: all channels."""

    bc_value: FiniteFloat = 0.0
    """Value of the field on the walls, or of its outward slope, in physical units."""

    bc_type: Literal["all", "left", "right", "bottom", "top", "front", "back"] = "all"
    """Walls with the boundary condition: `all`, `left` or `right` (ends of the first axis), `bottom` or `top` (second
    axis), `front` or `back` (third axis)."""

    bc_condition: Literal["dirichlet", "neumann", "periodic"] = "dirichlet"
    """`dirichlet`: the value is `bc_value`. `neumann`: the outward slope is. `periodic`: both ends are equal."""

    bc_points: Literal["auto", "nodes", "cells"] = "auto"
    """Whether the outermost grid points are on the walls (`nodes`) or half a spacing inside (`cells`, the centres of
    cells). `auto` decides by the first coordinate: 0 for nodes, half a spacing for cells."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class TauConfig:
    """Distribution of the flow times (0 is noise, 1 is data) at which the corrector is trained."""

    type: Literal["uniform", "beta"] = "uniform"
    """`uniform`, or `beta` for Beta(`alpha`, `beta`)."""

    alpha: PositiveFloat = 1.0
    """First parameter of the Beta distribution."""

    beta: PositiveFloat = 1.0
    """Second parameter of the Beta distribution; below 1, small noise levels are drawn more often."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class TrainingConfig(StageDefaults):
    """Settings of all stages.

    Loss terms compare normalized decoded fields unless their key states otherwise; a term with weight 0 is not
    computed.
    """

    time_stride: Positive = 1
    """Frames of the data that one time step of the model spans."""

    rollout_horizon: Positive = 1
    """Time steps that the loss scores, each from the previous prediction."""

    pushforward: Count = 0
    """Largest number of predicted time steps before those that the loss scores; they have no gradient. For each window,
    the number is drawn uniformly from 0 to this value; with 0, the input is true frames."""

    truncate: Positive | None = None
    """Time steps of the horizon after which the gradient is cut; `null` never cuts it."""

    precision: Literal["fp32", "tf32", "bf16"] = "fp32"
    """Precision of matrix products in the operator: `fp32` on every device; `tf32`, a GPU's default with 10 mantissa
    bits; or `bf16`. Parameters, residuals, norms and Fourier transforms are always float32."""

    remat: Literal["none", "block", "full"] = "none"
    """Activations that are recomputed for the gradient instead of kept in memory: `none`, those of each `block`, or
    those of each time step as well, `full`."""

    compile: bool = True
    """`false` runs every operation separately, for debugging."""

    lambda_relative: Weight = 1.0
    """Weight of each sample's relative error: root mean square error over root mean square of the truth."""

    lambda_relative_mse: Weight = 0.0
    """Weight of each sample's mean square error over mean square of the truth."""

    lambda_h1: Weight = 0.1
    """Weight of each sample's relative error of first differences along the axes."""

    lambda_forward: Weight = 0.0
    """Weight of the mean square error of the first scored step."""

    lambda_rollout: Weight = 0.0
    """Weight of the mean square error of the later scored steps; needs a `rollout_horizon` of 2 or more."""

    lambda_spectral: Weight = 0.0
    """Weight of the relative error of the energy spectrum."""

    lambda_spectral_bands: tuple[Weight, Weight, Weight] = (0.0, 0.0, 0.0)
    """Weights of the relative errors in low, middle and high wavenumbers."""

    lambda_inv_enc: Weight = 0.0
    """Weight of the error of decode(encode(field)). Refused with a codec that carries the field, as the present one
    does: the error is 0 by construction."""

    lambda_inv_dec: Weight = 0.0
    """Weight of the error of encode(decode(tokens)); refused in the same case."""

    inverse_loss_warmup_epochs: Weight = 15.0
    """Epochs without the two inverse losses; their weights rise linearly over as many epochs after that."""

    inverse_loss_max_weight: Weight = 0.05
    """Largest weight of an inverse loss."""

    query_sampling: QuerySamplingConfig = field(default_factory=QuerySamplingConfig)
    physics_priors: PhysicsPriorsConfig = field(default_factory=PhysicsPriorsConfig)
    input_noise: Weight = 0.0
    """Largest standard deviation of white noise on the input frames, in standard deviations of the field; each window
    draws its level below that."""

    tau_distribution: TauConfig = field(default_factory=TauConfig)
    distill_num_taus: Positive = 3
    """Number of noise levels at which a row of a distillation step compares the student with its target. With `aim:
    teacher`, the first level is pure noise and the others are random. One level suffices for sampling in one step;
    sampling in two steps needs more."""

    eval_every: PositiveFloat = 1.0
    """Epochs between two validations."""

    max_skips: Positive = 20
    """Consecutive skipped steps (not finite, or a loss spike) after which a run fails."""

    spike_sigma: PositiveFloat | None = None
    """A step is skipped if its loss exceeds the mean of the last accepted losses by more than this many of their
    standard deviations (at least 1 % of the mean); `null` skips none."""

    spike_window: Annotated[int, Field(ge=2)] = 50
    """Number of accepted losses in that mean."""

    log_per_task_metrics: bool = False
    """Add the loss and the number of samples of each task to the records; with several tasks they are always added."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class ParallelConfig:
    """Devices and processes; `docs/scaling.md` states the cost of each option."""

    data: Annotated[int, Field(ge=-1)] = -1
    """Devices that divide the rows of a batch and replicate the state; `-1` is the number of devices divided by
    `fsdp`."""

    fsdp: Positive = 1
    """Devices that also divide the rows, and shard every large parameter, moment and average."""

    multihost: bool = False
    """Join the processes of one run. Without the next three keys, JAX gets them from Slurm, TPU, Kubernetes or MPI."""

    coordinator: str | None = None
    """`host:port` of process 0."""

    processes: Positive | None = None
    """Number of processes."""

    process: Count | None = None
    """Index of this process, from 0."""

    timeout_seconds: Annotated[int, Field(ge=10)] = 100
    """Seconds that processes wait for each other at the start, and after which a silent process ends the others."""

    @model_validator(mode="after")
    def _check_devices(self) -> ParallelConfig:
        if self.data == 0:
            raise ValueError("`data`, a number of devices, cannot be 0; set -1 for all devices")
        is_set = [value is not None for value in (self.coordinator, self.processes, self.process)]
        if any(is_set) and not (all(is_set) and self.multihost):
            raise ValueError(
                "`coordinator`, `processes` and `process` belong together; set all three, and `multihost: true`"
            )
        return self


@dataclass(frozen=True, kw_only=True, config=STRICT)
class StageConfig(StageDefaults):
    """One stage: `operator`, `steady_prior`, `diffusion_residual` (also `diff_residual`) or `consistency_distill`.

    A stage also has the sections `optimizer` and `scheduler`, with the keys above. Keys that a stage does not
    set are taken from `training`, `optimizer` and `scheduler`; keys that these do not set have the defaults below.
    `max_seconds` takes precedence over `steps`, and `steps` over `epochs`.
    """

    epochs: Weight = 0.0
    """Epochs of the stage. `--stage all` trains the stages whose `epochs` or `steps` are above 0."""

    steps: Count | None = None
    """Optimizer steps of the stage, in place of `epochs`."""

    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    scheduler: SchedulerConfig = field(default_factory=SchedulerConfig)


@dataclass(frozen=True, kw_only=True, config=STRICT)
class DistillConfig(StageConfig):
    """Distillation of the corrector into few sampling steps, with the keys of a stage and those below."""

    aim: Literal["teacher", "average"] = "teacher"
    """Target of the student: the end of the `teacher`'s sampling steps, or the prediction of the `average` of the
    student's parameters at the next noise level (consistency distillation)."""

    tau_schedule: tuple[Positive, ...] = ()
    """`training.distill_num_taus` for each epoch; the last entry holds for all later epochs."""

    target_loss: Weight = 0.0
    """The stage ends when the validation metric `distance` is at most this value; 0 never ends it. `distance` is the
    mean square difference between samples of student and teacher, relative to the mean square of the teacher's
    samples."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class StagesConfig:
    """The stages, in the order in which they are trained."""

    operator: StageConfig = field(default_factory=StageConfig)
    steady_prior: StageConfig = field(default_factory=StageConfig)
    diffusion_residual: StageConfig = field(default_factory=StageConfig)
    consistency_distill: DistillConfig = field(default_factory=DistillConfig)
