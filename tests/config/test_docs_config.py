"""docs/config.md is generated: each key has a meaning below its field, which names its choices."""

from __future__ import annotations

import subprocess
import sys

from commands import ROOT


def test_the_page_is_the_generated_one() -> None:
    command = [sys.executable, "tools/config_reference.py"]
    generated = subprocess.run(command, cwd=ROOT, capture_output=True, check=True).stdout
    committed = (ROOT / "docs" / "config.md").read_bytes()
    assert generated == committed, "run `python tools/config_reference.py > docs/config.md`"
