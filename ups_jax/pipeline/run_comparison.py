"""Two runs of the leaderboard side by side: what differs in their configurations, numbers with intervals, curves."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import yaml

from ups_jax.config import load, to_dict
from ups_jax.core.errors import ConfigError, DataError
from ups_jax.core.files import read_json, write_atomically
from ups_jax.evaluation.plots.html_report import html_figure, html_page, html_table, html_table_row
from ups_jax.pipeline.leaderboard import Row
from ups_jax.pipeline.request import config_path
from ups_jax.pipeline.scores import METRICS, Evaluation
from ups_jax.tracking import flatten_sections, read_jsonl


@dataclass(frozen=True, kw_only=True)
class ComparedRun:
    """One of two runs: its configuration, the evaluation that is compared, the records of its training."""

    run_id: str
    config: Mapping[str, Any]
    evaluated: Evaluation
    records: list[dict[str, Any]]


def load_compared_runs(rows: list[Row], first: str, second: str) -> tuple[ComparedRun, ComparedRun]:
    """Two runs by their ids, by the last evaluation that both have by one protocol, from the files that their rows
    name; ConfigError where there are none."""
    each = [{row.protocol: row for row in rows if row.run_id == run_id} for run_id in (first, second)]
    for run_id, own in zip((first, second), each, strict=True):
        if not own:
            known = ", ".join(dict.fromkeys(row.run_id for row in rows)) or "none"
            raise ConfigError(f"run {run_id}: is not on the leaderboard; there are {known}")
    shared = [protocol for protocol in each[0] if protocol in each[1]]
    if not shared:
        raise ConfigError(f"runs {first}, {second}: have no evaluation of the same data, split and horizon to compare")
    one, other = (_side(own[shared[-1]]) for own in each)
    return one, other


def _side(row: Row) -> ComparedRun:
    try:
        directory = Path(row.results[0]).parent.parent
        summary = read_json(directory / "summary.json")
        evaluated = Evaluation.read([Path(name) for name in row.results])
    except (OSError, ValueError, IndexError, DataError) as error:
        raise ConfigError(f"run {row.run_id}: its files are gone ({error}); run it again") from None
    metrics = Path(summary["trainings"][0]) / "metrics.jsonl"
    return ComparedRun(
        run_id=row.run_id,
        config=to_dict(load(config_path(directory, "train"))),
        evaluated=evaluated,
        records=read_jsonl(metrics) if metrics.exists() else [],
    )


def config_difference(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    """Dotted keys whose values differ, with both."""
    flat_one, flat_other = (flatten_sections(config, separator=".") for config in (one, other))
    keys = [*flat_one, *(key for key in flat_other if key not in flat_one)]
    return [(key, flat_one.get(key), flat_other.get(key)) for key in keys if flat_one.get(key) != flat_other.get(key)]


def metric_table(one: ComparedRun, other: ComparedRun) -> list[tuple[str, ...]]:
    """Name, both values with their intervals where they have any, and the change in percent."""
    numbers = [side.evaluated.numbers for side in (one, other)]
    rows = []
    for name in (*METRICS, *(f"one_step/{metric}" for metric in METRICS), "wall_clock", "ece"):
        if name in numbers[0] and name in numbers[1]:
            first, second = (values[name] for values in numbers)
            change = f"{100 * (second / first - 1):+.1f} %" if first else ""
            cells = [_with_interval(side.evaluated, name, value) for side, value in ((one, first), (other, second))]
            rows.append((name, *cells, change))
    return rows


def write_comparison(path: Path, one: ComparedRun, other: ComparedRun) -> None:
    """A self-contained page of it all. Raises `StorageError`."""
    head = ("", one.run_id, other.run_id)
    metrics = [html_table_row(map(escape, cells)) for cells in metric_table(one, other)]
    changed = [(key, _text(first), _text(second)) for key, first, second in config_difference(one.config, other.config)]
    body = [
        f"<h1>{escape(one.run_id)} and {escape(other.run_id)}</h1>",
        html_table((*head, "change"), metrics),
        "<h2>Configuration</h2>",
        html_table(head, [html_table_row(map(escape, cells)) for cells in changed]) if changed else "<p>the same</p>",
        "<h2>Curves</h2>",
        html_figure("curves", curves(one, other)),
    ]
    write_atomically(path, html_page(f"{one.run_id} and {other.run_id}", body))


def curves(one: ComparedRun, other: ComparedRun) -> bytes:
    """Loss and validation error of both over their steps, a row a stage, as PNG."""
    from matplotlib.figure import Figure

    from ups_jax.evaluation.plots.fields import disable_math_text

    stages = list(dict.fromkeys(record["stage"] for side in (one, other) for record in side.records)) or ["operator"]
    drawn = Figure(figsize=(11, 3.4 * len(stages)), layout="constrained")
    for row, stage in zip(drawn.subplots(len(stages), 2, squeeze=False), stages, strict=True):
        for axis, title in zip(row, ("loss", "validation/rollout"), strict=True):
            for side, style in ((one, "-"), (other, "--")):
                points = [
                    (item["step"], item[title]) for item in side.records if item["stage"] == stage and item.get(title)
                ]
                if points:
                    axis.plot(*zip(*points, strict=True), style, label=side.run_id)
                    axis.set_yscale("log")
                    axis.legend(frameon=False, fontsize=8)
            axis.set(title=f"{stage}: {title}", xlabel="step")
            axis.grid(alpha=0.25)
    buffer = io.BytesIO()
    disable_math_text(drawn)
    drawn.savefig(buffer, dpi=110, format="png")
    return buffer.getvalue()


def _with_interval(evaluated: Evaluation, name: str, value: float) -> str:
    if len(evaluated.results) > 1:
        return f"{value:.4g} (mean of {len(evaluated.results)} seeds)"
    (result,) = evaluated.results
    section, _, metric = name.rpartition("/")
    for own in result["intervals"].values():
        bounds = own.get(section or ("rollout" if "rollout" in own else "steady"), {}).get(metric)
        if bounds is not None and None not in bounds and len(result["intervals"]) == 1:
            return f"{value:.4g} ({bounds[0]:.3g} to {bounds[1]:.3g})"
    return f"{value:.4g}"


def _text(value: Any) -> str:
    return yaml.safe_dump(value, default_flow_style=True).removesuffix("\n...\n").strip()
