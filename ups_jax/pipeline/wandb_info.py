"""The W&B run of a pipeline, told to those who start it: the file that FAST_TO_SOTA_WANDB_INFO names."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from ups_jax.files import write_atomically
from ups_jax.pipeline.work import INFO_VARIABLE
from ups_jax.tracking.context import VARIABLE, read_context


def write_info(environment: Mapping[str, str]) -> None:
    """Write id, project, entity, group, mode and url once a step has begun a run. Raises `StorageError`."""
    context = read_context(Path(environment[VARIABLE]))
    if context is not None:
        values = {"id": context.run_id} | {key: value for key, value in asdict(context).items() if key != "run_id"}
        write_atomically(Path(environment[INFO_VARIABLE]), json.dumps(values, indent=2) + "\n")
