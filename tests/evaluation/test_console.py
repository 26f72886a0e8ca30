"""A writer receives every number of an evaluation, every list as a table, and nothing else."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from ups_jax.evaluation.console import track_evaluation
from ups_jax.evaluation.result import TransientEvaluation
from ups_jax.tracking import Writer, flatten_sections


class Heard(Writer):
    def __init__(self) -> None:
        self.numbers: dict[str, Any] = {}
        self.tables: dict[str, Any] = {}
        self.images: dict[str, Path] = {}
        self.files: list[Path] = []

    def summary(self, values: Any) -> None:
        self.numbers |= flatten_sections(values)

    def table(self, name: str, columns: Any, rows: Any) -> None:
        self.tables[name] = (list(columns), [list(row) for row in rows])

    def image(self, name: str, path: Path) -> None:
        self.images[name] = path

    def file(self, path: Path) -> None:
        self.files.append(path)


def heard(measured: TransientEvaluation) -> Heard:
    writer = Heard()
    track_evaluation(writer, "val", measured, plots=[Path("plots/a.png")], files=[Path("val.json"), Path("r.html")])
    return writer


def test_the_summary_has_every_number_of_model_variants_and_baselines_and_no_list(
    evaluation_1d: TransientEvaluation,
) -> None:
    writer = heard(evaluation_1d)
    sections = {
        "toy<1>": evaluation_1d.metrics,
        "variants": evaluation_1d.variants,
        "baselines": evaluation_1d.baselines,
    }
    expected = {
        f"eval/val/{name}": value for name, value in flatten_sections(sections).items() if not isinstance(value, list)
    }
    assert writer.numbers == expected
    assert {"eval/val/variants/latent/rollout/nrmse", "eval/val/variants/latent/seconds_per_rollout_step"} <= set(
        expected
    )
    assert all(isinstance(value, int | float) for value in expected.values())
    assert writer.images == {"eval/val/a": Path("plots/a.png")} and writer.files == [Path("val.json"), Path("r.html")]


def test_the_error_by_time_is_a_table_with_a_column_for_each_rollout(evaluation_1d: TransientEvaluation) -> None:
    writer = heard(evaluation_1d)
    assert set(writer.tables) == {"eval/val/headlines", "eval/val/rollout/nrmse_by_time"}
    columns, rows = writer.tables["eval/val/rollout/nrmse_by_time"]
    assert columns == ["step", "this model", "latent rollout", "persistence", "codec"]
    parts = (evaluation_1d.metrics, evaluation_1d.variants["latent"], *evaluation_1d.baselines.values())
    curves = [part["rollout"]["nrmse_by_time"] for part in parts]
    assert rows == [list(row) for row in zip(range(1, 9), *curves, strict=True)]
    assert [row[0] for row in writer.tables["eval/val/headlines"][1]] == columns[1:]


def test_a_number_that_is_not_finite_is_told_and_leaves_its_cell_empty(broken_evaluation: TransientEvaluation) -> None:
    writer = heard(broken_evaluation)
    assert math.isnan(writer.numbers["eval/val/toy<1>/rollout/nrmse"])
    assert writer.tables["eval/val/rollout/nrmse_by_time"][1][-1][1] is None
