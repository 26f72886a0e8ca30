"""Where the numbers of a run go: one `Writer` protocol, JSONL as the truth, Weights & Biases and TensorBoard beside it.

A failing disk stops training (`StorageError`); a failing wandb never does.
"""

from ups_jax.tracking.context import RunContext, context_path, read_context, shared_in, write_context
from ups_jax.tracking.jsonl import JsonlWriter, read_jsonl
from ups_jax.tracking.opening import check_logging, evaluation_writer, training_writer
from ups_jax.tracking.tensorboard import TensorboardWriter
from ups_jax.tracking.wandb_login import login_found, wandb_mode
from ups_jax.tracking.wandb_writer import WandbWriter
from ups_jax.tracking.writer import Tee, Writer, ending, flat

__all__ = [
    "JsonlWriter",
    "RunContext",
    "Tee",
    "TensorboardWriter",
    "WandbWriter",
    "Writer",
    "check_logging",
    "context_path",
    "ending",
    "evaluation_writer",
    "flat",
    "login_found",
    "read_context",
    "read_jsonl",
    "shared_in",
    "training_writer",
    "wandb_mode",
    "write_context",
]
