"""Sections of the configuration about what a run measures, logs and keeps."""

from __future__ import annotations

from dataclasses import field
from typing import Literal

from pydantic.dataclasses import dataclass

from ups_jax.config.schema.fields import STRICT, Count, Positive, PositiveFloat, Weight


@dataclass(frozen=True, kw_only=True, config=STRICT)
class CheckpointConfig:
    """Checkpoints that are saved during training; each validation saves one as well."""

    keep: Positive = 2
    """Latest checkpoints that stay on disk, in addition to the best one."""

    every_seconds: PositiveFloat = 60.0
    """Seconds between two saves."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class EvaluationConfig:
    """Evaluation of a trained model, and validation during training."""

    enabled: bool = True
    """Evaluate on the test split at the end of `ups-jax train`."""

    metric: Literal["one_step", "rollout"] = "rollout"
    """Validation nRMSE that selects the best checkpoint and that patience and plateau watch: of `one_step`, or of a
    whole `rollout`."""

    val_trajectories: Positive = 32
    """Largest number of validation trajectories."""

    trajectories: Positive | None = None
    """Number of evaluated trajectories of a split, from the first on; `null` evaluates all."""

    batch_size: Positive = 64
    """Largest number of trajectories in a batch of rollouts. A batch has fewer if their true fields exceed 16 MiB."""

    bootstrap: Positive = 1000
    """Bootstrap resamples of each 95 % interval."""

    members: Count = 8
    """Members of a corrector's ensemble, `variants.ensemble`; fewer than 2 turn it off."""

    candidates: Count = 0
    """Candidates that a corrector draws in each step; the residual of the equation (or declared conservation) selects
    one. Reported as `variants.candidates_chosen`, beside `_one`, `_random`, `_mean` and `_oracle`; fewer than 2 turn
    them off. There are none for steady tasks, with `diffusion.objective: regression` or without a corrector; a note in
    the result says so."""

    plots: bool = True
    """Draw plots in addition to the JSON and the report."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class WandbConfig:
    """Logging to Weights & Biases, in addition to `metrics.jsonl`.

    Every start of a run creates a new W&B run, in the group that belongs to the run directory. The variables
    WANDB_RUN_ID and WANDB_RESUME have no effect. Processes with the same file in WANDB_CONTEXT_FILE share a W&B run.
    """

    enabled: bool = True
    """Log to Weights & Biases."""

    mode: Literal["auto", "online", "offline"] = "auto"
    """`online`, `offline`, or `auto`: online if a login exists. The environment variable WANDB_MODE wins. A run is
    written offline if W&B does not respond within 90 seconds."""

    project: str = "ups_jax"
    """Project on Weights & Biases."""

    entity: str | None = None
    """User or team on Weights & Biases; `null` is the login's default."""

    tags: tuple[str, ...] = ()
    """Tags of the runs."""

    every_seconds: Weight = 0.5
    """Shortest time between two training records, in seconds; 0 sends every record. Validations are sent at once, and
    metrics.jsonl has all records."""

    upload_checkpoints: bool = True
    """Upload the best checkpoint at the end of a stage if the run is online. The stage waits for the upload: 1 second
    for each megabyte, at most 300 seconds."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class LoggingConfig:
    """Metrics that are recorded and printed during training."""

    every_steps: Positive = 10
    """Optimizer steps between two records in `metrics.jsonl`."""

    every_seconds: PositiveFloat = 10.0
    """Seconds between two printed lines if the output is not a terminal."""

    tensorboard: bool = False
    """Write TensorBoard event files as well; needs the extra `tensorboard`."""

    wandb: WandbConfig = field(default_factory=WandbConfig)
