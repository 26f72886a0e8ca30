"""What the writers hear when a stage has ended: its result in the summary, its best checkpoint, and an alert."""

from __future__ import annotations

import math
import re

from ups_jax.config import WandbConfig
from ups_jax.errors import DivergedError
from ups_jax.tracking import Writer
from ups_jax.training.checkpoint import Checkpoints
from ups_jax.training.run_directory import RunDirectory
from ups_jax.training.state import TrainState


def tell_end(
    writer: Writer, config: WandbConfig, run: RunDirectory, stage: str, checkpoints: Checkpoints, state: TrainState
) -> None:
    """Send what the finished stage came to; its best checkpoint is on disk, and its upload the last that is sent."""
    best, steps = checkpoints.best_step(), int(state.step)
    # Of what is on disk, which is not the monitor's best where that one was damaged.
    measured = None if best is None else checkpoints.validation(best)
    value = math.inf if measured is None else measured
    about = {"steps": steps, "best_step": best, "best_metric": measured}
    writer.summary({"training": {stage: about}})
    writer.alert(f"{stage} has ended", f"{run.path}: {steps} steps, best validation {value:.4g} at step {best}")
    if best is not None and config.upload_checkpoints:
        writer.artifact(
            checkpoints.directory / str(best),
            _artifact_name(f"{run.path.resolve().name}-{stage}"),
            kind="model",
            labels=("best", f"step-{best}"),
            about=about | {"stage": stage, "step": best},
        )


def is_told(run: RunDirectory, stage: str, state: TrainState) -> bool:
    """Whether the end of the stage at this step was sent by an earlier start, as its record says (`told`).

    The record follows the sending, so that who is killed between the two, or could not send, sends it again.
    """
    return run.read()["stages"][stage].get("told") == int(state.step)


def went_out(writer: Writer) -> bool:
    """Of a closed writer: whether it has sent the end of the stage."""
    return writer.delivered("summary", "alert", "artifact")


def tell_diverged(writer: Writer, run: RunDirectory, stage: str, error: DivergedError) -> None:
    """Send that the stage is lost."""
    writer.alert(f"{stage} has diverged", f"{run.path}: {error}", "ERROR")


def _artifact_name(name: str) -> str:
    """Of letters, digits, dashes, underscores and points, as W&B wants it, and not too long for it."""
    return re.sub(r"[^A-Za-z0-9._-]", "-", name)[-128:]
