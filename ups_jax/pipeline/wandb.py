"""Logging of the gate decisions and the report of a pipeline run to W&B and TensorBoard."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ups_jax.config import load, to_dict
from ups_jax.core.errors import ConfigError
from ups_jax.core.files import read_json, write_atomically
from ups_jax.pipeline.context import WANDB_INFO_VARIABLE
from ups_jax.pipeline.request import config_path
from ups_jax.tracking import Writer, close_on_exit, open_evaluation_writer
from ups_jax.tracking.wandb_run import CONTEXT_VARIABLE, read_context

GATE_COLUMNS = ("key", "kind", "status", "candidate", "baseline", "limit", "message")


def publish_run(directory: Path) -> None:
    """Log the gate decisions and the report of a pipeline run to the trackers that its configuration enables.

    Raises:
        ConfigError: If the directory is not a pipeline run.
    """
    try:
        summary = read_json(directory / "summary.json")
    except (OSError, ValueError) as error:
        raise ConfigError(f"{directory}: is not a pipeline run ({error}); choose a folder in artifacts/runs") from None
    cfg = load(config_path(directory, "train"))
    with close_on_exit(open_evaluation_writer(directory, cfg.logging, name="gates", run_config=to_dict(cfg))) as writer:
        log_decisions(writer, summary, directory / "analysis" / "report.html")


def log_decisions(writer: Writer, summary: Mapping[str, Any], report: Path) -> None:
    """Log the gate decisions as summary values and tables, the outcome as a tag, and the report as a file.

    Args:
        summary: Content of the run's `summary.json`.
        report: The HTML report; it may be missing.
    """
    for name, decision in summary["gates"].items():
        numbers = {"status": decision["status"], "passed": int(decision["passed"])}
        numbers |= {f"{gate['key']}/{gate['kind']}": gate["candidate"] for gate in decision["gates"]}
        writer.summary({"gate": {name: {key: value for key, value in numbers.items() if value is not None}}})
        rows = [[gate[column] for column in GATE_COLUMNS] for gate in decision["gates"]]
        writer.table(f"gate/{name}/answers", GATE_COLUMNS, rows)
    writer.summary({"pipeline": {"outcome": summary["outcome"], "promoted": int(summary["promoted"])}})
    writer.tags((summary["outcome"],))
    if report.exists():
        writer.file(report)


def write_wandb_info(environment: Mapping[str, str]) -> None:
    """Write id, project, entity, group, mode and URL of a step's W&B run to a JSON file; do nothing without a run.

    Args:
        environment: Environment variables of the step, from `PipelineRun.environment`.

    Raises:
        StorageError: If the file cannot be written.
    """
    context = read_context(Path(environment[CONTEXT_VARIABLE]))
    if context is not None:
        values = {"id": context.run_id} | {key: value for key, value in asdict(context).items() if key != "run_id"}
        write_atomically(Path(environment[WANDB_INFO_VARIABLE]), json.dumps(values, indent=2) + "\n")
