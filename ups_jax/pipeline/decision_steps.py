"""The chapters of a pipeline run that judge: gates, rows of the leaderboard, promotion."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from ups_jax.config import GatesConfig, to_dict
from ups_jax.pipeline.baseline import Baseline, Search, find_baseline, is_same, judge, of_champion
from ups_jax.pipeline.cache_keys import digest_of
from ups_jax.pipeline.champions import Candidate, Champions
from ups_jax.pipeline.context import Work
from ups_jax.pipeline.gates import improvement
from ups_jax.pipeline.leaderboard import Leaderboard, Row
from ups_jax.pipeline.scores import SECTIONS, Evaluation, metric_values, plain
from ups_jax.pipeline.training_record import RecordedTraining
from ups_jax.runs.directory import now


def search_of(work: Work, scope: str) -> Search:
    """Where this run's baselines are looked for; `scope` is what its full evaluation is of."""
    request = work.request
    return Search(
        champions=Champions(request.champions_root),
        board=board_of(work),
        labels=request.baseline_labels,
        champion_label=request.champion_label,
        scope=scope,
        run_id=request.baseline_run_id,
    )


def board_of(work: Work) -> Leaderboard:
    """The leaderboard of a run."""
    return Leaderboard.from_csv_path(work.request.leaderboard_csv, work.request.leaderboard_html)


def decide_on(work: Work, name: str, evaluated: Evaluation, search: Search) -> dict[str, Any]:
    """The gates' decision on an evaluation, kept in the summary and told. A resumed run keeps its own."""
    rules, section, request = work.resolved.train.gates, SECTIONS[name], work.request
    judged = [asdict(rules), evaluated.protocol, evaluated.checkpoint, plain(evaluated.numbers)]
    key = digest_of([judged, request.n_seeds, request.baseline_labels, request.baseline_run_id])
    known = work.summary.former_gates.get(name, {})
    champion = search.champion(section, evaluated)
    is_champion = champion is not None and is_same(champion, evaluated)
    if known.get("key") == key and (work.resumed or (champion is not None and champion["run_id"] == work.run_id)):
        work.summary.gate(name, known)
        return dict(known)
    decision: dict[str, Any]
    if is_champion and request.baseline_run_id is None:
        decision = {"status": "champion", "passed": True, "reasons": [], "gates": [], "baseline": None}
    else:
        baseline = find_baseline(search, section, evaluated, work.run_id, rules)
        decision = _judged(work, section, evaluated, baseline, rules)
    decision |= {"key": key, "protocol": evaluated.protocol, "checkpoint": evaluated.checkpoint}
    work.summary.gate(name, decision)
    tell(work, name, decision)
    return decision


def _judged(
    work: Work, section: str, evaluated: Evaluation, baseline: Baseline | None, rules: GatesConfig
) -> dict[str, Any]:
    min_delta = rules.min_small_delta if section == "small" else rules.min_full_delta
    seeds, seed = work.request.n_seeds, work.resolved.train.seed
    decision = judge(evaluated, baseline, rules, min_delta, seeds=seeds, seed=seed).to_dict()
    return decision | {"baseline": None if baseline is None else baseline.to_dict()}


def tell(work: Work, name: str, decision: Mapping[str, Any]) -> None:
    """Print a decision, a line a gate."""
    against = decision.get("baseline")
    said = {
        "champion": "this checkpoint is the champion",
        "no_baseline": "passed, without a baseline: nothing comparable was promoted yet",
        "passed": "passed",
        "failed": "failed",
    }[decision["status"]]
    work.say(f"gates {name:<12}{said}" + (f" against {against['label']} {against['run_id']}" if against else ""))
    for gate in decision["gates"]:
        work.say(f"    {gate['status']:<15}{gate['kind']:<9}{gate['message']}")


def rows_of(work: Work, evaluations: Mapping[str, Evaluation]) -> list[Row]:
    """A row of the leaderboard for each evaluation, by the names of their steps."""
    first = RecordedTraining(Path(work.summary.values["trainings"][0]))
    training, revision = first.read(), first.revision()
    rows = []
    for name, evaluated in evaluations.items():
        meta, own = evaluated.meta, work.summary.values["steps"].get(name, {})
        rows.append(
            Row(
                run_id=work.run_id,
                stage=name,
                timestamp=str(own.get("ended") or now()),
                label=name,
                status=str(work.summary.values["gates"].get(name, {}).get("status", "")),
                commit=None if revision is None else revision.removesuffix("-dirty"),
                dirty=None if revision is None else revision.endswith("-dirty"),
                config_hash=digest_of(to_dict(work.resolved.train)),
                eval_key=str(own.get("key", "")),
                checkpoint=evaluated.checkpoint,
                checkpoints=tuple(sorted(evaluated.checkpoints)),
                protocol=evaluated.protocol,
                task=evaluated.task,
                split=meta["data"]["split"],
                horizon=meta["horizon"],
                seed=meta["seed"],
                params=meta["parameters"],
                device=meta["device"],
                wall_clock_s=training.get("seconds"),
                peak_mem=training.get("peak_memory_mib"),
                notes=work.request.notes,
                results=tuple(map(str, evaluated.files)),
                tags=dict(work.request.tags),
                metrics=plain(evaluated.numbers),
            )
        )
    return rows


