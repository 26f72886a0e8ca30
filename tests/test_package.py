"""Importing the package is cheap and touches no device."""

from __future__ import annotations

import subprocess
import sys

import jax

import ups_jax
from ups_jax.core.files import version


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
