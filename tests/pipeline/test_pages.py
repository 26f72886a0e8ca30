"""The pages of a pipeline run and of a comparison hold any text as text: no string of a run becomes a tag."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from evaluations import evaluation, section

from ups_jax.pipeline.html_report import render_html
from ups_jax.pipeline.run_comparison import ComparedRun, write_comparison
from ups_jax.pipeline.scores import Evaluation

ODD = 'a<b>&"|,\nc'
QUOTED = '"><img src=x onerror=alert(1)>'
MATHS = "$\\frac$"
GATE = {"status": "fail", "candidate": 1.0, "baseline": 2.0, "limit": None}


class Page(HTMLParser):
    """The tags and the text of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def evaluated(text: str, error: float) -> Evaluation:
    result = evaluation(error, task=text, split=text)
    result["variants"] = {text: {text: {"rollout": section(error, correlation_time=1.0)}}}
    result["meta"] |= {"device": text, "checkpoint": text}
    return Evaluation((result,))


def report(folder: Path, text: str) -> str:
    summary: dict[str, Any] = {
        "run_id": text,
        "outcome": "refused",
        "gates": {
            "full_eval": {
                "status": text,
                "reasons": [text],
                "baseline": {"label": text, "run_id": text, "numbers": {"nrmse": 0.2}},
                "gates": [{**GATE, "key": text, "kind": text, "message": text}],
            }
        },
        "steps": {text: {"status": text, "reason": text, "seconds": 1.0}},
        "environment": {text: text},
    }
    champion = {"run_id": f"other {text}", "evaluations": {"full": {"numbers": {"nrmse": 0.2}}}}
    pictures = {f"{text}.png": b"png", f"{text}.gif": b"gif"}
    return render_html(summary, {"full_eval": evaluated(text, 0.1)}, pictures, {text: text}, champion)


def comparison(folder: Path, text: str) -> str:
    one, other = (
        ComparedRun(
            run_id=text,
            config={text: {"notes": f"{text}{error}"}},
            evaluation=evaluated(text, error),
            records=[{"stage": text, "step": step, "loss": error} for step in (1, 2)],
        )
        for error in (0.1, 0.2)
    )
    write_comparison(folder / "comparison.html", one, other)
    return (folder / "comparison.html").read_text()


@pytest.mark.parametrize("render_page", [report, comparison])
def test_no_text_of_a_run_becomes_a_tag(tmp_path: Path, render_page: Any) -> None:
    plain = Page(render_page(tmp_path, "plain"))
    for odd in (ODD, QUOTED, MATHS):
        page = Page(render_page(tmp_path, odd))
        assert [tag for tag, _ in page.tags] == [tag for tag, _ in plain.tags]
        assert [sorted(attributes) for _, attributes in page.tags] == [
            sorted(attributes) for _, attributes in plain.tags
        ]
        assert sum(odd in text for text in page.text) >= 2
    assert not {tag for tag, _ in plain.tags} & {"b", "script"} and len(plain.tags) > 20
