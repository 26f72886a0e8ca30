"""The pipeline from its first step to its last: validate, dry run, train, evaluate, gates, promote, report.

It imports no jax and holds no accelerator: whatever computes is a process of its own. Started again it goes on where
it stopped.
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
from ups_jax.pipeline.cache_keys import digest_of
from ups_jax.pipeline.context import UNFINISHED, Summary, Work, find_unfinished_run, read
from ups_jax.pipeline.html_report import write_report
from ups_jax.pipeline.request import Request, check_same, resolve_configs
from ups_jax.pipeline.scores import Evaluation
from ups_jax.pipeline.subprocess_step import Runner, Step, run_step
from ups_jax.runs.directory import environment

EVALUATIONS = ("small_eval", "full_eval")
_HINT = "wait for it or stop it, or give another --run-id"
# Seconds that a step may take to save and end after its pipeline has ended.
_PATIENCE = 60.0


def run_pipeline(request: Request, console: Console, runner: Runner = run_step) -> dict[str, Any]:
    """Run the pipeline of a request to its end; its summary. `GateError` (exit code 6) where the candidate is refused,
    and the error of whatever step failed; the summary is written before either."""
    resolved = resolve_configs(request)
    asked, begin = request.digest(resolved), time.monotonic()
    name = request.run_id or find_unfinished_run(request.runs_root, asked) or _new_id(request.runs_root)
    directory = request.runs_root / name
    with lock_directory(directory, _HINT, _PATIENCE) as lock:
        check_same(directory, resolved)
        before = read(directory / "summary.json").get("status")
        summary = Summary(directory)
        sources = {name: str(path) for name, path in request.configs.items()}
        sources["overrides"] = " ".join(request.overrides)
        summary.begin(run_id=name, request=asked, environment=environment(), configs=sources)
        resolved.write(directory)
        work = Work(
            request=request,
            resolved=resolved,
            directory=directory,
            summary=summary,
            console=console,
            runner=runner,
            lock=lock,
            resumed=before in UNFINISHED,
        )
        work.say(f"run             {directory}" + (" (goes on)" if work.resumed else ""))
        try:
            status = _sequence(work)
        except BaseException as error:
            stopped = isinstance(error, Stopped | KeyboardInterrupt)
            refused = isinstance(error, GateError)
            code = Stopped.exit_code if stopped else error.exit_code if isinstance(error, UserError) else 1
            summary.update(
                status="refused" if refused else "stopped" if stopped else "failed",
                failed_step=None if refused else _current(summary),
                error=str(error) or type(error).__name__,
                exit_code=code,
                wall_clock=round(time.monotonic() - begin, 3),
            )
            raise
        # At once: a run with a status is a run at its end.
        summary.update(status=status, exit_code=0, wall_clock=round(time.monotonic() - begin, 3))
        work.say(f"run             {directory}: {summary.values['status']}")
        return summary.values


def _sequence(work: Work) -> str:
    fingerprints = compute_steps.validate(work)
    trainings = compute_steps.train(work, fingerprints["train"])
    work.summary.update(trainings=[str(training.path) for training in trainings])
    search = decision_steps.search_of(work, compute_steps.full_scope(work, fingerprints["full_eval"]))
    evaluations: dict[str, Evaluation] = {}
    decision: Mapping[str, Any] = {"status": "skipped", "passed": True, "reasons": []}
    for name in EVALUATIONS:
        if getattr(work.request, f"skip_{name}"):
            work.skipped(name, f"--skip-{name.replace('_', '-')}")
            continue
        if not decision["passed"] and not work.request.force_full_eval:
            work.skipped(name, "the small evaluation's gates refuse the candidate; --force-full-eval does it anyway")
            continue
        evaluations[name] = compute_steps.evaluate(work, name, trainings, fingerprints[name])
        decision = decision_steps.decide_on(work, name, evaluations[name], search)
        rows = decision_steps.rows_of(work, evaluations)
        decision_steps.board_of(work).add(_unless_champion(work, rows))
    champion = None
    if decision["passed"] and "full_eval" in evaluations:
        promote = partial(decision_steps.promote, work, decision, evaluations, trainings, search)
        champion, decision = work.inside("promotion", str(decision["key"]), promote)
        if champion is not None:
            of = f"of {champion['task']} by protocol {champion['protocol']}"
            work.say(f"champion        {of}: run {champion['run_id']}")
    else:
        work.skipped("promotion", "no full evaluation" if decision["passed"] else "the gates refuse the candidate")
    status = _status(work, decision, champion)
    work.summary.update(promoted=champion is not None, champion=_named(champion), outcome=status)
    _finish(work, evaluations, champion)
    if status == "refused":
        raise GateError(f"run {work.run_id} is not promoted: {'; '.join(decision['reasons'])}")
    return status


def _status(work: Work, decision: Mapping[str, Any], champion: Mapping[str, Any] | None) -> str:
    """What became of the run: `promoted`, `champion` (another run with the same checkpoint is), `refused`, or
    `evaluated`, where nothing was to be promoted."""
    if not decision["passed"]:
        return "refused"
    if champion is None:
        return "evaluated"
    return "promoted" if champion["run_id"] == work.run_id else "champion"


def _finish(work: Work, evaluations: Mapping[str, Evaluation], champion: Mapping[str, Any] | None) -> None:
    """The report, and what W&B and TensorBoard hear of the gates."""
    if work.request.skip_analysis:
        work.skipped("report", "--skip-analysis")
    else:
        page = work.directory / "analysis" / "report.html"
        work.inside("report", work.run_id, lambda: write_report(page, work, evaluations, champion))
        work.say(f"report          {page}")
    logging = work.resolved.train.logging
    key = digest_of(work.summary.values["gates"])
    if (logging.wandb.enabled or logging.tensorboard) and not work.done("publish", key):
        step = Step(
            name="publish",
            command="leaderboard",
            arguments=["--publish", str(work.directory)],
            environment=work.environment(),
        )
        work.run(step, key)


def _unless_champion(work: Work, rows: list[Any]) -> list[Any]:
    """A resumed run that is champion already keeps its label."""
    label = work.request.champion_label
    kept = {row.key for row in decision_steps.board_of(work).read() if row.label == label}
    return [row for row in rows if row.key not in kept]


def _named(champion: Mapping[str, Any] | None) -> dict[str, Any] | None:
    keys = ("task", "protocol", "run_id", "checkpoint", "promoted_at")
    return None if champion is None else {key: champion[key] for key in keys}


def _current(summary: Summary) -> str | None:
    """The step that an error came from: the one that was begun last, where it is not done."""
    name = summary.values.get("current_step")
    status = summary.values["steps"].get(name, {}).get("status")
    return name if status in ("running", "failed", "stopped") else None


def _new_id(runs: Path) -> str:
    """A name of its own, with a counter where two runs start in one second."""
    stem = f"run_{datetime.now(UTC):%Y%m%d_%H%M%S}"
    for count in range(10_000):
        name = stem if count == 0 else f"{stem}_{count}"
        try:
            # Made at once, so that two starts cannot take the same.
            (runs / name).mkdir(parents=True)
        except FileExistsError:
            continue
        except OSError as error:
            raise storage_error(runs / name, error) from None
        return name
    raise StorageError(f"{runs}: holds ten thousand runs of this second; give --run-id")
