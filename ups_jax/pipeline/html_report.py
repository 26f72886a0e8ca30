"""The page of a pipeline run: what became of it and why, its numbers beside baselines and champion, its pictures."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from html import escape
from pathlib import Path
from typing import Any

from ups_jax.config import to_dict
from ups_jax.core.files import write_atomically
from ups_jax.evaluation.plots.html_report import (
    display_name,
    html_figure,
    html_page,
    html_table,
    html_table_row,
    json_block,
    result_tables,
)
from ups_jax.pipeline.context import Work
from ups_jax.pipeline.scores import METRICS, SECTIONS, Evaluation

_TITLES = {
    "promoted": "is the champion now",
    "champion": "has the champion's checkpoint",
    "refused": "is refused",
    "evaluated": "was evaluated, and nothing was to be promoted",
}
_PASSING = ("pass", "not_applicable", "no_baseline")


def write_report(path: Path, work: Work, results: Mapping[str, Evaluation], champion: Mapping[str, Any] | None) -> None:
    """Write the page. Raises `StorageError`."""
    last = list(results.values())[-1:]
    pictures = {item.name: item.read_bytes() for result in last for item in sorted(_plots(result.files[0]).glob("*.*"))}
    write_atomically(path, render(work.summary.values, results, pictures, to_dict(work.resolved.train), champion))


def render(
    summary: Mapping[str, Any],
    results: Mapping[str, Evaluation],
    pictures: Mapping[str, bytes],
    config: Mapping[str, Any],
    champion: Mapping[str, Any] | None = None,
) -> str:
    """The page as a string: `results` are the evaluations by the names of their steps, of several seeds the first one's
    with the means in what is compared; `pictures` PNG and GIF files by name."""
    body = [
        f"<h1>Run {escape(str(summary['run_id']))} {_TITLES[summary['outcome']]}</h1>",
        *(f'<p class="bad">{escape(text)}</p>' for text in _reasons(summary)),
    ]
    for name in SECTIONS:
        if name in summary["gates"]:
            body += _gates(name, summary["gates"][name], results.get(name))
    if champion is not None and champion["run_id"] != summary["run_id"] and "full_eval" in results:
        numbers = champion["evaluations"]["full"]["numbers"]
        body += [f"<h2>{escape('Beside the champion ' + champion['run_id'])}</h2>"]
        body += [_beside(results["full_eval"].numbers, numbers, "champion")]
    for name, result in reversed(list(results.items())):
        meta, seeds = result.meta, len(result.results)
        title = f"{display_name(name)}: {meta['data']['split']} split, {meta['trajectories']} trajectories"
        title += f", the first of {seeds} seeds" if seeds > 1 else ""
        body += [f"<h2>{escape(title)}</h2>", *result_tables(result.results[0])]
    films = [item for item in pictures if item.endswith(".gif")]
    if films:
        body += ["<h2>Rollout</h2>", *(html_figure(Path(item).stem, pictures[item], "gif") for item in films)]
    body += ["<h2>Plots</h2>"] if len(films) < len(pictures) else []
    body += [html_figure(Path(item).stem, content) for item, content in pictures.items() if item.endswith(".png")]
    body += ["<h2>Steps</h2>", _steps(summary["steps"]), "<h2>Environment</h2>", json_block(summary["environment"])]
    for name, result in results.items():
        facts = {key: value for key, value in result.meta.items() if key != "tasks"}
        body += [f"<h2>{escape(display_name(name))}: facts</h2>", json_block(facts)]
    body += ["<h2>Configuration</h2>", json_block(config)]
    return html_page(f"Run {summary['run_id']}", body)


def _reasons(summary: Mapping[str, Any]) -> list[str]:
    """Why it is not promoted, by the gates that were asked last: those of the full evaluation overrule."""
    gates = [summary["gates"][name] for name in SECTIONS if name in summary["gates"]]
    return list(gates[-1].get("reasons", ())) if gates else []


def _gates(name: str, decision: Mapping[str, Any], result: Evaluation | None) -> Iterator[str]:
    """The gates' answers with their numbers, and the candidate beside what it was held against."""
    baseline = decision.get("baseline")
    against = f" against {baseline['label']} {baseline['run_id']}" if baseline else ""
    yield f"<h2>{escape(f'Gates of the {display_name(name)}: ' + display_name(decision['status']) + against)}</h2>"
    if decision["gates"]:
        rows = []
        for gate in decision["gates"]:
            cells = [gate["key"], gate["kind"], display_name(gate["status"])]
            cells += [_number(gate[key]) for key in ("candidate", "baseline", "limit")] + [gate["message"]]
            rows.append(html_table_row(map(escape, cells), "" if gate["status"] in _PASSING else "bad"))
        yield html_table(("gate", "kind", "answer", "candidate", "baseline", "limit", "in words"), rows)
    if baseline and result is not None:
        yield _beside(result.numbers, baseline["numbers"], "baseline")


def _beside(own: Mapping[str, float], theirs: Mapping[str, float | None], whose: str) -> str:
    rows = []
    for name in (*METRICS, "wall_clock", "ece"):
        if name not in own or name not in theirs:
            continue
        number = theirs[name]
        change = f"{100 * (own[name] / number - 1):+.1f} %" if number else ""
        cells = [display_name(name), _number(own[name]), _number(number), change]
        rows.append(html_table_row(map(escape, cells)))
    return html_table(("", "this run", whose, "change"), rows)


def _steps(steps: Mapping[str, Mapping[str, Any]]) -> str:
    rows = []
    for name, own in steps.items():
        memory = own.get("peak_memory_mib")
        cells = [
            display_name(name),
            str(own.get("status", "")),
            "" if own.get("seconds") is None else f"{own['seconds']:.1f} s",
            "" if memory is None else f"{memory:.0f} MiB",
            str(own.get("reused_from") or own.get("reason") or ""),
        ]
        rows.append(html_table_row(map(escape, cells)))
    return html_table(("step", "status", "wall time", "peak memory", ""), rows)


def _plots(evaluation: Path) -> Path:
    """The folder of an evaluation's pictures, beside that of its JSON."""
    return evaluation.parent.parent / "plots" / evaluation.stem


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"
