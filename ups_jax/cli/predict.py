"""Prediction of future states with a trained run, written to an HDF5 file; images and the error are optional."""

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

from ups_jax.config import Config, restrict_to_task
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
from ups_jax.inference.inputs import coefficient_arrays, select_point_mask
from ups_jax.inference.state_file import PointStateFile, StateFile, channel_dataset_names
from ups_jax.inference.trained_model import TrainedModel, load_task_model
from ups_jax.metrics.aggregate import rollout_section, score_rows
from ups_jax.metrics.ensemble import ensemble_summary, ensemble_table
from ups_jax.models.corrector import Corrector
from ups_jax.rollout.correction import Correction, above, every_n, logical_and
from ups_jax.rollout.flow_sampler import mean_error, mean_error_rms, step_corrector
from ups_jax.training.build import build_model


@dataclass(frozen=True, kw_only=True)
class RolloutRequest:
    """Options of a rollout.

    Attributes:
        input: File of initial frames, or `test:N` for the test trajectory with index N.
        steps: Number of frames to predict.
        output: HDF5 file to write.
        params: PDE coefficients by name; they replace coefficients of the input.
        dt: Time between the initial frames, which must equal the time step of the run; None skips this check.
        members: Ensemble size. With 1, the corrector subtracts the mean of its predicted error, otherwise each member
            a random sample of it.
        seed: Random seed of the ensemble.
        corrector: Stage of the run that corrects the operator's predictions; None for no correction.
        correct_every: N corrects only every N-th step.
        correct_above: Correct only samples with an expected RMS error above this number of standard deviations.
        sampler_steps: Sampler steps for each ensemble member; None for the default of the corrector.
        task: Task to predict, if the run was trained on several.
        limit: Maximum number of samples (initial states) to read from the input.
        batch_size: Samples per batch; None for `evaluation.batch_size` of the run.
        images: Formats of images and films, such as `png` and `mp4`.
        overwrite: Whether to replace an existing output.
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


def write_rollout(
    path: Path, cfg: Config, request: RolloutRequest, *, console: Console, correction: Correction | None = None
) -> None:
    """Predict frames with a trained run, write them to a file, and print a summary, with the error if the truth exists.

    Args:
        path: Run directory.
        cfg: Configuration with the location of the data.
        correction: Correction of the operator's predictions, in place of the one that `request` selects.

    Raises:
        ConfigError: The options do not fit the run, or another process is writing the output.
        DivergedError: A frame is not finite; the finite frames before it were written.
        Stopped: The rollout was interrupted; the completed frames were written.
    """
    run = load_task_model(path, request.task)
    if run.task.kind == "steady":
        raise ConfigError(
            f"{path}: the task {run.task.name} is steady and has no rollout in time; use load_run(...).step or "
            f"`{command('export')}`"
        )
    if correction is None and request.corrector is not None:
        correction = _load_correction(run, request.corrector, request)
    if request.correct_above is not None and correction is None:
        raise ConfigError("--correct-above: requires a corrector; select one with --corrector")
    if request.members > 1 and correction is None:
        raise ConfigError(
            f"--members {request.members}: without a corrector all members are equal; select one with --corrector, or "
            "remove --members"
        )
    if request.sampler_steps is not None and request.members == 1:
        raise ConfigError(
            "--sampler-steps: applies to ensembles only; set --members to 2 or more, or remove --sampler-steps"
        )
    if run.task.scattered and request.images:
        raise ConfigError(
            f"--images: the task {run.task.name} is on scattered points, but images need a grid; remove --images"
        )
    run.check_time_step(run.task.dt if request.dt is None else request.dt)
    start = read_initial_state(
        request.input, run.task, run.model.context, restrict_to_task(cfg, run.task.name)
    ).first_samples(request.limit)
    start = replace(start, coefficients=_merge_coefficients(start, request.params))
    cond, mask = _coefficient_values_and_mask(start, run.task, console)
    stepper = ChunkedRollout(
        model=run.model, weights=run.weights, correction=correction, members=request.members, seed=request.seed
    )
    attributes = _output_attributes(run, start, request)
    file_class = PointStateFile if run.task.scattered else StateFile
    with lock_file(request.output, "wait until it ends, or give another --output"):
        file = file_class(request.output, start, run.task, request.steps, request.members, overwrite=request.overwrite)
        print_line(console, f"run         {path}, step {run.checkpoint.step} of {run.stage}")
        print_line(console, f"input       {start.name}")
        batch_size = request.batch_size or cfg.evaluation.batch_size
        done, finite = 0, request.steps
        try:
            for chunk in stepper.iter_chunks(start.fields, cond, mask, request.steps, batch_size, start.point_arrays):
                if chunk.first_frame >= finite:
                    break
                good = np.isfinite(chunk.frames).reshape(*chunk.frames.shape[:3], -1).all((0, 1, 3))
                if not good.all():
                    finite = min(finite, chunk.first_frame + int(good.argmin()))
                file.write(chunk.rows, chunk.first_frame, chunk.frames)
                # All samples have the frames before this chunk.
                done = chunk.first_frame
        except KeyboardInterrupt:
            file.close_partial(done, attributes | {"status": f"stopped after {done} of {request.steps} frames"})
            raise Stopped(
                f"stopped: {file.partial} holds the first {done} of {request.steps} frames; repeat the command to "
                "start again from the first frame"
            ) from None
        is_complete = finite == request.steps
        status = "complete" if is_complete else f"diverged: frame {finite + 1} is not finite"
        file.finish(finite, attributes | {"status": status})
        print_line(console, f"output      {request.output}")
        if start.truth is not None and finite:
            _print_error(request.output, run.task, start, request.members, console)
        truth = None if start.truth is None else np.concatenate([start.fields, start.truth], axis=1)[0]
        for image in write_images(request.output, run.task, request.images, truth):
            print_line(console, f"image       {image}")
        if not is_complete:
            raise DivergedError(
                f"{request.output}: frame {finite + 1} of {request.steps} is not finite; the {finite} frames "
                "before it were written"
            )


def _load_correction(run: TrainedModel, stage: str, request: RolloutRequest) -> Correction:
    """Return the correction by the corrector that `stage` trains. Raise CheckpointError if it is not trained yet."""
    trained = load_corrector(run.path, stage)
    model = cast(Corrector, build_model(trained.config, run.task, stage))
    if trained.config.diffusion.objective == "regression":
        for option, is_set in {
            "sampler-steps": request.sampler_steps is not None,
            "members": request.members > 1,
        }.items():
            if is_set:
                raise ConfigError(
                    f"--{option}: the corrector was trained by regression and cannot draw samples; remove the option"
                )
    when = every_n(request.correct_every)
    if request.correct_above is not None:
        when = logical_and(when, above(partial(mean_error_rms, model, trained.weights), request.correct_above))
    sampler = stage_sampler(stage, request.sampler_steps) if request.members > 1 else mean_error
    fixed_noise = trained.config.diffusion.fixed_noise
    return Correction(corrector=step_corrector(model, trained.weights, sampler), when=when, fixed_noise=fixed_noise)


def _merge_coefficients(start: InitialState, params: Mapping[str, float]) -> dict[str, np.ndarray]:
    """Return the PDE coefficients of all samples by name; values in `params` replace those of the initial state."""
    return dict(start.coefficients) | {name: np.full(len(start.fields), value) for name, value in params.items()}


def _coefficient_values_and_mask(start: InitialState, task: Task, console: Console) -> tuple[np.ndarray, np.ndarray]:
    """Return the PDE coefficients of all samples and the mask of the known ones; print warnings about them."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        cond, mask = coefficient_arrays(task, start.coefficients, len(start.fields))
    for warning in caught:
        print_line(console, f"note        {warning.message}")
    return np.asarray(cond), mask


