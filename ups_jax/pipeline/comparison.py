"""Two runs of the leaderboard side by side: what differs in their configurations, numbers with intervals, curves."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import yaml

from ups_jax.config import load, to_dict
from ups_jax.errors import ConfigError
from ups_jax.evaluation.report import figure, page
from ups_jax.files import write_atomically
from ups_jax.pipeline.leaderboard import Row
from ups_jax.pipeline.measures import METRICS, measures
from ups_jax.pipeline.request import config_path
from ups_jax.tracking import read_jsonl


@dataclass(frozen=True, kw_only=True)
class Side:
    """One of two runs: its configuration, its last evaluation, the records of its training."""

    run_id: str
    config: Mapping[str, Any]
    result: Mapping[str, Any]
    records: list[dict[str, Any]]


def side_of(rows: list[Row], run_id: str) -> Side:
    """A run by its id, from the files that its rows name; ConfigError where it has none."""
    own = [row for row in rows if row.run_id == run_id]
    if not own:
        known = ", ".join(dict.fromkeys(row.run_id for row in rows)) or "none"
        raise ConfigError(f"run {run_id}: is not on the leaderboard; there are {known}")
    try:
        file = Path(own[-1].results[0])
        result = json.loads(file.read_text(encoding="utf-8"))
        directory = file.parent.parent
        summary = json.loads((directory / "summary.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, IndexError) as error:
        raise ConfigError(f"run {run_id}: its files are gone ({error}); run it again") from None
    metrics = Path(summary["trainings"][0]) / "metrics.jsonl"
    return Side(
        run_id=run_id,
        config=to_dict(load(config_path(directory, "train"))),
        result=result,
        records=read_jsonl(metrics) if metrics.exists() else [],
    )


def config_difference(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    """Dotted keys whose values differ, with both."""
    flat_one, flat_other = _flat(one), _flat(other)
    keys = [*flat_one, *(key for key in flat_other if key not in flat_one)]
    return [(key, flat_one.get(key), flat_other.get(key)) for key in keys if flat_one.get(key) != flat_other.get(key)]


def metric_table(one: Side, other: Side) -> list[tuple[str, ...]]:
    """Name, both values with their intervals where they have any, and the change in percent."""
    numbers = [measures(side.result) for side in (one, other)]
    rows = []
    for name in (*METRICS, *(f"one_step/{metric}" for metric in METRICS), "wall_clock", "ece"):
        if name in numbers[0] and name in numbers[1]:
            first, second = (values[name] for values in numbers)
            change = f"{100 * (second / first - 1):+.1f} %" if first else ""
            cells = [_with_interval(side.result, name, value) for side, value in ((one, first), (other, second))]
            rows.append((name, *cells, change))
    return rows


def write_comparison(path: Path, one: Side, other: Side) -> None:
    """A self-contained page of it all. Raises `StorageError`."""
    head = f"<tr><th></th><th>{escape(one.run_id)}</th><th>{escape(other.run_id)}</th>"
    metrics = "".join(_row(cells) for cells in metric_table(one, other))
    changed = [(key, _text(first), _text(second)) for key, first, second in config_difference(one.config, other.config)]
    body = [
        f"<h1>{escape(one.run_id)} and {escape(other.run_id)}</h1>",
        f'<div class="wide"><table>{head}<th>change</th></tr>{metrics}</table></div>',
        "<h2>Configuration</h2>",
        f"<table>{head}</tr>{''.join(_row(cells) for cells in changed)}</table>" if changed else "<p>the same</p>",
        "<h2>Curves</h2>",
        figure("curves", curves(one, other)),
    ]
    write_atomically(path, page(f"{one.run_id} and {other.run_id}", body))


def curves(one: Side, other: Side) -> bytes:
    """Loss and validation error of both over their steps, a row a stage, as PNG."""
    from matplotlib.figure import Figure

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
    drawn.savefig(buffer, dpi=110, format="png")
    return buffer.getvalue()


def _with_interval(result: Mapping[str, Any], name: str, value: float) -> str:
    section, _, metric = name.rpartition("/")
    for own in result["intervals"].values():
        bounds = own.get(section or ("rollout" if "rollout" in own else "steady"), {}).get(metric)
        if bounds is not None and None not in bounds and len(result["intervals"]) == 1:
            return f"{value:.4g} ({bounds[0]:.3g} to {bounds[1]:.3g})"
    return f"{value:.4g}"


def _flat(values: Any, where: str = "") -> dict[str, Any]:
    if isinstance(values, Mapping) and values:
        return {
            key: value
            for name, own in values.items()
            for key, value in _flat(own, f"{where}.{name}".lstrip(".")).items()
        }
    return {where: values}


def _row(cells: tuple[str, ...]) -> str:
    return f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in cells)}</tr>"


def _text(value: Any) -> str:
    return yaml.safe_dump(value, default_flow_style=True).removesuffix("\n...\n").strip()


__all__ = ["Side", "config_difference", "curves", "metric_table", "side_of", "write_comparison"]
