"""The README and the pages run as they stand: blocks of `bash` and `python` are executed, commands in blocks of
`console` are parsed, and blocks of `text` must have been printed."""

from __future__ import annotations

import argparse
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import h5py
import jax
import numpy as np
import pytest
from commands import ROOT, quiet

from ups_jax.cli import main as command_line
from ups_jax.cli import runner
from ups_jax.config import load
from ups_jax.runs.checkpoint import Checkpoints

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
LANGUAGES = {"bash", "mermaid", "console", "python", "text", "yaml", ""}


def blocks(page: Path) -> list[tuple[str, str]]:
    """Return language and text of every code block of a page."""
    return re.findall(r"^ *```(\w*)\n(.*?)^ *```$", page.read_text(), re.DOTALL | re.MULTILINE)


def executed(page: Path, folder: Path) -> tuple[dict, int]:
    """Run the blocks of a page in a folder; return the names that its Python defines and the number of commands."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = quiet() | {"PATH": path, "PYTHONPATH": str(ROOT)}
    names: dict = {}
    printed, commands = "", 0
    for language, text in blocks(page):
        first_line = text.split("\n")[0]
        if language == "bash":
            lines = [line for line in text.splitlines() if line.strip() and not line.startswith("pip install")]
            commands += len(lines)
            result = subprocess.run(
                ["bash", "-euo", "pipefail", "-c", "\n".join(lines)],
                cwd=folder,
                env=environment,
                capture_output=True,
                text=True,
                timeout=300,
            )
            assert result.returncode == 0, result.stderr
            printed = result.stdout
        elif language == "text":
            for line in text.splitlines():
                assert line in printed.splitlines(), f"{line!r} is not in\n{printed}"
        elif first_line.endswith((".py", ".yaml")) and first_line.startswith("# "):
            # A file of the example, whose first line is a comment with its name.
            (folder / first_line.removeprefix("# ")).write_text(text)
        elif language == "python":
            exec(compile(text, page.name, "exec"), names)
    return names, commands


def test_every_block_has_a_language_that_is_checked() -> None:
    assert {language for page in PAGES for language, _ in blocks(page)} <= LANGUAGES


def test_every_command_in_a_text_exists_and_takes_its_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    parsed: list[argparse.Namespace] = []

    def parse(parser: argparse.ArgumentParser, _function: object, argv: list[str] | None) -> int:
        parsed.append(parser.parse_args(argv))
        return 0

    monkeypatch.setattr(runner, "run_command", parse)
    monkeypatch.chdir(ROOT)
    count = 0
    for page in PAGES:
        for language, text in blocks(page):
            if language != "console":
                continue
            for line in text.replace("\\\n", " ").splitlines():
                words = shlex.split(line, comments=True)
                if "ups-jax" not in words:
                    continue
                count += 1
                del parsed[:]
                assert command_line.main(words[words.index("ups-jax") + 1 :]) == 0, f"{page.name}: {line}"
                for arguments in parsed:
                    overrides = getattr(arguments, "overrides", [])
                    if not hasattr(arguments, "run_dir") or hasattr(arguments, "stage"):
                        load(getattr(arguments, "config", None) or "burgers1d", overrides)
    assert count >= 3


def test_the_readme_runs_as_it_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names, commands = executed(ROOT / "README.md", tmp_path)
    assert commands == 2
    assert (tmp_path / "runs" / "tiny" / "report.html").exists() and (tmp_path / "out.hdf5").exists()
    assert names["frames"].shape[1:] == (20, 64, 1) and np.isfinite(names["frames"]).all()


def test_the_page_on_your_own_data_runs_as_it_stands(tmp_path: Path) -> None:
    _, commands = executed(ROOT / "docs" / "your_data.md", tmp_path)
    # Five from a file to a film, and three for shards.
    assert commands == 8
    assert (tmp_path / "rollout.mp4").stat().st_size > 1000
    with h5py.File(tmp_path / "rollout.hdf5") as rollout, h5py.File(tmp_path / "mine_again.hdf5") as again:
        assert rollout["tensor"].shape == (1, 21, 64) and np.isfinite(rollout["tensor"][:]).all()
        np.testing.assert_array_equal(again["u"], np.load(tmp_path / "mine.npz")["u"])


def test_the_library_page_is_bit_identical_to_the_command(
    main: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ["--config", "tiny", "stages.operator.steps=10", "evaluation.enabled=false"]
    result = main("train.py", *arguments, f"data.root={tmp_path}/data", "--run-dir", str(tmp_path / "command"))
    assert result.returncode == 0, result.stderr
    monkeypatch.chdir(tmp_path)
    names, _ = executed(ROOT / "docs" / "python.md", tmp_path)
    with Checkpoints(tmp_path / "command" / "checkpoints" / "operator", read_only=True) as checkpoints:
        state = checkpoints.restore(10, names["state"])
    jax.tree.map(np.testing.assert_array_equal, state.params, names["state"].params)
    jax.tree.map(np.testing.assert_array_equal, state.opt_state, names["state"].opt_state)
    assert names["frames"].shape == (1, 20, 64, 1) and np.isfinite(names["frames"]).all()
    assert np.isfinite(names["by_viscosity"]) and names["by_viscosity"] != 0
