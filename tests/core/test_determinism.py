"""`deterministic: true` reaches XLA before its backend starts, or says that it cannot."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from commands import CONFIGS, ROOT

from ups_jax.core.errors import ConfigError
from ups_jax.core.xla import require_determinism

FLAG = "--xla_gpu_deterministic_ops"


def test_a_script_sets_the_flag_in_time_for_xla_to_read_it(tmp_path: Path) -> None:
    # The data file is missing, so that the script ends before it uses a device; then XLA tells its own options.
    code = f"""
import os, runpy, sys
script = runpy.run_path({str(ROOT / "scripts" / "train.py")!r})
arguments = ["--config", {str(CONFIGS / "tiny.yaml")!r}, "data.tasks.0.path=none.hdf5", "deterministic=true"]
assert script["main"](arguments + ["--run-dir", {str(tmp_path / "run")!r}]) == 3
import jax.numpy
jax.numpy.zeros(3) + 1
"""
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_dump_to={tmp_path / 'dump'}"
    environment = os.environ | {"XLA_FLAGS": flags, "JAX_ENABLE_COMPILATION_CACHE": "false"}
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    options = next((tmp_path / "dump").glob("*.debug_options")).read_text()
    assert "xla_gpu_deterministic_ops: true" in options


@pytest.fixture
def flags(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    monkeypatch.setenv("XLA_FLAGS", "--xla_backend_optimization_level=0")
    monkeypatch.setattr("jax._src.xla_bridge.backends_are_initialized", lambda: False)
    return monkeypatch


def test_other_flags_stay_and_it_is_set_once(flags: pytest.MonkeyPatch) -> None:
    require_determinism(False)
    assert os.environ["XLA_FLAGS"] == "--xla_backend_optimization_level=0"
    for _ in range(2):
        require_determinism(True)
        assert os.environ["XLA_FLAGS"] == f"--xla_backend_optimization_level=0 {FLAG}=true"
    # By now the backend may run: it has read the flag.
    flags.setattr("jax._src.xla_bridge.backends_are_initialized", lambda: True)
    flags.setattr("jax.default_backend", lambda: "gpu")
    require_determinism(True)


def test_too_late_is_an_error_on_a_gpu_and_nothing_on_a_cpu(flags: pytest.MonkeyPatch) -> None:
    flags.setattr("jax._src.xla_bridge.backends_are_initialized", lambda: True)
    flags.setattr("jax.default_backend", lambda: "gpu")
    with pytest.raises(ConfigError, match=f"`deterministic`.*XLA_FLAGS={FLAG}=true"):
        require_determinism(True)
    flags.setattr("jax.default_backend", lambda: "cpu")
    require_determinism(True)
    assert FLAG not in os.environ["XLA_FLAGS"]


def test_the_opposite_in_the_environment_is_an_error(flags: pytest.MonkeyPatch) -> None:
    flags.setenv("XLA_FLAGS", f"{FLAG}=false")
    with pytest.raises(ConfigError, match=FLAG):
        require_determinism(True)
    require_determinism(False)
