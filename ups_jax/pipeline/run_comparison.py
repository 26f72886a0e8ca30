"""Comparison of two runs of the leaderboard: configuration differences, metrics with intervals, training curves."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from ups_jax.config import load, to_dict, yaml
from ups_jax.core.commands import command
from ups_jax.core.errors import ConfigError, DataError
from ups_jax.core.files import read_json, write_atomically
from ups_jax.evaluation.plots.html_report import html_figure, html_page, html_table, html_table_row
from ups_jax.pipeline.leaderboard import Row
from ups_jax.pipeline.request import config_path
from ups_jax.pipeline.scores import METRICS, Evaluation
from ups_jax.tracking import flatten_sections, read_jsonl


@dataclass(frozen=True, kw_only=True)
class ComparedRun:
    """One of the two runs of a comparison.

    Attributes:
        records: Records of the training's `metrics.jsonl`.
    """

    run_id: str
    config: Mapping[str, Any]
    evaluation: Evaluation
    records: list[dict[str, Any]]


def load_compared_runs(rows: list[Row], first: str, second: str) -> tuple[ComparedRun, ComparedRun]:
    """Load two runs with their evaluations by the newest protocol by which both were evaluated.

    Args:
        first: Id of the first run.
        second: Id of the second run.

    Raises:
        ConfigError: If a run is not on the leaderboard, its files are missing, or there is no common protocol.
    """
    by_protocol = [{row.protocol: row for row in rows if row.run_id == run_id} for run_id in (first, second)]
    for run_id, evaluations in zip((first, second), by_protocol, strict=True):
        if not evaluations:
            available = ", ".join(dict.fromkeys(row.run_id for row in rows)) or "none"
            raise ConfigError(f"run {run_id} is not on the leaderboard; choose from these runs: {available}")
    shared = [protocol for protocol in by_protocol[0] if protocol in by_protocol[1]]
    if not shared:
        raise ConfigError(
            f"runs {first} and {second} were evaluated by different protocols (task, split, trajectories and horizon); "
            f"choose two runs with the same protocol from `{command('leaderboard')}`"
        )
    first_run, second_run = (_load_run(evaluations[shared[-1]]) for evaluations in by_protocol)
    return first_run, second_run


def _load_run(row: Row) -> ComparedRun:
    """Load the run of a leaderboard row from its evaluation files, summary, configuration and metrics."""
    try:
        directory = Path(row.results[0]).parent.parent
        summary = read_json(directory / "summary.json")
        evaluation = Evaluation.read([Path(name) for name in row.results])
    except (OSError, ValueError, IndexError, DataError) as error:
        raise ConfigError(
            f"run {row.run_id}: evaluation or summary cannot be read ({error}); run the pipeline again"
        ) from None
    metrics = Path(summary["trainings"][0]) / "metrics.jsonl"
    return ComparedRun(
        run_id=row.run_id,
        config=to_dict(load(config_path(directory, "train"))),
        evaluation=evaluation,
        records=read_jsonl(metrics) if metrics.exists() else [],
    )


def config_difference(first: Mapping[str, Any], second: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    """Return the dotted keys at which two configurations differ, each with the first and second value."""
    first_values, second_values = (flatten_sections(config, separator=".") for config in (first, second))
    keys = [*first_values, *(key for key in second_values if key not in first_values)]
    return [
        (key, first_values.get(key), second_values.get(key))
        for key in keys
        if first_values.get(key) != second_values.get(key)
    ]


def metric_table(first: ComparedRun, second: ComparedRun) -> list[tuple[str, ...]]:
    """Return a row of text cells for each metric: name, first and second value, and change in percent."""
    numbers = [run.evaluation.numbers for run in (first, second)]
    rows = []
    for name in (*METRICS, *(f"one_step/{metric}" for metric in METRICS), "wall_clock", "ece"):
        if name in numbers[0] and name in numbers[1]:
            values = [run_numbers[name] for run_numbers in numbers]
            change = f"{100 * (values[1] / values[0] - 1):+.1f} %" if values[0] else ""
            cells = [
                _format_metric(run.evaluation, name, value) for run, value in zip((first, second), values, strict=True)
            ]
            rows.append((name, *cells, change))
    return rows


def write_comparison(path: Path, first: ComparedRun, second: ComparedRun) -> None:
    """Write the comparison of two runs as a self-contained HTML page.

    Raises:
        StorageError: If the file cannot be written.
    """
    head = ("", first.run_id, second.run_id)
    metrics = [html_table_row(map(escape, cells)) for cells in metric_table(first, second)]
    changed = [(key, _to_yaml(old), _to_yaml(new)) for key, old, new in config_difference(first.config, second.config)]
    body = [
        f"<h1>{escape(first.run_id)} and {escape(second.run_id)}</h1>",
        html_table((*head, "change"), metrics),
        "<h2>Configuration</h2>",
        html_table(head, [html_table_row(map(escape, cells)) for cells in changed]) if changed else "<p>identical</p>",
        "<h2>Curves</h2>",
        html_figure("curves", plot_curves_png(first, second)),
    ]
    write_atomically(path, html_page(f"{first.run_id} and {second.run_id}", body))


def plot_curves_png(first: ComparedRun, second: ComparedRun) -> bytes:
    """Return a PNG image of the loss and validation error of two runs over the steps, with one row per stage."""
    from matplotlib.figure import Figure

    from ups_jax.evaluation.plots.fields import disable_math_text

    stages = list(dict.fromkeys(record["stage"] for run in (first, second) for record in run.records)) or ["operator"]
    figure = Figure(figsize=(11, 3.4 * len(stages)), layout="constrained")
    for row, stage in zip(figure.subplots(len(stages), 2, squeeze=False), stages, strict=True):
        for axis, title in zip(row, ("loss", "validation/rollout"), strict=True):
            for run, style in ((first, "-"), (second, "--")):
                points = [
                    (item["step"], item[title]) for item in run.records if item["stage"] == stage and item.get(title)
                ]
                if points:
                    axis.plot(*zip(*points, strict=True), style, label=run.run_id)
                    axis.set_yscale("log")
                    axis.legend(frameon=False, fontsize=8)
            axis.set(title=f"{stage}: {title}", xlabel="step")
            axis.grid(alpha=0.25)
    buffer = io.BytesIO()
    disable_math_text(figure)
    figure.savefig(buffer, dpi=110, format="png")
    return buffer.getvalue()


def _format_metric(evaluation: Evaluation, name: str, value: float) -> str:
    """Return the value of a metric as text, with the number of seeds, or for one seed the confidence interval."""
    if len(evaluation.results) > 1:
        return f"{value:.4g} (mean of {len(evaluation.results)} seeds)"
    (result,) = evaluation.results
    section, _, metric = name.rpartition("/")
    for task in result["intervals"].values():
        bounds = task.get(section or ("rollout" if "rollout" in task else "steady"), {}).get(metric)
        if bounds is not None and None not in bounds and len(result["intervals"]) == 1:
            return f"{value:.4g} ({bounds[0]:.3g} to {bounds[1]:.3g})"
    return f"{value:.4g}"


def _to_yaml(value: Any) -> str:
    """Return the value of a configuration key as one line of YAML."""
    return yaml.dump(value, flow=True).removesuffix("\n...\n").strip()
