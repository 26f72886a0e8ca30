"""What a run prints before its first step: where it computes, what data it has, how long it will train."""

from __future__ import annotations

from typing import Any

import jax
from rich.console import Console

from ups_jax.config import Config
from ups_jax.data import Mixture, trained_on
from ups_jax.data.mixing import shares
from ups_jax.training.plan import Plan
from ups_jax.training.stages import stage_of


def say(console: Console, line: str) -> None:
    """Print a line as it is: not folded, no markup."""
    console.print(line, highlight=False, markup=False, soft_wrap=True)


def introduce(console: Console, cfg: Config, stage: str, data: Mixture) -> None:
    """Print the device, the data, and what there is to say of it."""
    device = jax.devices()[0]
    say(console, f"device      {device.device_kind} ({device.platform}, {jax.device_count()} in use)")
    if device.platform == "cpu":
        say(console, "            no accelerator was found: this runs on the CPU")
    for dataset in data.datasets:
        sizes, task = dataset.sizes, dataset.task
        given = (
            f"dt {task.dt:g}" if task.kind == "transient" else f"steady, given {', '.join(i.name for i in task.inputs)}"
        )
        say(
            console,
            f"data        {task.name}: {sizes['train']}/{sizes['val']}/{sizes['test']} trajectories, "
            f"{' x '.join(map(str, task.shape))} points, {given}, channels {', '.join(task.channels)}",
        )
    if cfg.diffusion.fold:
        (dataset,) = data.datasets
        count, whole = len(trained_on(dataset, cfg, stage)), dataset.sizes["train"]
        say(console, f"fold        {stage} is trained on {count} of the {whole}, diffusion.fold={cfg.diffusion.fold:g}")
    for note in (note for dataset in data.datasets for note in dataset.notes):
        say(console, f"note        {note}")
    if len(data.tasks) > 1:
        sizes = {dataset.task.name: dataset.sizes["train"] for dataset in data.datasets}
        parts = zip(sizes, shares(cfg.data.mixing, sizes), strict=True)
        told = ", ".join(f"{name} {100 * share:.3g} %" for name, share in parts)
        say(console, f"mixing      {cfg.data.mixing.method}: of the steps {told}")
        chosen = stage_of(stage).selected_by(cfg)
        say(console, f"selected    by the mean over the tasks of validation/{chosen}")


def tell_plan(console: Console, cfg: Config, stage: str, plan: Plan, planned: dict[str, Any]) -> None:
    """Print the steps of a stage; `planned` is what `plan_and_record` gives for the record."""
    settings = getattr(cfg.stages, stage)
    windows = f"{settings.accum_steps} x " * (settings.accum_steps > 1) + f"{settings.batch_size}"
    budget = planned.get("budget")
    within = ""
    if budget is not None:
        within = (
            f", {budget['max_seconds']:g} s at {1e3 * budget['seconds_per_step']:.3g} ms a step with its validation"
        )
    say(
        console,
        f"plan        {plan.total_steps} steps of {windows} windows "
        f"({plan.total_steps / plan.steps_per_epoch:.3g} epochs{within}), {settings.optimizer.name}, "
        f"{cfg.training.precision}",
    )
