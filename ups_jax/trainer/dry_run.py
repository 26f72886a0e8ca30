"""Cost of stages before they are trained: parameters, FLOPs and memory of the compiled step, and time of three steps.

Only missing data of built-in tasks is written.
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
from ups_jax.core.xla import compile_ahead, compiling, require_determinism
from ups_jax.data import Dataset, Mixture, open_mixture, windows_per_step
from ups_jax.optim.parameter_groups import parameter_table, render_table
from ups_jax.runs.best_weights import best_weights
from ups_jax.runs.checkpoint import Checkpoints, checkpoint_meta
from ups_jax.trainer.frozen_codec import check_latent_source, with_latents
from ups_jax.trainer.oom import batch_size_key, raise_on_oom
from ups_jax.trainer.timing import Trial, planned_length, trial
from ups_jax.training.build import build_joint_model, trains_on_latents

MISSING = "not reported by this backend"
_STEPS = 3


def dry_run(cfg: Config, stages: Sequence[str], console: Console, init_from: Path | None = None) -> None:
    """Print parameters, FLOPs, memory and time of each stage's training step, and test saving and restoring its state.

    Args:
        cfg: Configuration.
        stages: Names of the stages.
        console: Console to print to.
        init_from: Run whose codec made the latents, for training on latents.

    Raises:
        ConfigError: A step does not fit into device memory, or the configuration has an error.
        DivergedError: The loss of a step is not finite.
        CheckpointError: The restored state differs from the saved one.
    """
    require_determinism(cfg.deterministic)
    simulate.prepare(cfg)
    data = open_mixture(cfg)
    for stage in stages:
        check_latent_source(cfg, stage)
        weights = best_weights(init_from, stage) if init_from is not None and trains_on_latents(cfg, stage) else None
        dry_run_stage(cfg, stage, with_latents(cfg, stage, data, None, weights, init_from), console)


def dry_run_stage(cfg: Config, stage: str, data: Mixture, console: Console) -> None:
    """Print the cost of one stage on opened data; raises the errors of `dry_run`."""
    model = build_joint_model(cfg, data.tasks, stage)
    settings = getattr(cfg.stages, stage)
    refusal = ConfigError(
        f"{batch_size_key(stage)}={settings.batch_size}: the training step does not fit into device memory; lower "
        "it and raise accum_steps, which leaves the optimizer step unchanged (training would do this automatically)"
    )
    with compiling(cfg.training.compile), raise_on_oom(refusal), trial(cfg, stage, data, model) as step_trial:
        step, parameters = step_trial.train_step, jax.eval_shape(step_trial.new_state).params
        console.print(f"parameters  of {stage} on {data.name}", highlight=False)
        console.print(render_table(parameter_table(parameters, settings)))
        state = step_trial.new_state()
        costs: dict[str, str] = {} if cfg.training.compile else {"compiled in": "not compiled"}
        for task, batch in zip(data.tasks, islice(step_trial.batches, step_trial.task_count), strict=True):
            task_costs = step_costs(step, state, batch) if cfg.training.compile else {}
            costs |= {f"{name}, {task.name}" if task.siblings else name: value for name, value in task_costs.items()}
        state, seconds = time_steps(stage, step_trial, state)
        check_checkpoint(state, cfg, stage, data)
    loops = settings.accum_steps > 1 or cfg.training.rollout_horizon > 1 or cfg.training.pushforward > 1
    costs["windows per step"] = f"{windows_per_step(cfg, stage)} ({settings.accum_steps} x {settings.batch_size})"
    costs["seconds per step"] = ", ".join(f"{value:.4g}" for value in seconds)
    costs["training time"] = _estimate(cfg, stage, data, min(seconds))
    costs["checkpoint"] = "saved and restored, bit-identical"
    console.print(_two_columns(f"{stage}: one training step", costs))
    if loops and cfg.training.compile:
        console.print(
            "FLOPs and bytes count the body of a loop (over micro-batches or time steps) only once.",
            highlight=False,
            soft_wrap=True,
        )


def step_costs(step: Any, state: Any, batch: Any) -> dict[str, str]:
    """Return FLOPs, bytes accessed, peak memory and compilation time of a jitted step, as texts by name."""
    seconds = compile_ahead(step, state, batch)
    compiled = step.lower(state, batch).compile()
    counted, memory = compiled.cost_analysis() or {}, compiled.memory_analysis()
    return {
        "compiled in": f"{seconds:.3g} s",
        "FLOPs": _number(counted.get("flops")),
        "bytes accessed": _number(counted.get("bytes accessed")),
        "peak memory": MISSING if memory is None else f"{peak_bytes(memory) / 2**20:.4g} MiB",
    }


def peak_bytes(memory: Any) -> int:
    """Return the peak memory of a compiled step in bytes: arguments, temporaries, and results in new buffers."""
    arguments_and_results = memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
    return int(arguments_and_results + memory.temp_size_in_bytes)


def time_steps(stage: str, step_trial: Trial, state: Any) -> tuple[Any, list[float]]:
    """Run a few steps one by one and return the last state and the wall time per step of each call, in seconds.

    Batches are prepared before the clock starts. The first call is not counted, because it looks up the compiled
    program.

    Args:
        stage: Name of the stage.
        step_trial: Step and batches.
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


def _estimate(cfg: Config, stage: str, data: Mixture, seconds: float) -> str:
    """Return a text with the training time of the stage at this number of seconds per step, without validations."""
    budget, steps = getattr(cfg.stages, stage).max_seconds, planned_length(cfg, data, stage)
    if steps is None:
        return "none: the stage is disabled" if budget is None else f"{budget:.4g} s (stages.{stage}.max_seconds)"
    return f"about {steps * seconds:.3g} s ({steps} steps, without validations)"


def check_checkpoint(state: Any, cfg: Config, stage: str, data: Dataset | Mixture) -> None:
    """Raise CheckpointError if the state, saved to a temporary folder and restored, is not bit-identical."""
    with tempfile.TemporaryDirectory() as folder, Checkpoints(Path(folder) / stage) as checkpoints:
        checkpoints.save(state, checkpoint_meta(cfg, stage, data), validation=None)
        checkpoints.wait()
        restored = checkpoints.restore(int(state.step), state)
    pairs = zip(jax.tree.leaves(state), jax.tree.leaves(restored), strict=True)
    if not all(_is_bit_identical(saved, loaded) for saved, loaded in pairs):
        raise CheckpointError(
            f"the restored checkpoint of stage {stage} differs from the saved state; report this with the configuration"
        )


def _is_bit_identical(first: Any, second: Any) -> bool:
    """Return whether two arrays, or two random keys, have equal bytes."""
    if jax.dtypes.issubdtype(first.dtype, jax.dtypes.prng_key):
        first, second = jax.random.key_data(first), jax.random.key_data(second)
    return np.asarray(first).tobytes() == np.asarray(second).tobytes()


def _number(value: float | None) -> str:
    """Return a number as text, or `MISSING` for None."""
    return MISSING if value is None else f"{value:.4g}"


def _two_columns(title: str, values: dict[str, str]) -> Table:
    """Return a table of names and values."""
    table = Table(title=title, title_justify="left", show_header=False)
    for name, value in values.items():
        table.add_row(name, value)
    return table
