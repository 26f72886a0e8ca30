"""HTML report of a pipeline run: outcome, gates, plots, and metrics beside those of the baseline and the champion."""

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
from ups_jax.pipeline.context import PipelineRun
from ups_jax.pipeline.scores import METRICS, SECTIONS, Evaluation

_TITLES = {
    "promoted": "is the new champion",
    "champion": "has the champion's checkpoint",
    "refused": "is refused",
    "evaluated": "was evaluated without promotion",
}
_PASSING = ("pass", "not_applicable", "no_baseline")


def write_report(
    path: Path, pipeline: PipelineRun, evaluations: Mapping[str, Evaluation], champion: Mapping[str, Any] | None
) -> None:
    """Write the HTML report of a pipeline run.

    Args:
        evaluations: The evaluations by `small_eval` and `full_eval`.
        champion: Record of the current champion, or None.

    Raises:
        StorageError: If the file cannot be written.
    """
    last = list(evaluations.values())[-1:]
    pictures = {
        item.name: item.read_bytes() for result in last for item in sorted(_plots_folder(result.files[0]).glob("*.*"))
    }
    write_atomically(
        path, render_html(pipeline.summary.values, evaluations, pictures, to_dict(pipeline.resolved.train), champion)
    )


def render_html(
    summary: Mapping[str, Any],
    evaluations: Mapping[str, Evaluation],
    pictures: Mapping[str, bytes],
    config: Mapping[str, Any],
    champion: Mapping[str, Any] | None = None,
) -> str:
    """Return the report of a pipeline run as an HTML page.

    With several seeds, comparisons show the mean over the seeds, and detailed tables show the first seed.

    Args:
        summary: Values of the run's summary.
        evaluations: The evaluations by `small_eval` and `full_eval`.
        pictures: Contents of the PNG and GIF files to embed, by file name.
        champion: Record of the current champion, or None.
    """
    body = [
        f"<h1>Run {escape(str(summary['run_id']))} {_TITLES[summary['outcome']]}</h1>",
        *(f'<p class="bad">{escape(text)}</p>' for text in _refusal_reasons(summary)),
    ]
    for name in SECTIONS:
        if name in summary["gates"]:
            body += _gates_html(name, summary["gates"][name], evaluations.get(name))
    if champion is not None and champion["run_id"] != summary["run_id"] and "full_eval" in evaluations:
        numbers = champion["evaluations"]["full"]["numbers"]
        body += [f"<h2>{escape('Comparison with the champion ' + champion['run_id'])}</h2>"]
        body += [_comparison_html(evaluations["full_eval"].numbers, numbers, "champion")]
    for name, result in reversed(list(evaluations.items())):
        meta, seeds = result.meta, len(result.results)
        title = f"{display_name(name)}: {meta['data']['split']} split, {meta['trajectories']} trajectories"
        title += f", the first of {seeds} seeds" if seeds > 1 else ""
        body += [f"<h2>{escape(title)}</h2>", *result_tables(result.results[0])]
    films = [item for item in pictures if item.endswith(".gif")]
    if films:
        body += ["<h2>Rollout</h2>", *(html_figure(Path(item).stem, pictures[item], "gif") for item in films)]
    body += ["<h2>Plots</h2>"] if len(films) < len(pictures) else []
    body += [html_figure(Path(item).stem, content) for item, content in pictures.items() if item.endswith(".png")]
    body += [
        "<h2>Steps</h2>",
        _steps_html(summary["steps"]),
        "<h2>Environment</h2>",
        json_block(summary["environment"]),
    ]
    for name, result in evaluations.items():
        facts = {key: value for key, value in result.meta.items() if key != "tasks"}
        body += [f"<h2>{escape(display_name(name))}: facts</h2>", json_block(facts)]
    body += ["<h2>Configuration</h2>", json_block(config)]
    return html_page(f"Run {summary['run_id']}", body)


def _refusal_reasons(summary: Mapping[str, Any]) -> list[str]:
    """Return the reasons why the run was not promoted, from its last gate decision."""
    gates = [summary["gates"][name] for name in SECTIONS if name in summary["gates"]]
    return list(gates[-1].get("reasons", ())) if gates else []


def _gates_html(step_name: str, decision: Mapping[str, Any], evaluation: Evaluation | None) -> Iterator[str]:
    """Yield a heading, the table of gates, and the comparison of an evaluation with its baseline, as HTML."""
    baseline = decision.get("baseline")
    against = f" against {baseline['label']} {baseline['run_id']}" if baseline else ""
    yield f"<h2>{escape(f'Gates of the {display_name(step_name)}: ' + display_name(decision['status']) + against)}</h2>"
    if decision["gates"]:
        rows = []
        for gate in decision["gates"]:
            cells = [gate["key"], gate["kind"], display_name(gate["status"])]
            cells += [_format_number(gate[key]) for key in ("candidate", "baseline", "limit")] + [gate["message"]]
            rows.append(html_table_row(map(escape, cells), "" if gate["status"] in _PASSING else "bad"))
        yield html_table(("metric", "kind", "status", "candidate", "baseline", "limit", "message"), rows)
    if baseline and evaluation is not None:
        yield _comparison_html(evaluation.numbers, baseline["numbers"], "baseline")


def _comparison_html(numbers: Mapping[str, float], reference: Mapping[str, float | None], reference_name: str) -> str:
    """Return an HTML table of the metrics of this run and of a reference run, with the change in percent."""
    rows = []
    for name in (*METRICS, "wall_clock", "ece"):
        if name not in numbers or name not in reference:
            continue
        number = reference[name]
        change = f"{100 * (numbers[name] / number - 1):+.1f} %" if number else ""
        cells = [display_name(name), _format_number(numbers[name]), _format_number(number), change]
        rows.append(html_table_row(map(escape, cells)))
    return html_table(("", "this run", reference_name, "change"), rows)


def _steps_html(steps: Mapping[str, Mapping[str, Any]]) -> str:
    """Return an HTML table of the steps with status, wall time and peak memory."""
    rows = []
    for name, step in steps.items():
        memory = step.get("peak_memory_mib")
        cells = [
            display_name(name),
            str(step.get("status", "")),
            "" if step.get("seconds") is None else f"{step['seconds']:.1f} s",
            "" if memory is None else f"{memory:.0f} MiB",
            str(step.get("reused_from") or step.get("reason") or ""),
        ]
        rows.append(html_table_row(map(escape, cells)))
    return html_table(("step", "status", "wall time", "peak memory", ""), rows)


def _plots_folder(evaluation_file: Path) -> Path:
    """Return the folder with the plots of an evaluation."""
    return evaluation_file.parent.parent / "plots" / evaluation_file.stem


def _format_number(value: float | None) -> str:
    """Return a number with four significant digits, or an empty string for None."""
    return "" if value is None else f"{value:.4g}"
