"""What a pipeline run logs to W&B and TensorBoard beside its training and evaluations: the decisions and the report."""

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
from ups_jax.tracking import Writer, close_on_exit, evaluation_writer
from ups_jax.tracking.wandb_run import CONTEXT_VARIABLE, read_context

COLUMNS = ("key", "kind", "status", "candidate", "baseline", "limit", "message")


def publish(directory: Path) -> None:
    """Send the decisions of a run directory of the pipeline to the writers of its configuration."""
    try:
        summary = read_json(directory / "summary.json")
    except (OSError, ValueError) as error:
        raise ConfigError(f"{directory}: holds no pipeline run ({error}); give a folder of artifacts/runs") from None
    cfg = load(config_path(directory, "train"))
    with close_on_exit(evaluation_writer(directory, cfg.logging, name="gates", run_config=to_dict(cfg))) as writer:
        send(writer, summary, directory / "analysis" / "report.html")


def send(writer: Writer, summary: Mapping[str, Any], report: Path) -> None:
    """Each gate's answer as a table under `gate/<evaluation>`, whether it passed in the summary, and the page."""
    for name, decision in summary["gates"].items():
        numbers = {"status": decision["status"], "passed": int(decision["passed"])}
        numbers |= {f"{gate['key']}/{gate['kind']}": gate["candidate"] for gate in decision["gates"]}
        writer.summary({"gate": {name: {key: value for key, value in numbers.items() if value is not None}}})
        rows = [[gate[column] for column in COLUMNS] for gate in decision["gates"]]
        writer.table(f"gate/{name}/answers", COLUMNS, rows)
    writer.summary({"pipeline": {"outcome": summary["outcome"], "promoted": int(summary["promoted"])}})
    writer.tags((summary["outcome"],))
    if report.exists():
        writer.file(report)


def write_info(environment: Mapping[str, str]) -> None:
    """Write id, project, entity, group, mode and url once a step has begun a run. Raises `StorageError`."""
    context = read_context(Path(environment[CONTEXT_VARIABLE]))
    if context is not None:
        values = {"id": context.run_id} | {key: value for key, value in asdict(context).items() if key != "run_id"}
        write_atomically(Path(environment[WANDB_INFO_VARIABLE]), json.dumps(values, indent=2) + "\n")
