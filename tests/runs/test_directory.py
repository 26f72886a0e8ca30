"""What a run's directory says of itself."""

from __future__ import annotations

from pathlib import Path

from ups_jax.runs.directory import newest_step


def test_the_newest_step_is_that_of_the_checkpoints_folder(tmp_path: Path) -> None:
    assert newest_step(tmp_path / "none") == 0
    for name in ("9", "10", "damaged-11", "12.orbax-checkpoint-tmp"):
        (tmp_path / name).mkdir()
    assert newest_step(tmp_path) == 10
