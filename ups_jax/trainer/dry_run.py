"""Cost of stages before they are trained: parameters, FLOPs and memory of the compiled step, and time of three steps.

A dry run writes no files except the missing data of built-in tasks.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import jax
import numpy as np
from rich.console import Console
from rich.table import Table

from ups_jax import simulate
from ups_jax.config import Config
from ups_jax.core.commands import command
from ups_jax.core.errors import CheckpointError, ConfigError, DivergedError
from ups_jax.core.terminal import print_line
from ups_jax.core.xla import compile_ahead, jit_context, require_determinism
from ups_jax.data import Dataset, Mixture, open_mixture, windows_per_step
from ups_jax.optim.parameter_groups import parameter_table, render_table
from ups_jax.runs.best_weights import best_weights
from ups_jax.runs.checkpoint import Checkpoints, checkpoint_meta
from ups_jax.trainer.console import patch_notes
from ups_jax.trainer.frozen_codec import check_latent_source, with_stored_latents
from ups_jax.trainer.oom import batch_size_key, raise_on_oom
from ups_jax.trainer.preflight import with_recorded
from ups_jax.trainer.timing import StepTrial, configured_steps, open_step_trial
from ups_jax.training.build import build_joint_model, trains_on_latents
from ups_jax.training.state import TrainState

MISSING = "not reported by this backend"
_STEPS = 3


def dry_run(cfg: Config, stages: Sequence[str], console: Console, init_from: Path | None = None) -> None:
    """Print parameters, FLOPs, memory and time of the train step of each stage; test saving and restoring its state.

    Args:
        init_from: Run whose codec encoded the stored latents, for stages that are trained on latents.

    Raises:
        ConfigError: A step does not fit into device memory, or the configuration has an error.
        DivergedError: The loss of a step is not finite.
        CheckpointError: The restored state differs from the saved one.
    """
    require_determinism(cfg.deterministic)
    simulate.generate_missing(cfg)
    data = open_mixture(cfg)
    for stage in stages:
        check_latent_source(cfg, stage)
        weights = best_weights(init_from, stage) if init_from is not None and trains_on_latents(cfg, stage) else None
        stage_data = with_recorded(data, () if weights is None else weights.tasks, "partition")
        dry_run_stage(cfg, stage, with_stored_latents(cfg, stage, stage_data, None, weights, init_from), console)


def dry_run_stage(cfg: Config, stage: str, data: Mixture, console: Console) -> None:
    """Print the cost of one stage whose data is open; the errors are the same as those of `dry_run`."""
    model = build_joint_model(cfg, data.tasks, stage)
    settings = getattr(cfg.stages, stage)
    too_large = ConfigError(
        f"{batch_size_key(stage)}={settings.batch_size}: the training step does not fit into device memory (a training "
        "would split it into micro-batches automatically); for a dry run, lower batch_size and raise accum_steps by "
        "the same factor"
    )
    with (
        jit_context(cfg.training.compile),
        raise_on_oom(too_large),
        open_step_trial(cfg, stage, data, model) as step_trial,
    ):
        step, parameters = step_trial.train_step, jax.eval_shape(step_trial.new_state).params
        for note in patch_notes(cfg, data):
            print_line(console, f"note        {note}")
        console.print(f"parameters of stage {stage} on {data.name}", highlight=False)
        console.print(render_table(parameter_table(parameters, settings)))
        state = step_trial.new_state()
        costs: dict[str, str] = {} if cfg.training.compile else {"compiled in": "not compiled"}
        for task, batch in zip(data.tasks, islice(step_trial.batches, step_trial.task_count), strict=True):
            task_costs = step_costs(step, state, batch) if cfg.training.compile else {}
            costs |= {f"{name}, {task.name}" if task.siblings else name: value for name, value in task_costs.items()}
        state, seconds = time_steps(stage, step_trial, state)
        check_checkpoint_round_trip(state, cfg, stage, data)
    loops = settings.accum_steps > 1 or cfg.training.rollout_horizon > 1 or cfg.training.pushforward > 1
    costs["windows per step"] = f"{windows_per_step(cfg, stage)} ({settings.accum_steps} x {settings.batch_size})"
    costs["seconds per step"] = ", ".join(f"{value:.4g}" for value in seconds)
    costs["training time"] = _training_time_text(cfg, stage, data, min(seconds))
    costs["checkpoint"] = "saved and restored, bit-identical"
    console.print(_two_column_table(f"{stage}: one training step", costs))
    if loops and cfg.training.compile:
        console.print(
            "FLOPs and bytes count the body of a loop (over micro-batches or time steps) only once.",
            highlight=False,
            soft_wrap=True,
        )


def step_costs(jitted_step: Any, state: Any, batch: Any) -> dict[str, str]:
    """Compile a step and return its compilation time, FLOPs, bytes accessed and peak memory as texts with units."""
    seconds = compile_ahead(jitted_step, state, batch)
    compiled = jitted_step.lower(state, batch).compile()
    counted, memory = compiled.cost_analysis() or {}, compiled.memory_analysis()
    return {
        "compiled in": f"{seconds:.3g} s",
        "FLOPs": _number_or_missing(counted.get("flops")),
        "bytes accessed": _number_or_missing(counted.get("bytes accessed")),
        "peak memory": MISSING if memory is None else f"{peak_bytes(memory) / 2**20:.4g} MiB",
    }


def peak_bytes(memory_analysis: Any) -> int:
    """Return the peak memory of a program from jax's `memory_analysis()`; results in donated arguments count once."""
    sizes = memory_analysis
    arguments_and_results = sizes.argument_size_in_bytes + sizes.output_size_in_bytes - sizes.alias_size_in_bytes
    return int(arguments_and_results + sizes.temp_size_in_bytes)