def _output_attributes(run: TrainedModel, start: InitialState, request: RolloutRequest) -> dict[str, str | int | float]:
    """Return the HDF5 attributes of the output file, which describe the run, the input and the options."""
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
        "members": request.members,
        "corrector": _describe_corrector(request),
        "seed": request.seed,
        "input": start.name,
        "version": f"ups_jax {version('ups_jax')}",
    }


def _describe_corrector(request: RolloutRequest) -> str:
    """Return a text that names the corrector and the steps that it corrects."""
    if request.corrector is None:
        return "none"
    above = "" if request.correct_above is None else f" above {request.correct_above:g}"
    steps = "" if request.sampler_steps is None else f", {request.sampler_steps} sampler steps"
    return f"{request.corrector} every {request.correct_every}{above}{steps}"


def _print_error(output: Path, task: Task, start: InitialState, members: int, console: Console) -> None:
    """Print the error of the predictions for the only sample, averaged over the frames that `start.truth` contains."""
    if start.truth is None:
        return
    initial_frames, truth = start.fields.shape[1], start.truth[0]
    fields = (_read_point_states if task.scattered else _read_grid_states)(output, task)[
        :, initial_frames : initial_frames + len(truth)
    ]
    target, point_mask = truth[None, : fields.shape[1]], select_point_mask(start, slice(1))
    values = rollout_section(score_rows(fields.mean(0, keepdims=True), target, task, 1, point_mask), task.dt)
    subject = "mean of the members" if members > 1 else "prediction"
    lines = {
        "nrmse": f"{values['nrmse']:.3g} of the {subject}, averaged over {fields.shape[1]} frames",
        "last": f"{values['nrmse_by_time'][-1]:.3g} nrmse in frame {fields.shape[1]}",
        "correlated": f"above 0.8 until t = {values['correlation_time']:.3g} of {fields.shape[1] * task.dt:.3g}",
    }
    if members > 1:
        summary = ensemble_summary(ensemble_table(fields[:, None], target, task.dt))
        lines |= {name: f"{value:.3g}" for name, value in summary.items()}
    for name, text in lines.items():
        print_line(console, f"{name:<11} {text}")


def _read_grid_states(output: Path, task: Task) -> Float[np.ndarray, "r t *s c"]:
    """Read the states on a grid from an output file."""
    with h5py.File(output, "r", locking=False) as file:
        return np.stack([file[name][:] for name in channel_dataset_names(task)], axis=-1)


def _read_point_states(output: Path, task: Task) -> Float[np.ndarray, "r t p c"]:
    """Read the states on scattered points from an output file."""
    source = open_file(output, "transient", task.channels)
    return read_trajectories(source, np.arange(source.trajectories))
