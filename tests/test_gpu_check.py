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


def test_without_a_gpu_it_says_so_and_the_other_sections_still_run(tmp_path: Path) -> None:
    code, found = checked(tmp_path / "out.json", "--sections", "device", JAX_PLATFORMS="cpu")
    assert code == 1 and set(found["device"]) == {"failed", "seconds"}
    code, found = checked(tmp_path / "out.json", "--dry", "--sections", "device")
    assert code == 0 and found["device"]["matrix"]["float32"] > 0


@pytest.mark.slow
def test_every_section_runs_in_small_on_a_cpu(tmp_path: Path) -> None:
    code, found = checked(tmp_path / "out.json", "--dry")
    assert code == 0, found
    assert found["batches"]["16"] > 0 and found["wide"]["device_peak_bytes"] > 0
    assert 0 < found["command"]["goodput"] < 2
