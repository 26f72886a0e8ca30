"""The chapters of a pipeline run that judge: gates, rows of the leaderboard, promotion."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from ups_jax.config import GatesConfig, to_dict
from ups_jax.pipeline.baseline import Baseline, Search, find_baseline, judge, of_champion
from ups_jax.pipeline.champion import Candidate, Champions
from ups_jax.pipeline.evaluated import SECTIONS, Evaluated
from ups_jax.pipeline.gates import improvement
from ups_jax.pipeline.keys import digest_of
from ups_jax.pipeline.leaderboard import Leaderboard, Row
from ups_jax.pipeline.measures import measures, plain
from ups_jax.pipeline.metadata import Training
from ups_jax.pipeline.work import Work
from ups_jax.training.run_directory import environment, now


def search_of(work: Work) -> Search:
    """Where this run's baselines are looked for."""
    request = work.request
    return Search(
        champions=Champions(request.champions_root),
        board=Leaderboard.at(request.leaderboard_csv, request.leaderboard_html),
        labels=request.baseline_labels,
        champion_label=request.champion_label,
        run_id=request.baseline_run_id,
    )


def decide_on(work: Work, name: str, evaluated: Evaluated) -> dict[str, Any]:
    """The gates' decision on an evaluation, kept in the summary and told. A resumed run keeps its own."""
    rules, section = work.resolved.train.gates, SECTIONS[name]
    key = digest_of([asdict(rules), evaluated.protocol, evaluated.checkpoint, work.request.baseline_run_id])
    known = work.summary.values["gates"].get(name, {})
    search = search_of(work)
    champion = search.champions.find(section, evaluated.protocol) or {"checkpoint": None, "run_id": None}
    if known.get("key") == key and (work.resumed or champion["run_id"] == work.run_id):
        return dict(known)
    decision: dict[str, Any]
    if champion["checkpoint"] == evaluated.checkpoint and work.request.baseline_run_id is None:
        decision = {"status": "champion", "passed": True, "reasons": [], "gates": [], "baseline": None}
    else:
        baseline = find_baseline(search, section, evaluated, work.run_id, rules)
        decision = _judged(work, section, evaluated, baseline, rules)
    decision |= {"key": key, "protocol": evaluated.protocol, "checkpoint": evaluated.checkpoint}
    work.summary.gate(name, decision)
    tell(work, name, decision)
    return decision


def _judged(
    work: Work, section: str, evaluated: Evaluated, baseline: Baseline | None, rules: GatesConfig
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


def rows_of(
    work: Work, evaluations: Mapping[str, Evaluated], files: Mapping[str, list[Path]], label: str = ""
) -> list[Row]:
    """A row for each evaluation, by the names of their steps; `label` in place of the names."""
    revision = environment()["git"]
    training = Training(Path(work.summary.values["trainings"][0])).read()
    rows = []
    for name, evaluated in evaluations.items():
        meta, own = evaluated.meta, work.summary.values["steps"].get(name, {})
        rows.append(
            Row(
                run_id=work.run_id,
                stage=name,
                timestamp=str(own.get("ended") or now()),
                label=label or name,
                status=str(work.summary.values["gates"].get(name, {}).get("status", "")),
                commit=None if revision is None else revision.removesuffix("-dirty"),
                dirty=None if revision is None else revision.endswith("-dirty"),
                config_hash=digest_of(to_dict(work.resolved.train)),
                eval_key=str(own.get("key", "")),
                checkpoint=evaluated.checkpoint,
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
                results=tuple(map(str, files[name])),
                tags=dict(work.request.tags),
                metrics=plain(evaluated.numbers),
            )
        )
    return rows


def promote(
    work: Work,
    decision: Mapping[str, Any],
    evaluations: Mapping[str, Evaluated],
    files: Mapping[str, list[Path]],
    trainings: list[Training],
) -> tuple[dict[str, Any] | None, dict[str, Any]]:
    """The champion that the candidate has become, None where it may not, and the decision that holds.

    Whatever the baseline was, nobody takes a champion's place without being held against it: one that the gates were
    not asked about, as it was promoted since, is judged against under the champions' lock.
    """
    search, full = search_of(work), evaluations["full_eval"]
    with search.champions.locked():
        held = search.champions.find("full", full.protocol)
        if held is not None and held["checkpoint"] == full.checkpoint:
            return held, dict(decision)
        if held is not None and held["checkpoint"] != (decision.get("baseline") or {}).get("checkpoint"):
            baseline = of_champion(search, "full", held)
            again = dict(decision) | _judged(work, "full", full, baseline, work.resolved.train.gates)
            work.summary.gate("full_eval", again)
            tell(work, "full_eval", again)
            if not again["passed"]:
                return None, again
            decision = again
        chosen = _chosen(work, evaluations)
        champion = search.champions.promote(
            Candidate(
                run_id=work.run_id,
                run_dir=work.directory,
                training=trainings[chosen].path,
                config=to_dict(work.resolved.train),
                evaluations={SECTIONS[name]: evaluated for name, evaluated in evaluations.items()},
                files={SECTIONS[name]: own for name, own in files.items()},
            )
        )
    return champion, dict(decision)


def relabel(work: Work, champion: Mapping[str, Any], rows: list[Row]) -> None:
    """The leaderboard says who is champion now, and who was."""
    search = search_of(work)
    former = {item["run_id"] for item in champion["history"]} - {champion["run_id"]}
    label = work.request.champion_label
    old = [row for row in search.board.read() if row.run_id in former and row.label == label]
    old = [replace(row, label=f"former_{label}") for row in old if row.task == champion["task"]]
    search.board.add([*old, *(replace(row, label=label) for row in rows)])


def _chosen(work: Work, evaluations: Mapping[str, Evaluated]) -> int:
    """Which of several seeds stands for them: the best by the small evaluation, which no test trajectory is in."""
    rules = work.resolved.train.gates
    results = evaluations.get("small_eval", evaluations["full_eval"]).results
    values = [measures(result)[rules.metric] for result in results]
    gains = [improvement(value, values[0], rules, rules.metric) for value in values]
    return gains.index(max(gains))
