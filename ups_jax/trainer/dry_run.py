"""What stages would cost, before they are trained: parameters, the compiled step, and the time of three real steps.

Nothing is written but generated data, where the configuration's task has none yet.
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
from ups_jax.optim.parameter_groups import parameter_table, render
from ups_jax.runs.best_weights import best_weights
from ups_jax.runs.checkpoint import Checkpoints, checkpoint_meta
from ups_jax.trainer.frozen_codec import check_latent_source, with_latents
from ups_jax.trainer.oom import batch_size_key, raise_on_oom
from ups_jax.trainer.timing import Trial, planned_length, trial
from ups_jax.training.build import build_joint, holds_codec

MISSING = "not reported by this backend"
_STEPS = 3


def dry_run(cfg: Config, stages: Sequence[str], console: Console, init_from: Path | None = None) -> None:
    """Print the parameter table of each stage, FLOPs, bytes and peak memory of its compiled step, seconds of three
    steps and of the whole training, on a state that is saved, restored and thrown away. ConfigError where a step does
    not fit into memory, DivergedError where its loss is not finite. Latents are those of the codec of `init_from`."""
    require_determinism(cfg.deterministic)
    simulate.prepare(cfg)
    data = open_mixture(cfg)
    for stage in stages:
        check_latent_source(cfg, stage)
        weights = best_weights(init_from, stage) if init_from is not None and holds_codec(cfg, stage) else None
        dry_run_stage(cfg, stage, with_latents(cfg, stage, data, None, weights, init_from), console)


def dry_run_stage(cfg: Config, stage: str, data: Mixture, console: Console) -> None:
    model = build_joint(cfg, data.tasks, stage)
    settings = getattr(cfg.stages, stage)
    refusal = ConfigError(
        f"{batch_size_key(stage)}={settings.batch_size}: so many rows at a time do not fit into the device's memory; "
        "training would halve them until they do, a higher accum_steps instead makes the same step"
    )
    with compiling(cfg.training.compile), raise_on_oom(refusal), trial(cfg, stage, data, model) as tried:
        step, parameters = tried.train_step, jax.eval_shape(tried.new_state).params
        console.print(f"parameters  of {stage} on {data.name}", highlight=False)
        console.print(render(parameter_table(parameters, settings)))
        state = tried.new_state()
        costs: dict[str, str] = {} if cfg.training.compile else {"compiled in": "not compiled"}
        for task, batch in zip(data.tasks, islice(tried.batches, tried.task_count), strict=True):
            own = step_costs(step, state, batch) if cfg.training.compile else {}
            costs |= {f"{name}, {task.name}" if task.siblings else name: value for name, value in own.items()}
        state, seconds = time_steps(stage, tried, state)
        check_checkpoint(state, cfg, stage, data)
    loops = settings.accum_steps > 1 or cfg.training.rollout_horizon > 1 or cfg.training.pushforward > 1
    costs["windows a step"] = f"{windows_per_step(cfg, stage)} ({settings.accum_steps} x {settings.batch_size})"
    costs["seconds a step"] = ", ".join(f"{value:.4g}" for value in seconds)
    costs["training takes"] = _estimate(cfg, stage, data, min(seconds))
    costs["checkpoint"] = "saved and restored, bit for bit"
    console.print(_two_columns(f"{stage}: one training step", costs))
    if loops and cfg.training.compile:
        console.print(
            "FLOPs and bytes count the body of a loop (micro-batches, time steps) once.",
            highlight=False,
            soft_wrap=True,
        )


def step_costs(step: Any, state: Any, batch: Any) -> dict[str, str]:
    """What the compiler says of a jitted step, and how long it took to compile it."""
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
    """Arguments, results that do not reuse them, and temporaries, in bytes: all that a step holds at a time."""
    held = memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
    return int(held + memory.temp_size_in_bytes)


def time_steps(stage: str, tried: Trial, state: Any) -> tuple[Any, list[float]]:
    """Wall time of a step in each call alone, its batch ready, after one that is not counted: the first call looks for
    what was compiled."""
    seconds = []
    for _ in range(1 + _STEPS):
        batch = jax.block_until_ready(next(tried.batches))
        start = time.perf_counter()
        state, metrics = jax.block_until_ready(tried.train_step(state, batch))
        seconds.append((time.perf_counter() - start) / tried.steps_per_call)
        finite = np.isfinite(np.reshape(metrics["loss"], -1))
        if not finite.all():
            step = (len(seconds) - 1) * tried.steps_per_call + int(finite.argmin()) + 1
            raise DivergedError(
                f"the loss of {stage} is not finite at step {step}; lower stages.{stage}.optimizer.lr, or look "
                f"at the data with `{command('inspect')}`"
            )
    return state, seconds[1:]


def _estimate(cfg: Config, stage: str, data: Mixture, seconds: float) -> str:
    """How long the stage would train at so many seconds a step, without its validations."""
    budget, steps = getattr(cfg.stages, stage).max_seconds, planned_length(cfg, data, stage)
    if steps is None:
        return "nothing: it is off" if budget is None else f"{budget:.4g} s, as stages.{stage}.max_seconds says"
    return f"about {steps * seconds:.3g} s ({steps} steps, validations not counted)"


def check_checkpoint(state: Any, cfg: Config, stage: str, data: Dataset | Mixture) -> None:
    """CheckpointError where the state does not come back from a temporary folder as it was saved there."""
    with tempfile.TemporaryDirectory() as folder, Checkpoints(Path(folder) / stage) as checkpoints:
        checkpoints.save(state, checkpoint_meta(cfg, stage, data), validation=None)
        checkpoints.wait()
        restored = checkpoints.restore(int(state.step), state)
    pairs = zip(jax.tree.leaves(state), jax.tree.leaves(restored), strict=True)
    if not all(_same(one, other) for one, other in pairs):
        raise CheckpointError(
            f"a checkpoint of {stage} is not restored as it was saved; report this with the configuration"
        )


def _same(one: Any, other: Any) -> bool:
    if jax.dtypes.issubdtype(one.dtype, jax.dtypes.prng_key):
        one, other = jax.random.key_data(one), jax.random.key_data(other)
    return np.asarray(one).tobytes() == np.asarray(other).tobytes()


def _number(value: float | None) -> str:
    return MISSING if value is None else f"{value:.4g}"


def _two_columns(title: str, values: dict[str, str]) -> Table:
    table = Table(title=title, title_justify="left", show_header=False)
    for name, value in values.items():
        table.add_row(name, value)
    return table
