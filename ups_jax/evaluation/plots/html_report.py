"""One self-contained HTML page of a run: the numbers beside their baselines, the plots, configuration, environment.

No script and nothing from outside: pictures are data URIs, and every string is escaped.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from ups_jax.core.files import write_atomically
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
_HIDDEN = ("nrmse_by_time", "nonfinite")


def write_report(path: Path, result: Mapping[str, Any], plots: Sequence[Path], run: Mapping[str, Any]) -> None:
    """Write the page of an evaluation JSON, its plots and the run's run.json. Raises `StorageError`."""
    page = render(result, {plot.stem: plot.read_bytes() for plot in plots}, run)
    write_atomically(path, page)


def render(result: Mapping[str, Any], plots: Mapping[str, bytes], run: Mapping[str, Any]) -> str:
    """The page as a string; `plots` are PNG files by caption."""
    tasks = ", ".join(result["metrics"])
    environment = {key: value for key, value in run.items() if key != "config"}
    body = [
        f"<h1>{escape(tasks)}</h1>",
        f'<p class="note">{escape(str(result["meta"]["protocol"]))}</p>',
        *tables(result),
        "<h2>Plots</h2>" if plots else "",
        *(figure(caption, content) for caption, content in plots.items()),
        "<h2>Evaluation</h2>",
        block({key: value for key, value in result["meta"].items() if key != "tasks"}),
        "<h2>Environment and run</h2>",
        block(environment),
        "<h2>Configuration</h2>",
        block(run["config"]),
    ]
    return page(tasks, body)


def page(title: str, body: Sequence[str]) -> str:
    """A whole page of parts that are HTML already."""
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<link rel="icon" href="data:,">\n'
        f"<title>{escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
        + "\n".join(part for part in body if part)
        + "\n</body>\n</html>\n"
    )


def tables(result: Mapping[str, Any]) -> Iterator[str]:
    """For each task and way to predict a table: this run first, its interval below, then the baselines."""
    for task, sections in result["metrics"].items():
        yield f"<h2>{escape(task)}</h2>"
        for section, values in sections.items():
            others = [
                (name, tasks[task][section])
                for kind in ("variants", "baselines")
                for name, tasks in result[kind].items()
                if section in tasks.get(task, ())
            ]
            rows = {"this run": values, **dict(others)}
            metrics = [name for name in values if name not in _HIDDEN]
            interval = result["intervals"].get(task, {}).get(section, {})
            yield f"<h3>{escape(_SECTIONS.get(section, section))}</h3>"
            if values["nonfinite"]:
                yield f'<p class="bad">{int(values["nonfinite"])} predicted frames are not finite.</p>'
            lines = []
            for name, row in rows.items():
                kind = "model" if name == "this run" else "baseline"
                lines.append(table_row([escape(name), *(_number(row[metric]) for metric in metrics)], kind))
                if name == "this run" and interval:
                    lines.append(table_row(["95 % interval", *(_range(interval.get(metric)) for metric in metrics)]))
            yield table(["", *map(legible, metrics)], lines)
            yield from _ensembles(rows)


def _ensembles(rows: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """The scores of distributions, where there are such, beside the absolute error of the prediction alone."""
    ensembles = {name: row for name, row in rows.items() if ENSEMBLE_METRICS[0] in row}
    if not ensembles:
        return
    yield "<h3>Ensembles</h3>"
    alone = _number(rows["this run"]["mae"])
    yield f'<p class="note">Of this run alone the CRPS is its mean absolute error, {alone}.</p>'
    metrics = [name for name in ENSEMBLE_METRICS if any(name in row for row in ensembles.values())]
    lines = [
        table_row([escape(name), *(_number(row[metric]) for metric in metrics)], "model")
        for name, row in ensembles.items()
    ]
    yield table(["", *map(legible, metrics)], lines)


def table(head: Sequence[str], rows: Sequence[str]) -> str:
    """A table with a line of plain text at its head and rows that are HTML already."""
    cells = "".join(f"<th>{escape(name)}</th>" for name in head)
    return f'<div class="wide"><table><tr>{cells}</tr>{"".join(rows)}</table></div>'


def table_row(cells: Iterable[str], kind: str = "") -> str:
    """A row of cells that are HTML already; `kind` is its class in the style sheet."""
    start = f'<tr class="{kind}">' if kind else "<tr>"
    return start + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>"


def figure(caption: str, content: bytes, kind: str = "png") -> str:
    """A picture, or a film as GIF, that is part of the page."""
    text = escape(caption, quote=True)
    data = base64.b64encode(content).decode("ascii")
    return (
        f'<figure><img alt="{text}" src="data:image/{kind};base64,{data}">'
        f"<figcaption>{escape(legible(caption))}</figcaption></figure>"
    )


def block(values: Any) -> str:
    """JSON values as they are."""
    return f"<pre>{escape(json.dumps(values, indent=2, ensure_ascii=False, default=str))}</pre>"


def _number(value: float | None) -> str:
    return '<span class="bad">not finite</span>' if value is None else f"{value:.3g}"


def _range(bounds: Sequence[float | None] | None) -> str:
    return "" if bounds is None else " to ".join(_number(bound) for bound in bounds)


def legible(name: str) -> str:
    """A name with spaces in place of underscores."""
    return name.replace("_", " ")
