"""The report: well-formed, self-contained, escaped, with every number beside its baselines."""

from __future__ import annotations

import base64
import io
from html.parser import HTMLParser

import numpy as np
import pytest
from rich.console import Console

from ups_jax.core.errors import StorageError
from ups_jax.evaluation.console import print_table
from ups_jax.evaluation.plots.html_report import render_report, write_report
from ups_jax.evaluation.result import evaluation_result, to_json_values

VOID = {"meta", "img", "br", "link"}
RUN = {"status": "finished", "config": {"optimizer": {"lr": 0.001}}, "device": "<b>cpu</b>"}


class Page(HTMLParser):
    """Collects tags, attributes and table rows, and checks that every tag is closed in order."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.attributes, self.rows, self.text = [], [], [], [], ""
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data
        if "td" in self.open or "th" in self.open:
            self.rows[-1][-1] += data


@pytest.fixture
def values(evaluation_1d):
    return to_json_values(evaluation_result([evaluation_1d], {"steps": 5, "seed": 0}))


def test_the_tables_show_the_jsons_numbers_interval_and_baselines(values):
    page = Page(render_report(values, {}, RUN))
    sections = values["metrics"]["toy<1>"]
    # A variant rolls out in another way; it has no step of its own.
    for section, rows in (("one_step", page.rows[:5]), ("rollout", page.rows[5:11])):
        header, run_row, interval, *variants, persistence, codec = rows
        column = header.index("nrmse")
        assert run_row[0] == "this run" and run_row[column] == f"{sections[section]['nrmse']:.3g}"
        low, high = values["intervals"]["toy<1>"][section]["nrmse"]
        assert interval[column] == f"{low:.3g} to {high:.3g}"
        for name, row in (("persistence", persistence), ("codec", codec)):
            assert row[0] == name
            assert row[column] == f"{values['baselines'][name]['toy<1>'][section]['nrmse']:.3g}"
        assert "nrmse by time" not in header and len(header) == len(run_row)
        assert ("correlation time" in header) == (section == "rollout")
        latent = values["variants"]["latent"]["toy<1>"]
        assert [row[column] for row in variants] == ([f"{latent[section]['nrmse']:.3g}"] if section in latent else [])


def test_the_page_is_self_contained_and_shows_the_pictures_bytes(values):
    page = Page(render_report(values, {"a_plot": b"picture"}, RUN))
    assert not {"script", "iframe"} & set(page.tags)
    # An empty icon, or a browser would ask for one.
    icon, *sources = [value for name, value in page.attributes if name in ("src", "href")]
    assert icon == "data:," and page.tags.count("link") == 1
    assert [base64.b64decode(source.removeprefix("data:image/png;base64,")) for source in sources] == [b"picture"]
    assert "url(" not in page.text and "@import" not in page.text


def test_names_and_values_of_any_kind_are_escaped(values):
    evil = '"><script>alert(1)</script>'
    values["metrics"][evil] = values["metrics"]["toy<1>"]
    values["baselines"][evil] = values["baselines"]["codec"]
    values["meta"]["protocol"] = evil
    page = Page(render_report(values, {evil: b"x"}, RUN | {evil: evil}))
    assert "script" not in page.tags and "b" not in page.tags
    assert "<b>cpu</b>" in page.text and '"lr": 0.001' in page.text


def test_non_finite_results_are_said_in_words(broken_evaluation):
    page = Page(render_report(to_json_values(evaluation_result([broken_evaluation], {})), {}, RUN))
    assert "not finite" in page.text
    assert any(row[0] == "this run" and "not finite" in row for row in page.rows)


def test_several_channels_have_a_table_and_a_line_on_the_terminal(evaluation_1d, evaluation_2d, values):
    page = Page(
        render_report(to_json_values(evaluation_result([evaluation_2d], {})) | {"meta": values["meta"]}, {}, RUN)
    )
    by_channel = evaluation_2d.metrics["rollout"]["nrmse_by_channel"]
    assert ["", "u", "v/w"] in page.rows and list(by_channel) == ["u", "v/w"]
    assert ["this run", *(f"{value:.3g}" for value in by_channel.values())] in page.rows
    assert by_channel["u"] != by_channel["v/w"]
    assert np.mean(list(by_channel.values())) == pytest.approx(evaluation_2d.metrics["rollout"]["nrmse"], rel=1e-5)
    lines = []
    for evaluation in (evaluation_1d, evaluation_2d):
        print_table(Console(file=(output := io.StringIO()), width=120), evaluation)
        lines.append([line for line in output.getvalue().splitlines() if line.startswith("nRMSE by channel")])
    expected = ", ".join(f"{name} {value:.3g}" for name, value in by_channel.items())
    assert lines == [[], [f"nRMSE by channel (rollout): {expected}"]]


def test_writing_is_complete_or_a_storage_error(tmp_path, values):
    plot = tmp_path / "toy_nrmse.png"
    plot.write_bytes(b"picture")
    write_report(tmp_path / "report.html", values, [plot], RUN)
    assert "toy nrmse" in Page((tmp_path / "report.html").read_text(encoding="utf-8")).text
    with pytest.raises(StorageError, match=r"report\.html"):
        write_report(plot / "report.html", values, [], RUN)