def time_steps(stage: str, step_trial: StepTrial, state: TrainState) -> tuple[TrainState, list[float]]:
    """Call the compiled train step a few times; return the last state, and the wall seconds per step in each call.

    One call can run several steps. The time to prepare batches is not included. An additional first call, which looks
    up the compiled program, is not in the result.

    Args:
        state: First state; its buffers are donated.

    Raises:
        DivergedError: A loss is not finite.
    """
    seconds = []
    for _ in range(1 + _STEPS):
        batch = jax.block_until_ready(next(step_trial.batches))
        start = time.perf_counter()
        state, metrics = jax.block_until_ready(step_trial.train_step(state, batch))
        seconds.append((time.perf_counter() - start) / step_trial.steps_per_call)
        finite = np.isfinite(np.reshape(metrics["loss"], -1))
        if not finite.all():
            step = (len(seconds) - 1) * step_trial.steps_per_call + int(finite.argmin()) + 1
            raise DivergedError(
                f"the loss of {stage} is not finite at step {step}; lower stages.{stage}.optimizer.lr, or "
                f"check the data with `{command('inspect')}`"
            )
    return state, seconds[1:]


def _training_time_text(cfg: Config, stage: str, data: Mixture, seconds_per_step: float) -> str:
    """Return a text with the estimated training time of the stage without its validations."""
    budget, steps = getattr(cfg.stages, stage).max_seconds, configured_steps(cfg, data, stage)
    if steps is None:
        return "none: the stage is disabled" if budget is None else f"{budget:.4g} s (stages.{stage}.max_seconds)"
    return f"about {steps * seconds_per_step:.3g} s ({steps} steps, without validations)"


def check_checkpoint_round_trip(state: Any, cfg: Config, stage: str, data: Dataset | Mixture) -> None:
    """Save the state to a temporary folder and restore it; raise CheckpointError if the restored state differs."""
    with tempfile.TemporaryDirectory() as folder, Checkpoints(Path(folder) / stage) as checkpoints:
        checkpoints.save(state, checkpoint_meta(cfg, stage, data), validation=None)
        checkpoints.wait()
        restored = checkpoints.restore(int(state.step), state)
    pairs = zip(jax.tree.leaves(state), jax.tree.leaves(restored), strict=True)
    if not all(_is_bit_identical(saved, loaded) for saved, loaded in pairs):
        raise CheckpointError(
            f"the restored checkpoint of stage {stage} differs from the saved state, which is a bug in ups_jax; report "
            "this bug and attach the configuration"
        )


def _is_bit_identical(first: Any, second: Any) -> bool:
    """Return whether two arrays, or two random keys, have equal bytes."""
    if jax.dtypes.issubdtype(first.dtype, jax.dtypes.prng_key):
        first, second = jax.random.key_data(first), jax.random.key_data(second)
    return np.asarray(first).tobytes() == np.asarray(second).tobytes()


def _number_or_missing(value: float | None) -> str:
    """Return a number as text, or the text `MISSING` for None."""
    return MISSING if value is None else f"{value:.4g}"


def _two_column_table(title: str, values: dict[str, str]) -> Table:
    """Return a table whose rows have a name and a value."""
    table = Table(title=title, title_justify="left", show_header=False)
    for name, value in values.items():
        table.add_row(name, value)
    return table
