"""The README's library example runs as it stands, and does what the script does, to the bit."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import pytest
from commands import CONFIGS, ROOT

from ups_jax.data.files import generated_file
from ups_jax.runs.checkpoint import Checkpoints


def test_the_library_example_is_bit_equal_to_the_script(
    main: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ["--config", str(CONFIGS / "tiny.yaml"), "stages.operator.steps=10", "evaluation.enabled=false"]
    result = main("train.py", *arguments, f"data.root={tmp_path}/data", "--run-dir", str(tmp_path / "script"))
    assert result.returncode == 0, result.stderr
    assert generated_file(tmp_path / "data", "burgers1d", "tiny").exists()

    example = re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert example is not None
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    exec(compile(example[1], "README.md", "exec"), names)

    with Checkpoints(tmp_path / "script" / "checkpoints" / "operator", read_only=True) as checkpoints:
        by_script = checkpoints.restore(10, names["state"])
    for one, other in zip(jax.tree.leaves(by_script.params), jax.tree.leaves(names["state"].params), strict=True):
        np.testing.assert_array_equal(one, other)
    for one, other in zip(jax.tree.leaves(by_script.opt_state), jax.tree.leaves(names["state"].opt_state), strict=True):
        np.testing.assert_array_equal(one, other)
    assert names["frames"].shape == (1, 20, 64, 1)
    assert np.isfinite(names["frames"]).all()
