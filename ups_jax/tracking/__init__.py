"""Writers of a run's metrics: the `Writer` protocol and its JSONL, Weights & Biases and TensorBoard implementations.

ups_jax itself reads only the JSONL file. A write error on disk stops training (`StorageError`), a W&B failure does not.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from ups_jax.config import LoggingConfig
from ups_jax.tracking.jsonl import JsonlWriter, read_jsonl
from ups_jax.tracking.tensorboard import TensorboardWriter, check_tensorboard
from ups_jax.tracking.wandb_run import read_context, share_wandb_run, wandb_context_path
from ups_jax.tracking.wandb_writer import WandbWriter
from ups_jax.tracking.writer import Tee, ThrottledWriter, Writer, close_on_exit, flatten_sections


def check_logging(logging: LoggingConfig) -> None:
    """Raise `ConfigError` if a writer that `logging` enables cannot be opened.

    Call this before the training starts and before any file is written.
    """
    if logging.tensorboard:
        check_tensorboard()
    path = wandb_context_path()
    if logging.wandb.enabled and path is not None:
        read_context(path)


def open_training_writer(
    directory: Path, metrics_path: Path, logging: LoggingConfig, *, stage: str, step: int, run_config: Mapping[str, Any]
) -> Writer:
    """Open the writers of a training stage; drop its JSONL records after `step`, which the training will write again.

    Each call creates a new W&B run in the W&B group of the run directory. In a pipeline, the first start of a stage
    instead joins the W&B run of the pipeline; a resumed start does not, because it would repeat steps there.

    Args:
        directory: Run directory, in which the TensorBoard and W&B folders are created.
        metrics_path: Path of the JSONL file.
        logging: Settings that enable the other writers.
        step: Step that the stage starts from: 0, or the step of the restored checkpoint.
        run_config: Configuration to log to W&B.

    Raises:
        StorageError: The JSONL file cannot be written.
    """
    with ExitStack() as opened:
        jsonl = JsonlWriter(metrics_path)
        opened.callback(jsonl.close)
        is_first_start = step == 0 and all(record["stage"] != stage for record in read_jsonl(metrics_path))
        jsonl.drop_records_after(stage, step)
        writers: list[Writer] = [jsonl]
        if logging.tensorboard:
            writers.append(TensorboardWriter(directory / "tensorboard", {stage: step}))
            opened.callback(writers[-1].close)
        if logging.wandb.enabled:
            writers.append(_open_wandb_writer(directory, logging, str(step), run_config, join=is_first_start))
        # All writers are open: the caller closes them from now on.
        opened.pop_all()
    return Tee(writers)


def open_evaluation_writer(
    directory: Path, logging: LoggingConfig, *, name: str, run_config: Mapping[str, Any]
) -> Writer:
    """Open the TensorBoard and W&B writers of an evaluation, each only if `logging` enables it.

    In a pipeline, the W&B writer joins the W&B run of the pipeline. Otherwise it creates a new W&B run in the W&B group
    of the run directory.

    Args:
        directory: Run directory, in which the TensorBoard and W&B folders are created.
        logging: Settings that enable the writers.
        name: Suffix of a new W&B run's name.
        run_config: Configuration to log to W&B.
    """
    writers: list[Writer] = []
    if logging.tensorboard:
        writers.append(TensorboardWriter(directory / "tensorboard"))
    if logging.wandb.enabled:
        writers.append(_open_wandb_writer(directory, logging, name, run_config, join=True))
    return Tee(writers)


def _open_wandb_writer(
    directory: Path, logging: LoggingConfig, name_suffix: str, run_config: Mapping[str, Any], *, join: bool
) -> Writer:
    """Open a throttled W&B writer, whose W&B group has the name of the pipeline's folder or the run directory."""
    context_file = wandb_context_path()
    # The processes of a pipeline write to several subfolders; the context file lies in the folder of the pipeline.
    group = (directory if context_file is None else context_file.parent).resolve().name
    writer = WandbWriter(
        logging.wandb,
        directory=directory,
        group=group,
        name=f"{group}-{name_suffix}",
        run_config=run_config,
        context_file=context_file,
        join=join,
    )
    return ThrottledWriter(writer, logging.wandb.every_seconds)
