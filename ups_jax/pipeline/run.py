"""The pipeline, which validates, trains and evaluates a candidate, applies the gates, promotes it and writes a report.

This module imports no jax and uses no accelerator: every computing step is a separate process. The same command
resumes an unfinished run.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from ups_jax.core.errors import GateError, Stopped, StorageError, UserError
from ups_jax.core.files import storage_error
from ups_jax.core.locks import lock_directory
from ups_jax.pipeline import compute_steps, decision_steps
from ups_jax.pipeline.cache_keys import json_digest
from ups_jax.pipeline.context import UNFINISHED, PipelineRun, Summary, find_unfinished_run, read_summary
from ups_jax.pipeline.html_report import write_report
from ups_jax.pipeline.leaderboard import Row
from ups_jax.pipeline.request import Request, check_same_configs, resolve_configs
from ups_jax.pipeline.scores import Evaluation
from ups_jax.pipeline.subprocess_step import Runner, Step, run_step
from ups_jax.runs.directory import environment_record

EVALUATION_STEPS = ("small_eval", "full_eval")
_HINT = "wait for it or stop it, or choose another --run-id"
# Seconds to wait for a step of an earlier start, which still saves its state after its pipeline was killed.
_LOCK_TIMEOUT = 60.0


def run_pipeline(request: Request, console: Console, runner: Runner = run_step) -> dict[str, Any]:
    """Run all steps of the pipeline and return the content of its `summary.json`.

    `summary.json` is also written before the error of a failed step is raised.

    Args:
        runner: Function that executes a step as a process.

    Raises:
        GateError: If the candidate is not promoted because of the gates (exit code 6).
        UserError: If a step fails.
    """
    resolved = resolve_configs(request)
    digest, start_time = request.digest(resolved), time.monotonic()
    name = request.run_id or find_unfinished_run(request.runs_root, digest) or _create_run_folder(request.runs_root)
    directory = request.runs_root / name
    with lock_directory(directory, _HINT, _LOCK_TIMEOUT) as lock:
        check_same_configs(directory, resolved)
        former_status = read_summary(directory / "summary.json").get("status")
        summary = Summary(directory)
        sources = {name: str(path) for name, path in request.config_files.items()}
        sources["overrides"] = " ".join(request.overrides)
        summary.start(run_id=name, request=digest, environment=environment_record(), configs=sources)
        resolved.write(directory)
        pipeline = PipelineRun(
            request=request,
            resolved=resolved,
            directory=directory,
            summary=summary,
            console=console,
            runner=runner,
            lock_fd=lock,
            resumed=former_status in UNFINISHED,
        )
        pipeline.print(f"run             {directory}" + (" (resumed)" if pipeline.resumed else ""))
        try:
            status = _run_steps(pipeline)
        except BaseException as error:
            stopped = isinstance(error, Stopped | KeyboardInterrupt)
            refused = isinstance(error, GateError)
            code = Stopped.exit_code if stopped else error.exit_code if isinstance(error, UserError) else 1
            summary.update(
                status="refused" if refused else "stopped" if stopped else "failed",
                failed_step=None if refused else _failed_step(summary),
                error=str(error) or type(error).__name__,
                exit_code=code,
                wall_clock=round(time.monotonic() - start_time, 3),
            )
            raise
        # One update, because a run with a final status must have all of these values.
        summary.update(status=status, exit_code=0, wall_clock=round(time.monotonic() - start_time, 3))
        pipeline.print(f"run             {directory}: {summary.values['status']}")
        return summary.values


def _run_steps(pipeline: PipelineRun) -> str:
    """Run all steps in order and return the outcome of the run."""
    fingerprints = compute_steps.validate(pipeline)
    trainings = compute_steps.train(pipeline, fingerprints["train"])
    pipeline.summary.update(trainings=[str(training.path) for training in trainings])
    search = decision_steps.make_baseline_search(
        pipeline, compute_steps.full_evaluation_scope(pipeline, fingerprints["full_eval"])
    )
    evaluations: dict[str, Evaluation] = {}
    decision: Mapping[str, Any] = {"status": "skipped", "passed": True, "reasons": []}
    for name in EVALUATION_STEPS:
        if getattr(pipeline.request, f"skip_{name}"):
            pipeline.mark_skipped(name, f"--skip-{name.replace('_', '-')}")
            continue
        if not decision["passed"] and not pipeline.request.force_full_eval:
            pipeline.mark_skipped(
                name, "the gates of the small evaluation refuse the candidate; --force-full-eval overrides this"
            )
            continue
        evaluations[name] = compute_steps.evaluate(pipeline, name, trainings, fingerprints[name])
        decision = decision_steps.apply_gates(pipeline, name, evaluations[name], search)
        rows = decision_steps.leaderboard_rows(pipeline, evaluations)
        decision_steps.open_leaderboard(pipeline).add(_without_champion_rows(pipeline, rows))
    champion = None
    if decision["passed"] and "full_eval" in evaluations:
        promote = partial(decision_steps.promote_candidate, pipeline, decision, evaluations, trainings, search)
        champion, decision = pipeline.run_in_process("promotion", str(decision["key"]), promote)
        if champion is not None:
            subject = f"task {champion['task']}, protocol {champion['protocol']}"
            pipeline.print(f"champion        run {champion['run_id']} ({subject})")
    else:
        pipeline.mark_skipped(
            "promotion", "no full evaluation" if decision["passed"] else "the gates refuse the candidate"
        )
    status = _outcome(pipeline, decision, champion)
    pipeline.summary.update(promoted=champion is not None, champion=_champion_summary(champion), outcome=status)
    _report_and_log(pipeline, evaluations, champion)
    if status == "refused":
        raise GateError(f"run {pipeline.run_id} is not promoted: {'; '.join(decision['reasons'])}")
    return status


def _outcome(pipeline: PipelineRun, decision: Mapping[str, Any], champion: Mapping[str, Any] | None) -> str:
    """Return the outcome of the run: `promoted`, `refused`, `evaluated` or `champion`.

    `evaluated` means that no promotion was attempted, `champion` that another run with the same checkpoint is champion.
    """
    if not decision["passed"]:
        return "refused"
    if champion is None:
        return "evaluated"
    return "promoted" if champion["run_id"] == pipeline.run_id else "champion"


def _report_and_log(
    pipeline: PipelineRun, evaluations: Mapping[str, Evaluation], champion: Mapping[str, Any] | None
) -> None:
    """Write the HTML report and log the gate decisions to W&B and TensorBoard, unless options disable this."""
    if pipeline.request.skip_analysis:
        pipeline.mark_skipped("report", "--skip-analysis")
    else:
        report = pipeline.directory / "analysis" / "report.html"
        pipeline.run_in_process(
            "report", pipeline.run_id, lambda: write_report(report, pipeline, evaluations, champion)
        )
        pipeline.print(f"report          {report}")
    logging = pipeline.resolved.train.logging
    key = json_digest(pipeline.summary.values["gates"])
    if (logging.wandb.enabled or logging.tensorboard) and not pipeline.was_done("publish", key):
        step = Step(
            name="publish",
            command="leaderboard",
            arguments=["--publish", str(pipeline.directory)],
            environment=pipeline.environment(),
        )
        pipeline.run(step, key)


def _without_champion_rows(pipeline: PipelineRun, rows: list[Row]) -> list[Row]:
    """Return the rows except those that are labelled as champion on the leaderboard and keep this label."""
    label = pipeline.request.champion_label
    champion_keys = {row.key for row in decision_steps.open_leaderboard(pipeline).read() if row.label == label}
    return [row for row in rows if row.key not in champion_keys]


def _champion_summary(champion: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Return the values of a champion's record that the summary stores."""
    keys = ("task", "protocol", "run_id", "checkpoint", "promoted_at")
    return None if champion is None else {key: champion[key] for key in keys}


def _failed_step(summary: Summary) -> str | None:
    """Return the name of the step that failed: the last started one, unless it is done."""
    name = summary.values.get("current_step")
    status = summary.values["steps"].get(name, {}).get("status")
    return name if status in ("running", "failed", "stopped") else None


def _create_run_folder(runs: Path) -> str:
    """Create the folder of a new run and return its name, the current time with a counter if that name exists."""
    stem = f"run_{datetime.now(UTC):%Y%m%d_%H%M%S}"
    for count in range(10_000):
        name = stem if count == 0 else f"{stem}_{count}"
        try:
            # Creating the folder reserves the name against a concurrent start.
            (runs / name).mkdir(parents=True)
        except FileExistsError:
            continue
        except OSError as error:
            raise storage_error(runs / name, error) from None
        return name
    raise StorageError(f"{runs}: contains runs named {stem}, {stem}_1 and so on; choose an unused name with --run-id")
