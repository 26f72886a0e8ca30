"""Console output of a training (device, data, plan, progress), and the metric log's entries at the end of a stage."""

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
from ups_jax.data import Mixture, stage_trajectory_ids
from ups_jax.data.mixture import task_shares
from ups_jax.models.patches import grid_patches, nearest_divided_shape, task_patches
from ups_jax.runs.checkpoint import Checkpoints
from ups_jax.runs.directory import RunDirectory
from ups_jax.tracking import Writer
from ups_jax.training.run_length import Plan
from ups_jax.training.stages import stage_spec
from ups_jax.training.state import TrainState

# Cost of a step, relative to one on the nearest grid that the patches divide, above which a note is printed.
_COST_RATIO = 1.15


def print_setup(console: Console, cfg: Config, stage: str, data: Mixture) -> None:
    """Print the device and the data of each task; for several tasks, also the share of steps that each task gets."""
    device = jax.devices()[0]
    print_line(console, f"device      {device.device_kind} ({device.platform}, {jax.device_count()} in use)")
    if device.platform == "cpu":
        print_line(console, "            no accelerator was found: training runs on the CPU")
    for dataset in data.datasets:
        sizes, task = dataset.split_sizes, dataset.task
        inputs = ", ".join(item.name for item in task.inputs)
        kind = f"dt {task.dt:g}" if task.kind == "transient" else f"steady, inputs {inputs}"
        print_line(
            console,
            f"data        {task.name}: {sizes['train']}/{sizes['val']}/{sizes['test']} train/val/test trajectories, "
            f"{' x '.join(map(str, task.shape))} points, {kind}, channels {', '.join(task.channels)}",
        )
    if cfg.diffusion.fold:
        (dataset,) = data.datasets
        count, total = len(stage_trajectory_ids(dataset, cfg, stage)), dataset.split_sizes["train"]
        print_line(
            console,
            f"fold        stage {stage} is trained on {count} of {total} training trajectories "
            f"(diffusion.fold={cfg.diffusion.fold:g})",
        )
    for note in [*(note for dataset in data.datasets for note in dataset.notes), *patch_notes(cfg, data)]:
        print_line(console, f"note        {note}")
    if len(data.tasks) > 1:
        sizes = {dataset.task.name: dataset.split_sizes["train"] for dataset in data.datasets}
        shares = zip(sizes, task_shares(cfg.data.mixing, sizes), strict=True)
        listed = ", ".join(f"{name} {100 * share:.3g} %" for name, share in shares)
        print_line(console, f"mixing      {cfg.data.mixing.method}, share of the steps: {listed}")
        metric = stage_spec(stage).selection_metric(cfg)
        print_line(console, f"selection   best checkpoint: lowest mean of validation/{metric} over the tasks")


def patch_notes(cfg: Config, data: Mixture) -> list[str]:
    """Return a note for each grid on which a step costs much more than on the nearest grid that the patches divide.

    The cost is proportional to the number of tokens, which has one patch more along an axis that is not divided.
    """
    notes, patch_size = [], cfg.latent.patch_size
    for task in (task for task in data.tasks if not task.scattered):
        patches, nearest = task_patches(task, cfg.latent), nearest_divided_shape(task.shape, patch_size)
        ratio = math.prod(patches.counts) / math.prod(grid_patches(nearest, task.periodic, patch_size).counts)
        if ratio > _COST_RATIO:
            points, divided, counts = (" x ".join(map(str, item)) for item in (task.shape, nearest, patches.counts))
            notes.append(
                f"{task.name}: the patches of latent.patch_size={patch_size} do not divide {points} points; a step "
                f"has {counts} tokens and costs about {ratio:.3g} times one on {divided} points. Data on such a grid, "
                "or another patch size, costs less"
            )
    return notes


def print_plan(console: Console, cfg: Config, stage: str, plan: Plan, record_entries: dict[str, Any]) -> None:
    """Print the number of steps, batch size, optimizer and precision of a stage.

    Args:
        record_entries: Entries from `plan_and_record_entries`; with `budget` if the length is given in seconds.
    """
    settings = getattr(cfg.stages, stage)
    windows = f"{settings.accum_steps} x " * (settings.accum_steps > 1) + f"{settings.batch_size}"
    budget = record_entries.get("budget")
    duration = ""
    if budget is not None:
        milliseconds = 1e3 * budget["seconds_per_step"]
        duration = f", {budget['max_seconds']:g} s at {milliseconds:.3g} ms per step including validation"
    print_line(
        console,
        f"plan        {plan.total_steps} steps of {windows} windows "
        f"({plan.total_steps / plan.steps_per_epoch:.3g} epochs{duration}), {settings.optimizer.name}, "
        f"{cfg.training.precision}",
    )


