"""All stages of a run, killed and stopped on their way, end in the bits of a run that was left in peace: every state,
the curve, the best checkpoints and the evaluations.

The slow ones: `pytest -n0 -m slow tests/reliability/test_every_stage.py`, six minutes.
"""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import numpy as np
import places
import pytest
import runs
from end_state import differences, end_state
from faults import at, kill

from ups_jax.tracking import read_jsonl

pytestmark = pytest.mark.multiprocess

_STOP = at(places.RECORD, "signal", 6, signal=signal.SIGTERM)
# Each start goes on from the one before: what strikes is counted from there.
WAYS: dict[str, list[tuple[str, Any, int]]] = {
    "all": [
        ("between two steps of the operator", kill(places.RECORD, 10), -9),
        ("between the operator and its evaluation", kill(places.EVALUATION_OF_STAGE), -9),
        ("stopped in the corrector", _STOP, 75),
        ("in a save of the distillation", at(places.SAVE, "signal_later", 5, signal=signal.SIGKILL, seconds=0.02), -9),
        ("ahead of the last evaluation", kill(places.EVALUATION_OF_STAGE, 2), -9),
    ],
    "steady_prior": [
        ("between two steps", kill(places.RECORD, 10), -9),
        ("stopped", _STOP, 75),
        ("in a validation", kill(places.VALIDATION, 2), -9),
        ("in its evaluation", kill(places.EVALUATION_RESULT), -9),
    ],
    "two tasks": [
        ("between two steps", kill(places.RECORD, 6), -9),
        ("stopped", _STOP, 75),
        ("in a save", at(places.SAVE, "signal_later", 2, signal=signal.SIGKILL, seconds=0.02), -9),
        ("in a validation", kill(places.VALIDATION, 2), -9),
    ],
}
# The command's stage, and what else it is given.
GIVEN: dict[str, tuple[str, ...]] = {"two tasks": ("operator", *runs.TWO_TASKS)}


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_a_run_that_is_killed_in_every_stage_ends_in_the_same_bits(way: str, data_root: Path, tmp_path: Path) -> None:
    stage, *overrides = GIVEN.get(way, (way,))
    whole = runs.run(runs.training(stage, tmp_path / "whole", data_root, *overrides))
    assert whole.code == 0, whole.err
    run = tmp_path / "run"
    for where, fault, code in WAYS[way]:
        result = runs.run(runs.training(stage, run, data_root, *overrides), fault(run))
        assert result.code == code, (where, result.err, result.out[-2000:])
    result = runs.run(runs.training(stage, run, data_root, *overrides))
    assert result.code == 0, result.err
    expected = end_state(tmp_path / "whole")
    assert len(expected["states"]) == (3 if stage == "all" else 1) and "test" in expected["evaluation"]
    assert list(differences(expected, end_state(run))) == []


@pytest.mark.slow
def test_a_run_goes_on_on_eight_devices_and_back(data_root: Path, tmp_path: Path) -> None:
    eight = {"XLA_FLAGS": "--xla_force_host_platform_device_count=8"}
    rows = ("training.batch_size=8", "training.accum_steps=1", "evaluation.enabled=false")
    curves = {}
    for name, flags in (("one", ({}, {}, {})), ("several", ({}, eight, {}))):
        run = tmp_path / name
        for number, variables in enumerate(flags, 1):
            overrides = (*rows, f"stages.operator.steps={6 * number}", "scheduler.name=constant")
            result = runs.run(runs.training("operator", run, data_root, *overrides), **variables)
            assert result.code == 0, result.err
            assert f"({'cpu'}, {8 if variables else 1} in use)" in result.out
            assert number == 1 or result.resumed == 6 * (number - 1)
        curves[name] = [record["loss"] for record in read_jsonl(run / "metrics.jsonl")]
    assert len(curves["one"]) == 18
    np.testing.assert_allclose(curves["several"], curves["one"], rtol=1e-4)
    # What was done on one device before the change is the same bit for bit.
    assert curves["several"][:6] == curves["one"][:6]
