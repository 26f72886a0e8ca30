"""The table of stages: one entry a stage, each for its kind of task, each after what it needs."""

from __future__ import annotations

from pathlib import Path

import pytest
from rich.console import Console

from ups_jax.config import Config
from ups_jax.core.errors import CheckpointError
from ups_jax.core.stage_names import STAGES
from ups_jax.runs.directory import RunDirectory
from ups_jax.trainer.preflight import check_required_stages
from ups_jax.trainer.train import train
from ups_jax.training.stages import stage_spec


@pytest.mark.parametrize("name", STAGES)
def test_every_stage_of_the_configuration_has_its_file(name: str) -> None:
    assert stage_spec(name).name == name


def test_a_missing_prerequisite_names_the_command_that_makes_it(tmp_path: Path) -> None:
    spec = stage_spec("diffusion_residual")
    for kind, parent in (("transient", "operator"), ("steady", "steady_prior")):
        with pytest.raises(CheckpointError, match=rf"{parent}.*--stage {parent} --run-dir") as caught:
            check_required_stages(RunDirectory(tmp_path), spec, kind)
        assert caught.value.exit_code == 4
        (tmp_path / "checkpoints" / parent).mkdir(parents=True)
        check_required_stages(RunDirectory(tmp_path), spec, kind)


def test_a_refused_stage_leaves_no_directory(tiny: Config, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError):
        train(tiny, "consistency_distill", tmp_path / "run", console=Console(quiet=True))
    assert not (tmp_path / "run").exists()
