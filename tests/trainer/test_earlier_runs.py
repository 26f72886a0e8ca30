"""A run of an earlier version of the code is refused in one line, whatever its record lacks or has besides."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ups_jax.config import Config, digest, to_dict
from ups_jax.core.errors import ConfigError
from ups_jax.runs.directory import RunDirectory
from ups_jax.trainer.preflight import check_resume


def lacking(values: dict[str, Any]) -> None:
    for section in (values["training"], *values["stages"].values()):
        del section["accum_steps"]
    del values["diffusion"]


def besides(values: dict[str, Any]) -> None:
    values["latent"]["former"] = 1


def another(values: dict[str, Any]) -> None:
    lacking(values)
    values["latent"]["dim"] += 1


@pytest.mark.parametrize(
    "change, reason",
    [
        (lacking, "by an earlier version, in which a key or a part of the model had another meaning"),
        (besides, "by an earlier version, with keys that this version does not have"),
        (another, r"latent\.dim: \d+ -> \d+\)"),
    ],
)
def test_a_run_of_an_earlier_version_is_refused_in_one_line(
    tiny: Config, tmp_path: Path, change: Any, reason: str
) -> None:
    run, values = RunDirectory(tmp_path / "run"), to_dict(tiny)
    change(values)
    run.path.mkdir()
    run.write_record({"config": values, "digests": {"operator": "0" * 12}, "stages": {}})
    with pytest.raises(ConfigError, match=reason):
        check_resume(run, tiny, "operator", "auto")
    run.write_record({"config": values, "digests": {"operator": digest(tiny, "operator")}, "stages": {}})
    check_resume(run, tiny, "operator", "auto")
