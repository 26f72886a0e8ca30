"""Settings and fixtures of all tests: strict JAX settings, the tiny task, and a way to run a script as a user would."""

from __future__ import annotations

import atexit
import ctypes
import gc
import io
import os
import shutil
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import replace
from pathlib import Path
from typing import Any
from warnings import catch_warnings

import jax
import jaxtyping
import numpy as np
import pytest
from commands import CONFIGS, command, in_process, quiet
from slow_tests import is_slow

from ups_jax import batch_at, build, init_state, save, simulate
from ups_jax.config import Config, load
from ups_jax.data import Dataset, from_arrays, open_dataset

jax.config.update("jax_numpy_rank_promotion", "raise")

# Most of the tests' time is compilation, and unoptimised programs hold the same properties.
_QUICK = ["--xla_backend_optimization_level=0", "--xla_llvm_disable_expensive_passes=true"]
if jax.__version_info__ < (0, 11):
    # XLA ends a process that gives it a flag which it does not know any more.
    _QUICK.append("--xla_cpu_use_fusion_emitters=false")
os.environ.setdefault("XLA_FLAGS", " ".join(_QUICK))

# One cache for the workers and the scripts that they start: every program is compiled once a session.
if "PYTEST_XDIST_WORKER" not in os.environ:
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="ups_jax-tests-")
    atexit.register(shutil.rmtree, os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)
jax.config.update("jax_compilation_cache_dir", os.environ["JAX_COMPILATION_CACHE_DIR"])
# Small programs as well, here and in the processes that are started, which else ask for a fifth of a second or a whole.
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests that `slow_tests` lists, before pytest selects tests by their marks."""
    for item in items:
        if is_slow(item.nodeid):
            item.add_marker(pytest.mark.slow)


# Folders whose tests run whole commands and trainings. Checks of array types take a sixth of their time; the functions
# are checked by their own tests.
_WITHOUT_ARRAY_CHECKS = {"benchmarks", "cli", "distributed", "evaluation", "inference", "pipeline", "reliability",
                         "runs", "tracking", "trainer"}  # fmt: skip
_MOST_RESIDENT_BYTES = 1.5 * 2**30


@pytest.fixture(scope="module", autouse=True)
def array_checks(request: pytest.FixtureRequest) -> Iterator[None]:
    """Check shapes and dtypes of annotated arrays at run time, except in tests of whole runs."""
    folder = request.path.relative_to(Path(__file__).parent).parts[0]
    jaxtyping.config.update("jaxtyping_disable", folder in _WITHOUT_ARRAY_CHECKS)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture(scope="module", autouse=True)
def bounded_memory() -> Iterator[None]:
    """Drop the compiled programs of a worker after a module that leaves it large: each keeps megabytes."""
    yield
    if resident_bytes() > _MOST_RESIDENT_BYTES:
        jax.clear_caches()
        gc.collect()
        if sys.platform == "linux":
            ctypes.CDLL("libc.so.6").malloc_trim(0)


def resident_bytes() -> float:
    """Return the memory that this process occupies; infinity where the system does not say."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return float("inf")


@pytest.fixture(scope="session")
def data_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where built-in data is written, once for all tests."""
    return tmp_path_factory.mktemp("data")


@pytest.fixture
def tiny(data_root: Path) -> Config:
    """The tiny configuration on the shared data."""
    return load(CONFIGS / "tiny.yaml", [f"data.root={data_root}"])


@pytest.fixture
def waves(tiny: Config) -> Dataset:
    """Travelling sine waves on 32 points: a data set that needs no solver."""
    rng = np.random.default_rng(0)
    speed = rng.uniform(0.1, 1.0, 20)
    phase = rng.uniform(0, 2 * np.pi, (20, 3))
    x, t = np.arange(32) * 2 / 32 - 1, np.arange(9) * 0.05
    moved = x[None, None] - speed[:, None, None] * t[None, :, None]
    fields = sum(np.sin(np.pi * (k + 1) * moved + phase[:, k, None, None]) for k in range(3))
    cfg = load(CONFIGS / "tiny.yaml", ["data.tasks.0.symmetries=[]", "data.tasks.0.coefficients={beta: linear}"])
    return from_arrays(cfg, fields.astype(np.float32), 0.05, {"beta": speed}, (-1.0,), (2 / 32,))


@pytest.fixture(scope="session")
def saved_run(data_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on the tiny data with random parameters, those of the exit small: neither persistence nor unstable."""
    cfg = load(CONFIGS / "tiny.yaml", [f"data.root={data_root}", "evaluation.batch_size=3"])
    simulate.generate_missing(cfg)
    dataset = open_dataset(cfg)
    model, tx = build(cfg, dataset)
    state = init_state(model, tx, batch_at(dataset, cfg, "operator", 0), jax.random.key(0))
    rng = np.random.default_rng(0)

    def moved(name: tuple, leaf: jax.Array) -> jax.Array:
        size = 3e-4 if "write" in jax.tree_util.keystr(name) else 0.02
        return leaf + size * rng.normal(size=leaf.shape).astype(np.float32)

    path = tmp_path_factory.mktemp("saved") / "run"
    save(path, replace(state, params=jax.tree_util.tree_map_with_path(moved, state.params)), cfg, dataset)
    return path


@pytest.fixture(scope="session")
def script() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run a script in its own process: `script("train.py", "--config", ...)`."""

    def run(name: str, *arguments: str, timeout: float = 300) -> subprocess.CompletedProcess[str]:
        return subprocess.run(command(name, *arguments), capture_output=True, text=True, timeout=timeout, env=quiet())

    return run


@pytest.fixture(scope="session")
def main() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Call a script's `main` in this process, for what it does and says; `script` is for how it starts and ends."""

    def run(name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        out, err = io.StringIO(), io.StringIO()
        with redirect_stdout(out), redirect_stderr(err), pytest.MonkeyPatch.context() as patch, catch_warnings():
            for variable, value in quiet().items():
                patch.setenv(variable, value)
            # As outside of pytest: told on stderr, no errors.
            warnings.simplefilter("default")
            patch.setattr(warnings, "showwarning", show)
            try:
                code = in_process(name, *arguments)
            except SystemExit as end:
                code = int(end.code or 0)
        return subprocess.CompletedProcess([name], code, out.getvalue(), err.getvalue())

    def show(message: Any, category: type[Warning], filename: str, line: int, *_: Any) -> None:
        sys.stderr.write(warnings.formatwarning(message, category, filename, line))

    return run
