"""The page on one's own data runs as it stands, in its order, and prints what it says."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
from commands import ROOT, quiet

PAGE = (ROOT / "docs" / "your_data.md").read_text()


def test_the_page_runs_as_it_stands(tmp_path: Path) -> None:
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = quiet() | {"PATH": path, "PYTHONPATH": str(ROOT)}
    printed, commands = "", 0
    for kind, text in re.findall(r"```(\w+)\n(.*?)```", PAGE, re.DOTALL):
        if kind == "bash":
            commands += text.count("\n")
            result = subprocess.run(
                ["bash", "-euo", "pipefail", "-c", text],
                cwd=tmp_path,
                env=environment,
                capture_output=True,
                text=True,
                timeout=300,
            )
            assert result.returncode == 0, result.stderr
            printed = result.stdout
        elif kind == "text":
            for line in text.splitlines():
                assert line in printed.splitlines(), f"{line!r} is not in\n{printed}"
        elif kind in ("python", "yaml"):
            # The first line of a file is a comment with its name.
            (tmp_path / text.split("\n")[0].removeprefix("# ")).write_text(text)
    # Five from a file to a film, and three for shards.
    assert commands == 8
    assert (tmp_path / "rollout.mp4").stat().st_size > 1000
    with h5py.File(tmp_path / "rollout.hdf5") as rollout, h5py.File(tmp_path / "mine_again.hdf5") as again:
        assert rollout["tensor"].shape == (1, 21, 64) and np.isfinite(rollout["tensor"][:]).all()
        np.testing.assert_array_equal(again["u"], np.load(tmp_path / "mine.npz")["u"])
