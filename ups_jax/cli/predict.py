"""A trained run and given frames in; a file of predicted states, its pictures and its error out."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import cast

import h5py
import numpy as np
from jaxtyping import Float
from rich.console import Console

from ups_jax.config import Config, of_task
from ups_jax.core.commands import command
from ups_jax.core.errors import ConfigError, DivergedError, Stopped
from ups_jax.core.files import version
from ups_jax.core.locks import lock_file
from ups_jax.core.task import Task
from ups_jax.core.terminal import print_line
from ups_jax.data.sources import open_file
from ups_jax.data.sources.base import read_trajectories
from ups_jax.evaluation.plots.films import write_images
from ups_jax.inference.chunked_rollout import ChunkedRollout
from ups_jax.inference.corrected import load_corrector, stage_sampler
from ups_jax.inference.initial_state import InitialState, read_initial_state
from ups_jax.inference.inputs import coefficient_arrays, point_mask_of
from ups_jax.inference.state_file import PointStateFile, StateFile, channel_datasets
from ups_jax.inference.trained_model import TrainedModel, load_task_run
from ups_jax.metrics.aggregate import rollout_section, score_rows
from ups_jax.metrics.ensemble import ensemble_summary, ensemble_table
from ups_jax.models.corrector import Corrector
from ups_jax.rollout.correction import Correction, beyond, both, every
from ups_jax.rollout.flow_sampler import corrected, expected, expected_error
from ups_jax.training.build import build_model


@dataclass(frozen=True, kw_only=True)
class RolloutRequest:
    """What a rollout should be. `rows` are the samples at a time, None for the run's `evaluation.batch_size`. Of
    several `members` each has samples of the corrector's errors, drawn by `seed`; a single one has the expected error.

    `corrector` is the stage whose result corrects every `correct_every`-th step, None for the operator alone. With
    `correct_above` it corrects of these only where it expects an error above that, in standard deviations of the field.
    `sampler_steps` are those of the members' sampler, None for its own number: one of a distilled corrector.
    `task` names one of several that the run was trained on.
    """

    input: str
    steps: int
    output: Path
    params: Mapping[str, float]
    dt: float | None = None
    members: int = 1
    seed: int = 0
    corrector: str | None = None
    correct_every: int = 1
    correct_above: float | None = None
    sampler_steps: int | None = None
    task: str | None = None
    limit: int | None = None
    batch_size: int | None = None
    images: Sequence[str] = ()
    overwrite: bool = False


def rollout_run(
    path: Path, cfg: Config, wanted: RolloutRequest, *, console: Console, correction: Correction | None = None
) -> None:
    """Write the `steps` frames after the given ones to `output` and tell what was done; `cfg` says where data lies.

    DivergedError where a frame is not finite, after the finite ones have been kept; Stopped where it is interrupted;
    ConfigError where another process writes there.
    """
    run = load_task_run(path, wanted.task)
    if run.task.kind == "steady":
        raise ConfigError(
            f"{path}: solves the steady task {run.task.name}, which has no time to roll out; use load_run(..).step or "
            f"`{command('export')}`"
        )
    if correction is None and wanted.corrector is not None:
        correction = _correction(run, wanted.corrector, wanted)
    if wanted.correct_above is not None and correction is None:
        raise ConfigError("--correct-above: without a corrector there is none to hold back; name one with --corrector")
    if wanted.members > 1 and correction is None:
        raise ConfigError(
            f"--members {wanted.members}: without a corrector all members are equal; name one with --corrector, or "
            "leave it out"
        )
    if wanted.sampler_steps is not None and wanted.members == 1:
        raise ConfigError("--sampler-steps: one rollout takes out the expected error, drawn are --members 2 and more")
    if run.task.scattered and wanted.images:
        raise ConfigError(f"--images: task {run.task.name} is of points, there are pictures and films of grids only")
    run.check_time_step(run.task.dt if wanted.dt is None else wanted.dt)
    start = read_initial_state(wanted.input, run.task, run.model.context, of_task(cfg, run.task.name)).first(
        wanted.limit
    )
    start, cond, mask = _conditioned(start, run.task, wanted.params, console)
    stepper = ChunkedRollout(
        model=run.model, weights=run.weights, correction=correction, members=wanted.members, seed=wanted.seed
    )
    attributes = _attributes(run, start, wanted)
    kind = PointStateFile if run.task.scattered else StateFile
    with lock_file(wanted.output, "wait for it, or give another --output"):
        file = kind(wanted.output, start, run.task, wanted.steps, wanted.members, overwrite=wanted.overwrite)
        print_line(console, f"run         {path}, step {run.checkpoint.step} of {run.stage}")
        print_line(console, f"input       {start.name}")
        rows = wanted.batch_size or cfg.evaluation.batch_size
        done, finite = 0, wanted.steps
        try:
            for piece in stepper.iter_chunks(start.fields, cond, mask, wanted.steps, rows, start.point_arrays):
                if piece.first >= finite:
                    break
                good = np.isfinite(piece.frames).reshape(*piece.frames.shape[:3], -1).all((0, 1, 3))
                if not good.all():
                    finite = min(finite, piece.first + int(good.argmin()))
                file.write(piece.rows, piece.first, piece.frames)
                # Every sample has the frames before this piece's.
                done = piece.first
        except KeyboardInterrupt:
            file.close_partial(done, attributes | {"status": f"stopped after {done} of {wanted.steps} frames"})
            raise Stopped(
                f"stopped: {file.partial} holds the first {done} of {wanted.steps} frames; the same command starts anew"
            ) from None
        whole = finite == wanted.steps
        status = "complete" if whole else f"diverged: frame {finite + 1} is not finite"
        file.finish(finite, attributes | {"status": status})
        print_line(console, f"output      {wanted.output}")
        if start.truth is not None and finite:
            _tell_error(wanted.output, run.task, start, wanted.members, console)
        truth = None if start.truth is None else np.concatenate([start.fields, start.truth], axis=1)[0]
        for image in write_images(wanted.output, run.task, wanted.images, truth):
            print_line(console, f"image       {image}")
        if not whole:
            raise DivergedError(
                f"{wanted.output}: frame {finite + 1} of {wanted.steps} is not finite; the {finite} before it were kept"
            )


def _correction(run: TrainedModel, stage: str, wanted: RolloutRequest) -> Correction:
    """The correction by a stage of the run; CheckpointError, with the command that makes it, where there is none."""
    trained = load_corrector(run.path, stage)
    model = cast(Corrector, build_model(trained.config, run.task, stage))
    if trained.config.diffusion.objective == "regression":
        for option, given in {"sampler-steps": wanted.sampler_steps is not None, "members": wanted.members > 1}.items():
            if given:
                raise ConfigError(f"--{option}: this corrector is a regression, which draws nothing; leave it out")
    when = every(wanted.correct_every)
    if wanted.correct_above is not None:
        when = both(when, beyond(partial(expected_error, model, trained.weights), wanted.correct_above))
    sampler = stage_sampler(stage, wanted.sampler_steps) if wanted.members > 1 else expected
    held = trained.config.diffusion.fixed_noise
    return Correction(corrector=corrected(model, trained.weights, sampler), when=when, held=held)


def _conditioned(
    start: InitialState, task: Task, params: Mapping[str, float], console: Console
) -> tuple[InitialState, np.ndarray, np.ndarray]:
    """The start with the coefficients that are used: those of the input, and before them those of `params`."""
    count = len(start.fields)
    given = dict(start.coefficients) | {name: np.full(count, value) for name, value in params.items()}
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        cond, mask = coefficient_arrays(task, given, count)
    for warning in told:
        print_line(console, f"note        {warning.message}")
    return replace(start, coefficients=given), np.asarray(cond), mask


def _attributes(run: TrainedModel, start: InitialState, wanted: RolloutRequest) -> dict[str, str | int | float]:
    return {
        "run": str(run.path),
        "checkpoint": f"checkpoints/{run.stage}/{run.checkpoint.step}",
        "checkpoint_step": run.checkpoint.step,
        "checkpoint_digest": run.digest,
        "task": run.task.name,
        "channels": ", ".join(run.task.channels),
        "params": json.dumps({name: np.unique(values).tolist()[:16] for name, values in start.coefficients.items()}),
        "dt": run.task.dt,
        "given_frames": start.fields.shape[1],
        "members": wanted.members,
        "corrector": _named(wanted),
        "seed": wanted.seed,
        "input": start.name,
        "version": f"ups_jax {version('ups_jax')}",
    }


def _named(wanted: RolloutRequest) -> str:
    """Which corrector acts when, in words."""
    if wanted.corrector is None:
        return "none"
    above = "" if wanted.correct_above is None else f" above {wanted.correct_above:g}"
    steps = "" if wanted.sampler_steps is None else f", {wanted.sampler_steps} sampler steps"
    return f"{wanted.corrector} every {wanted.correct_every}{above}{steps}"


def _tell_error(output: Path, task: Task, start: InitialState, members: int, console: Console) -> None:
    """The error of the only sample against its truth, as far as that goes."""
    if start.truth is None:
        return
    given, truth = start.fields.shape[1], start.truth[0]
    fields = (_at_points if task.scattered else _on_grid)(output, task)[:, given : given + len(truth)]
    known, there = truth[None, : fields.shape[1]], point_mask_of(start, slice(1))
    values = rollout_section(score_rows(fields.mean(0, keepdims=True), known, task, 1, there), task.dt)
    of = "mean of the members" if members > 1 else "prediction"
    lines = {
        "nrmse": f"{values['nrmse']:.3g} of the {of}, mean of {fields.shape[1]} frames",
        "last": f"{values['nrmse_by_time'][-1]:.3g} nrmse of frame {fields.shape[1]}",
        "correlated": f"for {values['correlation_time']:.3g} of {fields.shape[1] * task.dt:.3g} time units",
    }
    if members > 1:
        summary = ensemble_summary(ensemble_table(fields[:, None], known, task.dt))
        lines |= {name: f"{value:.3g}" for name, value in summary.items()}
    for name, text in lines.items():
        print_line(console, f"{name:<11} {text}")


def _on_grid(output: Path, task: Task) -> Float[np.ndarray, "r t *s c"]:
    with h5py.File(output, "r", locking=False) as file:
        return np.stack([file[name][:] for name in channel_datasets(task)], axis=-1)


def _at_points(output: Path, task: Task) -> Float[np.ndarray, "r t p c"]:
    source = open_file(output, "transient", task.channels)
    return read_trajectories(source, np.arange(source.trajectories))
