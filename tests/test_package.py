"""Importing the package is cheap and touches no device."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import tomllib
from dataclasses import fields
from pathlib import Path

import jax
import numpy as np
import pytest
from commands import ROOT

import ups_jax
from ups_jax.config import StagesConfig
from ups_jax.core.deprecation import renamed_keywords
from ups_jax.core.files import version
from ups_jax.core.stage_names import STAGES


def fresh(code: str) -> str:
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return result.stdout.strip()


def test_importing_the_package_or_its_data_does_not_import_jax() -> None:
    assert fresh("import sys, ups_jax, ups_jax.config, ups_jax.data; print('jax' in sys.modules)") == "False"


def test_the_public_names_exist_and_touch_no_device() -> None:
    code = (
        "import ups_jax; [getattr(ups_jax, name) for name in ups_jax.__all__]; "
        "from jax._src import xla_bridge; print(xla_bridge.backends_are_initialized())"
    )
    assert fresh(code) == "False"
    assert set(ups_jax.__all__) == set(dir(ups_jax))


def test_a_package_that_runs_from_its_folder_has_a_version_to_tell() -> None:
    assert version("jax") == jax.__version__
    assert version("no-such-package") == "not installed"


def test_the_list_of_packages_is_the_tree() -> None:
    tools = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    tree = {".".join(path.parent.relative_to(ROOT).parts) for path in (ROOT / "ups_jax").rglob("__init__.py")}
    assert set(tools["packages"]) == tree | {"ups_jax.configs"}
    assert tools["package-dir"] == {"ups_jax.configs": "configs"} and (ROOT / "configs" / "__init__.py").exists()


def test_a_checkout_reads_its_own_configurations(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "ups_jax", tmp_path / "ups_jax", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / "configs", tmp_path / "configs")
    (tmp_path / "configs" / "other.yaml").write_text("include: tiny.yaml\nseed: 41\n")
    code = "from ups_jax.config import load; print(load('other').seed)"
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    result = subprocess.run([sys.executable, "-c", code], env=environment, cwd="/", capture_output=True, text=True)
    assert result.stdout.strip() == "41", result.stderr


def test_the_names_of_stages_are_those_of_the_configuration() -> None:
    assert tuple(field.name for field in fields(StagesConfig)) == STAGES


def test_metrics_and_rollouts_are_found_under_the_package() -> None:
    zero = np.zeros((1, 2, 8, 1))
    assert float(ups_jax.metrics.nrmse(zero + 1, zero + 1).max()) == 0
    assert ups_jax.rollout.rollout is not None and ups_jax.losses.h1 is not None
    with pytest.raises(AttributeError):
        ups_jax.metrics.no_such_metric  # noqa: B018


def test_a_former_name_works_with_a_warning() -> None:
    with pytest.warns(DeprecationWarning, match="stack_batches"):
        assert ups_jax.together is ups_jax.stack_batches


def test_a_former_argument_works_with_a_warning() -> None:
    @renamed_keywords(at_once="steps_per_call")
    def steps(steps_per_call: int = 1) -> int:
        return steps_per_call

    with pytest.warns(DeprecationWarning, match="steps_per_call"):
        assert steps(at_once=8) == 8  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="one of them"):
        steps(at_once=8, steps_per_call=2)  # type: ignore[call-arg]
    with pytest.warns(DeprecationWarning, match="at_once"), contextlib.suppress(Exception):
        ups_jax.make_train_step(None, None, None, at_once=8)  # type: ignore[arg-type, call-arg]
