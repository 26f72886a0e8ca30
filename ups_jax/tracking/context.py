"""The small file by which the processes of a pipeline share one W&B run: who began it writes it, the others join."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from ups_jax.errors import ConfigError
from ups_jax.files import write_atomically

# Names the file; the pipeline sets it for every process that it starts.
VARIABLE = "WANDB_CONTEXT_FILE"


@dataclass(frozen=True, kw_only=True)
class RunContext:
    """A W&B run that others may join; `mode` is that of the process which began it, `url` is known online only."""

    run_id: str
    project: str
    entity: str | None
    group: str
    mode: str
    url: str | None = None


_ADAPTER = TypeAdapter(RunContext)


def context_path() -> Path | None:
    """The file that the environment names, None where it names none."""
    name = os.environ.get(VARIABLE)
    return Path(name) if name else None


@contextlib.contextmanager
def shared_in(folder: Path) -> Iterator[None]:
    """What is begun inside is one W&B run, by a file in `folder` where the environment names none."""
    if context_path() is not None:
        yield
        return
    os.environ[VARIABLE] = str(folder / "wandb-context.json")
    try:
        yield
    finally:
        del os.environ[VARIABLE]


def read_context(path: Path) -> RunContext | None:
    """The run that the file names, None where no process has begun one. ConfigError where it cannot be understood."""
    try:
        return _ADAPTER.validate_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValidationError) as error:
        reason = error.errors()[0]["msg"] if isinstance(error, ValidationError) else error.strerror
        raise ConfigError(
            f"{path}: is not the context of a W&B run ({reason}); delete it, or set {VARIABLE} to another file"
        ) from None


def write_context(path: Path, context: RunContext) -> None:
    """Tell the processes that come later; atomic. Raises `StorageError`."""
    write_atomically(path, json.dumps(asdict(context), indent=2) + "\n")
