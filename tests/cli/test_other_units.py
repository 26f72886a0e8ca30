"""Commands on the same waves in other units: the same model, metrics, notes and refusals."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import h5py
import jax.numpy as jnp
import numpy as np
import pytest
from commands import CONFIGS

from ups_jax import load_run
from ups_jax.data import open_dataset
from ups_jax.models.conditioning import standardize

Main = Callable[..., subprocess.CompletedProcess[str]]
SPACING, DT, TRAJECTORIES = 0.0625, 0.02, 24
# The powers of ten of field, length, time and coefficient.
UNITS = {
    "plain": (0, 0, 0, 0),
    "large": (30, 30, 30, 30),
    "small": (-30, -30, -30, -30),
    "small_lengths": (19, -30, 9, -6),
    "small_fields": (-19, 6, -30, 30),
}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Waves of one direction with a viscosity, with energy in every band of wavenumbers, in float64 in each unit."""
    folder = tmp_path_factory.mktemp("files")
    rng = np.random.default_rng(0)
    x, t = -1 + SPACING * np.arange(32), DT * np.arange(10)
    speed, phase = rng.uniform(0.2, 1.0, (TRAJECTORIES, 1, 1)), rng.uniform(0, 6, (14, TRAJECTORIES, 1, 1))
    fields = sum(np.sin((k + 1) * np.pi * (x - speed * t[:-1, None]) + phase[k]) / (k + 1) for k in range(14))
    for name, units in UNITS.items():
        field, length, time, coefficient = (10.0**power for power in units)
        with h5py.File(folder / f"{name}.hdf5", "w") as file:
            file["tensor"] = field * fields
            file["x-coordinate"] = length * x
            file["t-coordinate"] = time * t
            file["parameters/nu"] = coefficient * np.linspace(0.3, 1.2, TRAJECTORIES)
    return {name: folder / f"{name}.hdf5" for name in UNITS}


def overrides(path: Path, **task: str) -> list[str]:
    entries = {"name": "waves", "path": str(path), "periodic": "[x]", "coefficients": "{nu: linear}"} | task
    return [
        f"data.tasks=[{{{', '.join(f'{key}: {value}' for key, value in entries.items())}}}]",
        # Two steps of a plain optimiser: powers of ten are not exact, and every further step enlarges the rounding.
        *("stages.operator.steps=2", "optimizer={name: adamw, lr: 1e-4}"),
        *("operator.spectral.depth=1", "evaluation={plots: false, bootstrap: 50}", "logging.every_steps=1"),
    ]


def numbers_without_unit(value: object, units: dict[str, str], metric: str = "") -> Iterator[float]:
    """Yield the numbers of an evaluation that have no unit, in the order of the file."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield from numbers_without_unit(item, units, key if key in units else metric)
    elif isinstance(value, list):
        for item in value:
            yield from numbers_without_unit(item, units, metric)
    elif isinstance(value, float) and units.get(metric) == "1":
        yield value


def train_and_evaluate(main: Main, path: Path, run: Path) -> dict[str, object]:
    """Train for two steps and evaluate; return what may not depend on the unit."""
    result = main("train.py", "--config", CONFIGS / "tiny.yaml", "--run-dir", run, *overrides(path))
    assert result.returncode == 0, result.stderr
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    evaluated = main("evaluate.py", "--run-dir", run)
    assert evaluated.returncode == 0, evaluated.stderr
    evaluation = json.loads((run / "evaluation" / "test.json").read_text())
    sections = {key: evaluation[key] for key in ("metrics", "baselines", "intervals", "per_trajectory")}
    trained = load_run(run)
    values = jnp.asarray(open_dataset(trained.config).conditions[:, 0])
    return {
        "losses": [record["loss"] for record in records if "loss" in record],
        "metrics": list(numbers_without_unit(sections, evaluation["units"])),
        "correlation_time": evaluation["metrics"]["waves"]["rollout"]["correlation_time"] / trained.task.dt,
        "coefficients": np.asarray(standardize(values, trained.task.coefficients[0])),
        "notes": [line for line in result.stdout.splitlines() if line.startswith("note")],
    }


@pytest.fixture(scope="module")
def trained_in_plain_units(main: Main, files: dict[str, Path], tmp_path_factory: pytest.TempPathFactory):
    return train_and_evaluate(main, files["plain"], tmp_path_factory.mktemp("runs") / "plain")


@pytest.mark.parametrize("name", [name for name in UNITS if name != "plain"])
def test_commands_train_and_evaluate_the_same_model_in_any_unit(
    main: Main, files: dict[str, Path], trained_in_plain_units: dict[str, object], tmp_path: Path, name: str
) -> None:
    actual, expected = train_and_evaluate(main, files[name], tmp_path / name), trained_in_plain_units
    assert len(expected["losses"]) == 2
    assert len(expected["metrics"]) > 50
    np.testing.assert_allclose(actual["losses"], expected["losses"], rtol=1e-5)
    for quantity in ("metrics", "correlation_time"):
        np.testing.assert_allclose(actual[quantity], expected[quantity], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(actual["coefficients"], expected["coefficients"], atol=1e-5)
    assert actual["notes"] == expected["notes"]


@pytest.mark.parametrize(
    "task", [{"symmetries": "[{reflect: [x]}]"}, {"coefficients": "{nu: log10}", "conserved": "[u]"}]
)
def test_the_command_that_validates_says_the_same_in_any_unit(
    main: Main, files: dict[str, Path], task: dict[str, str]
) -> None:
    results = {
        name: main("validate.py", "--config", CONFIGS / "tiny.yaml", *overrides(path, **task))
        for name, path in files.items()
    }
    texts = {
        name: (result.returncode, (result.stdout + result.stderr).replace(name, "")) for name, result in results.items()
    }
    assert len(set(texts.values())) == 1
    assert (texts["plain"][0] == 3) == ("symmetries" in task)
