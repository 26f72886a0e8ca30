"""The deciding steps of a pipeline run: gate decisions, leaderboard rows, and promotion to champion."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

from ups_jax.config import GatesConfig, to_dict
from ups_jax.pipeline.baseline import (
    Baseline,
    BaselineSearch,
    champion_baseline,
    decide_against_baseline,
    find_baseline,
    shares_checkpoint,
)
from ups_jax.pipeline.cache_keys import json_digest
from ups_jax.pipeline.champions import Candidate, Champions
from ups_jax.pipeline.context import PipelineRun
from ups_jax.pipeline.gates import improvement
from ups_jax.pipeline.leaderboard import Leaderboard, Row
from ups_jax.pipeline.scores import SECTIONS, Evaluation, finite_or_none, metric_values
from ups_jax.pipeline.training_record import RecordedTraining
from ups_jax.runs.directory import utc_now


class Promotion(NamedTuple):
    """Outcome of a promotion: record of the champion (None if the candidate is refused) and final gate decision."""

    champion: dict[str, Any] | None
    decision: dict[str, Any]


def make_baseline_search(pipeline: PipelineRun, scope: str) -> BaselineSearch:
    """Return the search for a baseline in champions and leaderboard, with the options of a pipeline run.

    Args:
        scope: Digest of the full evaluation's settings, from `compute_steps.full_evaluation_scope`.
    """
    request = pipeline.request
    return BaselineSearch(
        champions=Champions(request.champions_root),
        leaderboard=open_leaderboard(pipeline),
        labels=request.baseline_labels,
        champion_label=request.champion_label,
        scope=scope,
        run_id=request.baseline_run_id,
    )


def open_leaderboard(pipeline: PipelineRun) -> Leaderboard:
    """Return the leaderboard to which a pipeline run adds its evaluations."""
    return Leaderboard.from_csv_path(pipeline.request.leaderboard_csv, pipeline.request.leaderboard_html)


def apply_gates(
    pipeline: PipelineRun, step_name: str, evaluation: Evaluation, search: BaselineSearch
) -> dict[str, Any]:
    """Return the gate decision on an evaluation, after printing it and recording it in the summary.

    A resumed run or the current champion keeps its previous decision if the inputs of that decision are unchanged.

    Args:
        step_name: `small_eval` or `full_eval`.
        search: The champions and the leaderboard, with the selection rules.
    """
    rules, section, request = pipeline.resolved.train.gates, SECTIONS[step_name], pipeline.request
    numbers: dict[str, Any] = finite_or_none(evaluation.numbers) | {"trained_on": evaluation.trained_on}
    inputs = [asdict(rules), evaluation.protocol, evaluation.checkpoint, numbers]
    key = json_digest([inputs, request.n_seeds, request.baseline_labels, request.baseline_run_id])
    previous = pipeline.summary.previous_gates.get(step_name, {})
    champion = search.find_champion(section, evaluation)
    is_champion = champion is not None and shares_checkpoint(champion, evaluation)
    if previous.get("key") == key and (
        pipeline.resumed or (champion is not None and champion["run_id"] == pipeline.run_id)
    ):
        pipeline.summary.record_gates(step_name, previous)
        return dict(previous)
    decision: dict[str, Any]
    if is_champion and request.baseline_run_id is None:
        decision = {"status": "champion", "passed": True, "reasons": [], "gates": [], "baseline": None}
    else:
        baseline = find_baseline(search, section, evaluation, pipeline.run_id, rules)
        decision = _decide(pipeline, section, evaluation, baseline, rules)
    decision |= {"key": key, "protocol": evaluation.protocol, "checkpoint": evaluation.checkpoint}
    pipeline.summary.record_gates(step_name, decision)
    print_decision(pipeline, step_name, decision)
    return decision


def _decide(
    pipeline: PipelineRun, section: str, evaluation: Evaluation, baseline: Baseline | None, rules: GatesConfig
) -> dict[str, Any]:
    """Return the gate decision on an evaluation as JSON values, with the baseline under the key `baseline`."""
    min_delta = rules.min_small_delta if section == "small" else rules.min_full_delta
    seeds, seed = pipeline.request.n_seeds, pipeline.resolved.train.seed
    decision = decide_against_baseline(
        evaluation, baseline, rules, min_delta, n_seeds=seeds, bootstrap_seed=seed
    ).to_dict()
    return decision | {"baseline": None if baseline is None else baseline.to_dict()}


def print_decision(pipeline: PipelineRun, step_name: str, decision: Mapping[str, Any]) -> None:
    """Print the status of a gate decision, then one line per gate."""
    baseline = decision.get("baseline")
    status = {
        "champion": "this checkpoint is the champion",
        "no_baseline": "passed without a baseline: no comparable run has been promoted yet",
        "passed": "passed",
        "failed": "failed",
    }[decision["status"]]
    pipeline.print(
        f"gates {step_name:<12}{status}" + (f" against {baseline['label']} {baseline['run_id']}" if baseline else "")
    )
    for gate in decision["gates"]:
        pipeline.print(f"    {gate['status']:<15}{gate['kind']:<9}{gate['message']}")


def leaderboard_rows(pipeline: PipelineRun, evaluations: Mapping[str, Evaluation]) -> list[Row]:
    """Return one leaderboard row for each evaluation of a run.

    Args:
        evaluations: The evaluations by `small_eval` and `full_eval`.
    """
    first = RecordedTraining(Path(pipeline.summary.values["trainings"][0]))
    record, revision = first.read(), first.code_revision()
    rows = []
    for name, evaluation in evaluations.items():
        meta, step = evaluation.meta, pipeline.summary.values["steps"].get(name, {})
        rows.append(
            Row(
                run_id=pipeline.run_id,
                stage=name,
                timestamp=str(step.get("ended") or utc_now()),
                label=name,
                status=str(pipeline.summary.values["gates"].get(name, {}).get("status", "")),
                commit=None if revision is None else revision.removesuffix("-dirty"),
                dirty=None if revision is None else revision.endswith("-dirty"),
                config_hash=json_digest(to_dict(pipeline.resolved.train)),
                eval_key=str(step.get("key", "")),
                checkpoint=evaluation.checkpoint,
                checkpoints=tuple(sorted(evaluation.checkpoints)),
                protocol=evaluation.protocol,
                task=evaluation.task,
                split=meta["data"]["split"],
                horizon=meta["horizon"],
                seed=meta["seed"],
                params=meta["parameters"],
                device=meta["device"],
                wall_clock_s=record.get("seconds"),
                peak_mem=record.get("peak_memory_mib"),
                notes=pipeline.request.notes,
                results=tuple(map(str, evaluation.files)),
                tags=dict(pipeline.request.tags),
                metrics=finite_or_none(evaluation.numbers),
            )
        )
    return rows


def promote_candidate(
    pipeline: PipelineRun,
    decision: Mapping[str, Any],
    evaluations: Mapping[str, Evaluation],
    trainings: list[RecordedTraining],
    search: BaselineSearch,
) -> Promotion:
    """Promote a candidate that passed its gates to champion, unless a comparison with the current champion forbids it.

    If the baseline of `decision` is not the current champion, for example because another run was promoted in the
    meantime, the gates are applied again with the champion as baseline.

    Args:
        decision: The gate decision on the full evaluation.
        evaluations: The evaluations of the candidate by `small_eval` and `full_eval`.
    """
    full = evaluations["full_eval"]
    with search.champions.lock():
        current = search.find_champion("full", full)
        if current is not None and shares_checkpoint(current, full):
            if current["run_id"] == pipeline.run_id:
                _relabel_rows(pipeline, current, leaderboard_rows(pipeline, evaluations))
            return Promotion(current, dict(decision))
        if current is not None and current["checkpoint"] != (decision.get("baseline") or {}).get("checkpoint"):
            baseline = champion_baseline(search, "full", current)
            decision = dict(decision) | _decide(pipeline, "full", full, baseline, pipeline.resolved.train.gates)
            print_decision(pipeline, "full_eval", decision)
        demoted = search.champions.find_demoted(full.task, full.protocol, full.checkpoints)
        objections = _promotion_objections(pipeline, decision, current, demoted)
        if decision["passed"] and objections:
            decision = dict(decision) | {"status": "failed", "passed": False, "reasons": objections}
        pipeline.summary.record_gates("full_eval", decision)
        if not decision["passed"]:
            open_leaderboard(pipeline).add(leaderboard_rows(pipeline, evaluations))
            return Promotion(None, dict(decision))
        training = trainings[_best_seed_index(pipeline, evaluations)]
        champion = search.champions.promote(
            Candidate(
                run_id=pipeline.run_id,
                run_dir=pipeline.directory,
                training_dir=training.path,
                checkpoints=training.read()["checkpoints"],
                config=to_dict(pipeline.resolved.train),
                label=pipeline.request.champion_label,
                scope=search.scope,
                evaluations={SECTIONS[name]: evaluation for name, evaluation in evaluations.items()},
            )
        )
        _relabel_rows(pipeline, champion, leaderboard_rows(pipeline, evaluations))
    return Promotion(champion, dict(decision))


def _promotion_objections(
    pipeline: PipelineRun,
    decision: Mapping[str, Any],
    current_champion: Mapping[str, Any] | None,
    demoted: Mapping[str, Any] | None,
) -> list[str]:
    """Return reasons that forbid a promotion although the gates have passed."""
    objections = []
    if current_champion is not None and any(
        gate["kind"] == "delta" and gate["status"] == "ignored" for gate in decision["gates"]
    ):
        metric = pipeline.resolved.train.gates.metric
        objections.append(
            f"{metric}: cannot be compared with the value of the champion {current_champion['run_id']}; set another "
            "`gates.metric`, or demote this champion"
        )
    if demoted is not None and not pipeline.request.promote_demoted:
        objections.append(
            f"this checkpoint was demoted at {demoted['demoted_at']} ({demoted['reason'] or 'no reason given'}); "
            "set --promote-demoted to promote it again"
        )
    return objections


def _relabel_rows(pipeline: PipelineRun, champion: Mapping[str, Any], rows: list[Row]) -> None:
    """Add the new champion's rows to the leaderboard, labelled as champion, and relabel the rows of former ones."""
    board, label = open_leaderboard(pipeline), pipeline.request.champion_label
    former_labels = {
        item["run_id"]: f"former_{item['label']}" for item in champion["history"] if "demoted_at" not in item
    }
    former_labels.pop(champion["run_id"], None)
    labels = {item["label"] for item in champion["history"]}
    old = [
        row
        for row in board.read()
        if row.run_id in former_labels and row.label in labels and row.task == champion["task"]
    ]
    board.add(
        [*(replace(row, label=former_labels[row.run_id]) for row in old), *(replace(row, label=label) for row in rows)]
    )


def _best_seed_index(pipeline: PipelineRun, evaluations: Mapping[str, Evaluation]) -> int:
    """Return the index of the best seed by the small evaluation, or by the full one if the small one was skipped."""
    rules = pipeline.resolved.train.gates
    results = evaluations.get("small_eval", evaluations["full_eval"]).results
    values = [metric_values(result)[rules.metric] for result in results]
    gains = [improvement(value, values[0], rules, rules.metric) for value in values]
    return gains.index(max(gains))