def promote(
    work: Work,
    decision: Mapping[str, Any],
    evaluations: Mapping[str, Evaluation],
    trainings: list[RecordedTraining],
    search: Search,
) -> tuple[dict[str, Any] | None, dict[str, Any]]:
    """The champion that the candidate has become, None where it may not, and the decision that holds.

    Whatever the baseline was, nobody takes a champion's place without being held against it: one that the gates were
    not asked about, as it was promoted since, is judged against under the champions' lock. The leaderboard says who is
    champion under the same lock.
    """
    full = evaluations["full_eval"]
    with search.champions.lock():
        held = search.champion("full", full)
        if held is not None and is_same(held, full):
            if held["run_id"] == work.run_id:
                _relabel(work, held, rows_of(work, evaluations))
            return held, dict(decision)
        if held is not None and held["checkpoint"] != (decision.get("baseline") or {}).get("checkpoint"):
            baseline = of_champion(search, "full", held)
            decision = dict(decision) | _judged(work, "full", full, baseline, work.resolved.train.gates)
            tell(work, "full_eval", decision)
        demoted = search.champions.find_demoted(full.task, full.protocol, full.checkpoints)
        against = _objections(work, decision, held, demoted)
        if decision["passed"] and against:
            decision = dict(decision) | {"status": "failed", "passed": False, "reasons": against}
        work.summary.gate("full_eval", decision)
        if not decision["passed"]:
            board_of(work).add(rows_of(work, evaluations))
            return None, dict(decision)
        training = trainings[_chosen(work, evaluations)]
        champion = search.champions.promote(
            Candidate(
                run_id=work.run_id,
                run_dir=work.directory,
                training=training.path,
                checkpoints=training.read()["checkpoints"],
                config=to_dict(work.resolved.train),
                label=work.request.champion_label,
                scope=search.scope,
                evaluations={SECTIONS[name]: evaluated for name, evaluated in evaluations.items()},
            )
        )
        _relabel(work, champion, rows_of(work, evaluations))
    return champion, dict(decision)


def _objections(
    work: Work, decision: Mapping[str, Any], held: Mapping[str, Any] | None, demoted: Mapping[str, Any] | None
) -> list[str]:
    """What forbids a promotion that the gates allow."""
    found = []
    if held is not None and any(gate["kind"] == "delta" and gate["status"] == "ignored" for gate in decision["gates"]):
        metric = work.resolved.train.gates.metric
        found.append(
            f"{metric}: cannot be compared with that of the champion {held['run_id']}, so that nothing says that this "
            "run is better; ask for another gates.metric, or demote that champion"
        )
    if demoted is not None and not work.request.promote_demoted:
        found.append(
            f"this checkpoint was demoted at {demoted['demoted_at']} ({demoted['reason'] or 'without a reason'}); "
            "--promote-demoted takes it again"
        )
    return found


def _relabel(work: Work, champion: Mapping[str, Any], rows: list[Row]) -> None:
    """The leaderboard says who is champion now, and who was."""
    board, label = board_of(work), work.request.champion_label
    former = {item["run_id"]: f"former_{item['label']}" for item in champion["history"] if "demoted_at" not in item}
    former.pop(champion["run_id"], None)
    labels = {item["label"] for item in champion["history"]}
    old = [row for row in board.read() if row.run_id in former and row.label in labels and row.task == champion["task"]]
    board.add([*(replace(row, label=former[row.run_id]) for row in old), *(replace(row, label=label) for row in rows)])


def _chosen(work: Work, evaluations: Mapping[str, Evaluation]) -> int:
    """Which of several seeds stands for them: the best by the small evaluation, which no test trajectory is in."""
    rules = work.resolved.train.gates
    results = evaluations.get("small_eval", evaluations["full_eval"]).results
    values = [metric_values(result)[rules.metric] for result in results]
    gains = [improvement(value, values[0], rules, rules.metric) for value in values]
    return gains.index(max(gains))
