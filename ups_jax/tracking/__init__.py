"""Where the numbers of a run go: one `Writer` protocol, JSONL as the truth, Weights & Biases and TensorBoard beside it.

A failing disk stops training (`StorageError`); a failing wandb never does.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from ups_jax.config import LoggingConfig
from ups_jax.tracking.jsonl import JsonlWriter, read_jsonl
from ups_jax.tracking.tensorboard import TensorboardWriter, check_tensorboard
from ups_jax.tracking.wandb_run import context_path, read_context, shared_in
from ups_jax.tracking.wandb_writer import WandbWriter
from ups_jax.tracking.writer import Tee, Thinned, Writer, ending, flat


def check_logging(logging: LoggingConfig) -> None:
    """ConfigError for what would keep a writer from being opened, before anything is trained or written."""
    if logging.tensorboard:
        check_tensorboard()
    path = context_path()
    if logging.wandb.enabled and path is not None:
        read_context(path)


def training_writer(
    directory: Path, metrics: Path, logging: LoggingConfig, *, stage: str, step: int, run_config: Mapping[str, Any]
) -> Writer:
    """A run's JSONL `metrics`, cut back to the step that `stage` is restored at, and what is on beside it.

    On W&B every start is a run of its own, in the group of the run directory. The first start of a stage joins the run
    of its pipeline instead, if there is one (`wandb_run`); a later one would write its steps into it twice.
    """
    with ExitStack() as opened:
        jsonl = JsonlWriter(metrics)
        opened.callback(jsonl.close)
        first = step == 0 and all(record["stage"] != stage for record in read_jsonl(metrics))
        jsonl.truncate(stage, step)
        writers: list[Writer] = [jsonl]
        if logging.tensorboard:
            writers.append(TensorboardWriter(directory / "tensorboard", {stage: step}))
            opened.callback(writers[-1].close)
        if logging.wandb.enabled:
            writers.append(_wandb(directory, logging, str(step), run_config, join=first))
        # Whoever trains closes them; here they are closed only where one of them could not be opened.
        opened.pop_all()
    return Tee(writers)


def evaluation_writer(directory: Path, logging: LoggingConfig, *, name: str, run_config: Mapping[str, Any]) -> Writer:
    """What is on beside the evaluation's own files: a W&B run of the run directory's group, or its pipeline's run."""
    writers: list[Writer] = []
    if logging.tensorboard:
        writers.append(TensorboardWriter(directory / "tensorboard"))
    if logging.wandb.enabled:
        writers.append(_wandb(directory, logging, name, run_config, join=True))
    return Tee(writers)


def _wandb(directory: Path, logging: LoggingConfig, part: str, run_config: Mapping[str, Any], *, join: bool) -> Writer:
    shared = context_path()
    # A pipeline's processes work in several folders of its own, which is the one that their context lies in.
    group = (directory if shared is None else shared.parent).resolve().name
    writer = WandbWriter(
        logging.wandb,
        directory=directory,
        group=group,
        name=f"{group}-{part}",
        run_config=run_config,
        context=shared,
        join=join,
    )
    return Thinned(writer, logging.wandb.every_seconds)
