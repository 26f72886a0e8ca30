"""What run.json says of one stage, kept on file as it changes."""

from __future__ import annotations

from typing import Any

from ups_jax.config import Config
from ups_jax.training.run_directory import RunDirectory

# Keys of a stage that say how long it is trained.
_LENGTHS = ("epochs", "steps", "max_seconds", "patience", "patience_steps")


def lengths_of(cfg: Config, stage: str) -> dict[str, Any]:
    """How long a configuration trains a stage, as its keys say."""
    settings = getattr(cfg.stages, stage)
    return {key: getattr(settings, key) for key in _LENGTHS}


class StageRecord:
    """The entry of a stage in the record of its run; `values` are those on file."""

    def __init__(self, run: RunDirectory, stage: str, values: dict[str, Any]) -> None:
        self._run, self._stage = run, stage
        self.values = values
        self._write({})

    def note(self, **values: Any) -> None:
        """Add or replace values."""
        self.values |= values
        self._write({})

    def finish(self, **values: Any) -> None:
        """Add or replace the last values, and say of the run that it is finished."""
        self.values |= values
        self._write({"status": "finished"})

    def _write(self, of_run: dict[str, Any]) -> None:
        record = self._run.read()
        self._run.write(record | of_run | {"stages": record["stages"] | {self._stage: self.values}})
