"""The HTML report of an evaluation: metrics with their baselines, plots, configuration and environment.

The page is self-contained: it has no scripts and no external resources, images are data URIs, and all strings are
escaped. The report of a pipeline uses the HTML helpers as well.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from ups_jax.core.files import write_atomically
from ups_jax.evaluation.result import trained_on_text
from ups_jax.metrics import ENSEMBLE_METRICS

_STYLE = """
:root { color-scheme: light dark; --line: #c8c8c8; --soft: #f3f3f3; --accent: #0072b2; }
@media (prefers-color-scheme: dark) { :root { --line: #4a4a4a; --soft: #262626; --accent: #6db6e8; } }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 76rem; margin: 2rem auto; padding: 0 1rem; }
h1, h2 { line-height: 1.2; } h2 { margin-top: 2.5rem; border-bottom: 1px solid var(--line); }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; } .wide { overflow-x: auto; }
th, td { padding: .3rem .8rem; border-bottom: 1px solid var(--line); text-align: right; }
th:first-child, td:first-child { text-align: left; } tr.model { font-weight: 600; color: var(--accent); }
figure { margin: 1.5rem 0; } img { max-width: 100%; background: #fff; border-radius: 4px; }
figcaption, .note { opacity: .75; font-size: .9rem; } .bad { color: #d55e00; font-weight: 600; }
pre { background: var(--soft); padding: 1rem; overflow-x: auto; font-size: .85rem; }
"""
_SECTIONS = {"one_step": "One step", "rollout": "Rollout", "steady": "Steady state"}
_HIDDEN = ("nrmse_by_channel", "nrmse_by_time", "nonfinite")


def write_report(path: Path, result: Mapping[str, Any], plots: Sequence[Path], run: Mapping[str, Any]) -> None:
    """Write the HTML report of an evaluation.

    Args:
        path: The HTML file to write.
        result: The contents of the evaluation JSON.
        plots: PNG files to include.
        run: The contents of run.json.

    Raises:
        StorageError: The file cannot be written.
    """
    page = render_report(result, {plot.stem: plot.read_bytes() for plot in plots}, run)
    write_atomically(path, page)


def render_report(result: Mapping[str, Any], plots: Mapping[str, bytes], run: Mapping[str, Any]) -> str:
    """Return the HTML report of an evaluation.

    Args:
        result: The contents of the evaluation JSON.
        plots: Contents of PNG files by caption.
        run: The contents of run.json.
    """
    tasks = ", ".join(result["metrics"])
    environment = {key: value for key, value in run.items() if key != "config"}
    body = [
        f"<h1>{escape(tasks)}</h1>",
        f'<p class="note">{escape(str(result["meta"]["protocol"]))}</p>',
        *result_tables(result),
        "<h2>Plots</h2>" if plots else "",
        *(html_figure(caption, content) for caption, content in plots.items()),
        "<h2>Evaluation</h2>",
        json_block({key: value for key, value in result["meta"].items() if key != "tasks"}),
        "<h2>Environment and run</h2>",
        json_block(environment),
        "<h2>Configuration</h2>",
        json_block(run["config"]),
    ]
    return html_page(tasks, body)


def html_page(title: str, body: Sequence[str]) -> str:
    """Return an HTML page with a title in plain text and a body of HTML elements."""
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<link rel="icon" href="data:,">\n'
        f"<title>{escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
        + "\n".join(part for part in body if part)
        + "\n</body>\n</html>\n"
    )


def result_tables(result: Mapping[str, Any]) -> Iterator[str]:
    """Yield the HTML tables of an evaluation JSON, one for each task and section.

    Above the tables of a task, a line states how many of its trajectories the run was trained on. The rows are the run,
    its bootstrap interval, its variants and the baselines.
    """
    for task, sections in result["metrics"].items():
        yield f"<h2>{escape(task)}</h2>"
        task_meta = result["meta"].get("tasks", {}).get(task, {})
        # Older results do not have it.
        if "trained_on" in task_meta:
            css_class = "bad" if task_meta["trained_on"] else "note"
            yield f'<p class="{css_class}">{escape(trained_on_text(task_meta))}</p>'
        for section, values in sections.items():
            compared = [
                (name, tasks[task][section])
                for group in ("variants", "baselines")
                for name, tasks in result[group].items()
                if section in tasks.get(task, ())
            ]
            rows = {"this run": values, **dict(compared)}
            metrics = [name for name in values if name not in _HIDDEN]
            interval = result["intervals"].get(task, {}).get(section, {})
            yield f"<h3>{escape(_SECTIONS.get(section, section))}</h3>"
            if values["nonfinite"]:
                yield f'<p class="bad">{int(values["nonfinite"])} predicted frames are not finite.</p>'
            lines = []
            for name, row in rows.items():
                css_class = "model" if name == "this run" else "baseline"
                lines.append(
                    html_table_row([escape(name), *(_html_number(row[metric]) for metric in metrics)], css_class)
                )
                if name == "this run" and interval:
                    ranges = (_html_interval(interval.get(metric)) for metric in metrics)
                    lines.append(html_table_row(["95 % interval", *ranges]))
            yield html_table(["", *map(display_name, metrics)], lines)
            yield from _channels_html(rows)
            yield from _ensemble_html(rows)


def _channels_html(rows: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """Yield a table of the nRMSE of each channel as HTML, if there are several; older results do not have it."""
    channels = rows["this run"].get("nrmse_by_channel", {})
    if len(channels) < 2:
        return
    yield "<h3>nRMSE by channel</h3>"
    lines = [
        html_table_row(
            [escape(name), *(_html_number(row["nrmse_by_channel"][channel]) for channel in channels)],
            "model" if name == "this run" else "baseline",
        )
        for name, row in rows.items()
    ]
    yield html_table(["", *channels], lines)


def _ensemble_html(rows: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """Yield the run's mean absolute error and a table of ensemble scores as HTML, if `rows` contains ensembles."""
    ensembles = {name: row for name, row in rows.items() if ENSEMBLE_METRICS[0] in row}
    if not ensembles:
        return
    yield "<h3>Ensembles</h3>"
    mae = _html_number(rows["this run"]["mae"])
    yield f'<p class="note">The CRPS of this run without an ensemble is its mean absolute error, {mae}.</p>'
    metrics = [name for name in ENSEMBLE_METRICS if any(name in row for row in ensembles.values())]
    lines = [
        html_table_row([escape(name), *(_html_number(row[metric]) for metric in metrics)], "model")
        for name, row in ensembles.items()
    ]
    yield html_table(["", *map(display_name, metrics)], lines)


def html_table(head: Sequence[str], rows: Sequence[str]) -> str:
    """Return an HTML table with a header in plain text and rows from `html_table_row`."""
    cells = "".join(f"<th>{escape(name)}</th>" for name in head)
    return f'<div class="wide"><table><tr>{cells}</tr>{"".join(rows)}</table></div>'


def html_table_row(cells: Iterable[str], css_class: str = "") -> str:
    """Return an HTML table row from cells in HTML, with a class of the style sheet."""
    start = f'<tr class="{css_class}">' if css_class else "<tr>"
    return start + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>"


def html_figure(caption: str, content: bytes, image_format: str = "png") -> str:
    """Return an HTML figure with an embedded image and a caption in plain text.

    Args:
        caption: The caption; underscores become spaces.
        content: The contents of the image file.
        image_format: `png` or `gif`.
    """
    text = escape(caption, quote=True)
    data = base64.b64encode(content).decode("ascii")
    return (
        f'<figure><img alt="{text}" src="data:image/{image_format};base64,{data}">'
        f"<figcaption>{escape(display_name(caption))}</figcaption></figure>"
    )


def json_block(values: Any) -> str:
    """Return JSON values as preformatted HTML text."""
    return f"<pre>{escape(json.dumps(values, indent=2, ensure_ascii=False, default=str))}</pre>"


def _html_number(value: float | None) -> str:
    """Return a number as HTML; None stands for a non-finite number."""
    return '<span class="bad">not finite</span>' if value is None else f"{value:.3g}"


def _html_interval(bounds: Sequence[float | None] | None) -> str:
    """Return the bounds of a confidence interval as HTML, an empty string for None."""
    return "" if bounds is None else " to ".join(_html_number(bound) for bound in bounds)


def display_name(name: str) -> str:
    """Return a name for display, with spaces instead of underscores."""
    return name.replace("_", " ")