class TrainingProgress:
    """Progress display of a stage: loss, validation nRMSE, steps per second and remaining time.

    A terminal shows a progress bar; any other output gets a line every `every_seconds` seconds.

    Args:
        total_steps: Last step of the stage.
        start_step: Step at which this process starts.
    """

    def __init__(self, console: Console, stage: str, total_steps: int, start_step: int, every_seconds: float) -> None:
        self._console = console
        self._stage = stage
        self._total = total_steps
        self._start = start_step
        self._every = every_seconds
        self._loss: float | None = None
        self._validation: float | None = None
        self._printed_at = time.monotonic()
        self._newest = start_step
        # Rates are measured from the second step on, because the first includes compilation.
        self._timed_since: float | None = None
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[numbers]}"),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self._task = self._bar.add_task(stage, total=total_steps, completed=start_step, numbers="")

    def __enter__(self) -> TrainingProgress:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    @property
    def seconds_per_step(self) -> float | None:
        """Wall time per step including validation and saves, without compilation; None before the second step."""
        if self._timed_since is None or self._newest == self._start:
            return None
        return (time.monotonic() - self._timed_since) / (self._newest - self._start)

    def set_loss(self, value: float) -> None:
        """Store the newest training loss, which the next call of `show_step` displays."""
        self._loss = value

    def set_validation(self, value: float) -> None:
        """Store the newest validation nRMSE, which the next call of `show_step` displays."""
        self._validation = value

    def show_step(self, step: int) -> None:
        """Move the bar to the newest dispatched step, or print a line if the last one is `every_seconds` old."""
        moment = time.monotonic()
        self._newest = step
        if self._timed_since is None:
            self._timed_since, self._start = moment, step
            return
        rate = (step - self._start) / max(moment - self._timed_since, 1e-9)
        values = {"loss": self._loss, "validation nRMSE": self._validation}
        shown = [f"{name} {value:.2e}" for name, value in values.items() if value is not None]
        numbers = "  ".join([*shown, f"{rate:.1f} steps/s"])
        if self._console.is_terminal:
            self._bar.update(self._task, completed=step, numbers=numbers)
        elif moment - self._printed_at >= self._every:
            self._printed_at = moment
            remaining = (self._total - step) / max(rate, 1e-9)
            self._console.print(
                f"{self._stage} {step}/{self._total}  {numbers}  {remaining:.0f} s left",
                highlight=False,
                soft_wrap=True,
            )


def log_end(
    writer: Writer, config: WandbConfig, run: RunDirectory, stage: str, checkpoints: Checkpoints, state: TrainState
) -> None:
    """Log the end of a stage: the result, an alert and, if uploads are enabled, the best checkpoint.

    Args:
        config: Settings of W&B; `upload_checkpoints` enables the upload.
        state: State after the last step of the stage.
    """
    best, steps = checkpoints.best_step(), int(state.step)
    # From the checkpoint on disk: the monitor's best value may be of a checkpoint that was damaged.
    best_metric = None if best is None else checkpoints.validation_metric(best)
    value = math.inf if best_metric is None else best_metric
    result = {"steps": steps, "best_step": best, "best_metric": best_metric}
    writer.summary({"training": {stage: result}})
    writer.alert(f"{stage} has ended", f"{run.path}: {steps} steps, best validation {value:.4g} at step {best}")
    if best is not None and config.upload_checkpoints:
        writer.artifact(
            checkpoints.directory / str(best),
            _valid_artifact_name(f"{run.path.resolve().name}-{stage}"),
            kind="model",
            labels=("best", f"step-{best}"),
            metadata=result | {"stage": stage, "step": best},
        )


def is_end_logged(run: RunDirectory, stage: str, state: TrainState) -> bool:
    """Return whether run.json records, under the key `told`, that the stage's end at the step of `state` was logged.

    The key is written after delivery. If the run is killed before, or delivery fails, a resume logs the end again.
    """
    return run.read_record()["stages"][stage].get("told") == int(state.step)


def was_end_delivered(writer: Writer) -> bool:
    """Return whether a closed writer has delivered all entries that `log_end` writes."""
    return writer.has_delivered("summary", "alert", "artifact")


def log_diverged(writer: Writer, run: RunDirectory, stage: str, error: DivergedError) -> None:
    """Send an alert through the metric writer that the stage has diverged."""
    writer.alert(f"{stage} has diverged", f"{run.path}: {error}", "ERROR")


def _valid_artifact_name(name: str) -> str:
    """Replace the characters that W&B forbids in a name, and keep the last 128 characters, the longest allowed name."""
    return re.sub(r"[^A-Za-z0-9._-]", "-", name)[-128:]
