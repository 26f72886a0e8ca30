"""The check of a GPU in one command, on a CPU."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from commands import ROOT, quiet


def checked(out: Path, *arguments: str, **environment: str) -> tuple[int, dict]:
    line = ["bash", str(ROOT / "tools" / "gpu_check.sh"), "--out", str(out), *arguments]
    environment = quiet() | {"PYTHON": sys.executable} | environment
    result = subprocess.run(line, capture_output=True, text=True, env=environment)
    return result.returncode, json.loads(out.read_text())


def test_without_a_gpu_the_check_stops_after_its_first_section(tmp_path: Path) -> None:
    code, results = checked(tmp_path / "out.json", JAX_PLATFORMS="cpu")
    assert code == 1 and set(results) == {"device"} and "no GPU" in results["device"]["failed"]


def test_a_section_that_takes_too_long_fails_and_is_written(tmp_path: Path) -> None:
    code, results = checked(tmp_path / "out.json", "--dry", "--seconds", "0.01", "--sections", "batches", "wide")
    assert code == 1
    assert "took more than" in results["batches"]["failed"] and "no time is left" in results["wide"]["failed"]


@pytest.mark.slow
def test_every_section_runs_in_small_on_a_cpu(tmp_path: Path) -> None:
    code, results = checked(tmp_path / "out.json", "--dry", "--seconds", "1800")
    assert code == 0, results
    assert results["device"]["matrix"]["float32"] > 0
    assert results["batches"]["16"]["rows_per_second"] > 0 and results["batches"]["64"]["peak_bytes"] > 0
    assert results["wide"]["model_flop_utilisation"] > 0
    assert 0 < results["command"]["goodput"] < 2
    assert any(value.endswith("%") for value in map(str, results["profile"].values()))
    assert "tests" in results["tests"]["tests"]
