"""What a run prints: device, data and plan before its first step, progress during it, and the end of a stage."""

from __future__ import annotations

import math
import re
import time
from types import TracebackType
from typing import Any

import jax
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from ups_jax.config import Config, WandbConfig
from ups_jax.core.errors import DivergedError
from ups_jax.core.terminal import print_line
from ups_jax.data import Mixture, stage_trajectories
from ups_jax.data.mixture import task_shares
from ups_jax.runs.checkpoint import Checkpoints
from ups_jax.runs.directory import RunDirectory
from ups_jax.tracking import Writer
from ups_jax.training.run_length import Plan
from ups_jax.training.stages import stage_of
from ups_jax.training.state import TrainState


def log_setup(console: Console, cfg: Config, stage: str, data: Mixture) -> None:
    """Print the device, the data, and what there is to say of it."""
    device = jax.devices()[0]
    print_line(console, f"device      {device.device_kind} ({device.platform}, {jax.device_count()} in use)")
    if device.platform == "cpu":
        print_line(console, "            no accelerator was found: this runs on the CPU")
    for dataset in data.datasets:
        sizes, task = dataset.sizes, dataset.task
        given = (
            f"dt {task.dt:g}" if task.kind == "transient" else f"steady, given {', '.join(i.name for i in task.inputs)}"
        )
        print_line(
            console,
            f"data        {task.name}: {sizes['train']}/{sizes['val']}/{sizes['test']} trajectories, "
            f"{' x '.join(map(str, task.shape))} points, {given}, channels {', '.join(task.channels)}",
        )
    if cfg.diffusion.fold:
        (dataset,) = data.datasets
        count, whole = len(stage_trajectories(dataset, cfg, stage)), dataset.sizes["train"]
        print_line(console, f"fold        {stage} is trained on {count} of the {whole}, diffusion.fold={cfg.diffusion.fold:g}")
    for note in (note for dataset in data.datasets for note in dataset.notes):
        print_line(console, f"note        {note}")
    if len(data.tasks) > 1:
        sizes = {dataset.task.name: dataset.sizes["train"] for dataset in data.datasets}
        parts = zip(sizes, task_shares(cfg.data.mixing, sizes), strict=True)
        told = ", ".join(f"{name} {100 * share:.3g} %" for name, share in parts)
        print_line(console, f"mixing      {cfg.data.mixing.method}: of the steps {told}")
        chosen = stage_of(stage).selected_by(cfg)
        print_line(console, f"selected    by the mean over the tasks of validation/{chosen}")


def log_plan(console: Console, cfg: Config, stage: str, plan: Plan, planned: dict[str, Any]) -> None:
    """Print the steps of a stage; `planned` is what `plan_and_record` gives for the record."""
    settings = getattr(cfg.stages, stage)
    windows = f"{settings.accum_steps} x " * (settings.accum_steps > 1) + f"{settings.batch_size}"
    budget = planned.get("budget")
    within = ""
    if budget is not None:
        within = (
            f", {budget['max_seconds']:g} s at {1e3 * budget['seconds_per_step']:.3g} ms a step with its validation"
        )
    print_line(
        console,
        f"plan        {plan.total_steps} steps of {windows} windows "
        f"({plan.total_steps / plan.steps_per_epoch:.3g} epochs{within}), {settings.optimizer.name}, "
        f"{cfg.training.precision}",
    )


class TrainingProgress:
    """Loss, validation nRMSE, steps a second and time left of one stage."""

    def __init__(self, console: Console, stage: str, total_steps: int, start: int, every_seconds: float) -> None:
        self._console = console
        self._stage = stage
        self._total = total_steps
        self._start = start
        self._every = every_seconds
        self._loss: float | None = None
        self._validation: float | None = None
        self._told = time.monotonic()
        self._newest = start
        # Rates count from the second step: the first one waits for the compiler.
        self._running: float | None = None
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[numbers]}"),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self._task = self._bar.add_task(stage, total=total_steps, completed=start, numbers="")

    def __enter__(self) -> TrainingProgress:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    @property
    def seconds_per_step(self) -> float | None:
        """Wall time a step, validation and saves included, compilation not; None before the second step."""
        if self._running is None or self._newest == self._start:
            return None
        return (time.monotonic() - self._running) / (self._newest - self._start)

    def loss(self, value: float) -> None:
        """The newest training loss."""
        self._loss = value

    def validation(self, value: float) -> None:
        """The newest validation nRMSE."""
        self._validation = value

    def step(self, step: int) -> None:
        """A step was begun; shows or says it when it is time."""
        moment = time.monotonic()
        self._newest = step
        if self._running is None:
            self._running, self._start = moment, step
            return
        rate = (step - self._start) / max(moment - self._running, 1e-9)
        known = {"loss": self._loss, "validation nRMSE": self._validation}
        told = [f"{name} {value:.2e}" for name, value in known.items() if value is not None]
        numbers = "  ".join([*told, f"{rate:.1f} steps/s"])
        if self._console.is_terminal:
            self._bar.update(self._task, completed=step, numbers=numbers)
        elif moment - self._told >= self._every:
            self._told = moment
            left = (self._total - step) / max(rate, 1e-9)
            self._console.print(
                f"{self._stage} {step}/{self._total}  {numbers}  {left:.0f} s left", highlight=False, soft_wrap=True
            )


def log_end(
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


def is_logged(run: RunDirectory, stage: str, state: TrainState) -> bool:
    """Whether the end of the stage at this step was sent by an earlier start, as its record says (`told`).

    The record follows the sending, so that who is killed between the two, or could not send, sends it again.
    """
    return run.read()["stages"][stage].get("told") == int(state.step)


def was_delivered(writer: Writer) -> bool:
    """Of a closed writer: whether it has sent the end of the stage."""
    return writer.delivered("summary", "alert", "artifact")


def log_diverged(writer: Writer, run: RunDirectory, stage: str, error: DivergedError) -> None:
    """Send that the stage is lost."""
    writer.alert(f"{stage} has diverged", f"{run.path}: {error}", "ERROR")


def _artifact_name(name: str) -> str:
    """Of letters, digits, dashes, underscores and points, as W&B wants it, and not too long for it."""
    return re.sub(r"[^A-Za-z0-9._-]", "-", name)[-128:]
