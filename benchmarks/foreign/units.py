"""Cases of the units and the sizes of fields, lengths, times and coefficients."""

from __future__ import annotations

import json
from pathlib import Path

import h5py
import numpy as np

from foreign.case import INSPECT, METRICS, UNITS, case, validate
from foreign.content import TINY, write_well
from foreign.fields import line_waves, write_coordinates, write_tensor

_TOLERANCE = 1e-3


def same_errors(name: str) -> str:
    """Return an empty string if the relative errors of the run `name` are those of the run `one`."""
    sections = [
        json.loads(Path(run, "evaluation", "test.json").read_text())["metrics"]["mine"] for run in ("one", name)
    ]
    for section in ("one_step", "rollout"):
        for metric in ("nrmse", "vrmse"):
            expected, actual = (item[section][metric] for item in sections)
            if not abs(actual - expected) <= _TOLERANCE * expected:
                return f"{section}/{metric} is {actual}, but {expected} in the unit 1"
    return ""


def train(name: str, task: str = "periodic: [x]") -> str:
    """Return the command that trains for a few steps on the file `name`, and evaluates."""
    return f"train --config tiny --run-dir {name} 'data.tasks=[{{name: mine, path: {name}.hdf5, {task}}}]' {TINY}"


@case(UNITS, "the waves in a unit of 1e-20", train("em20"), "persistence", check=lambda _: same_errors("em20"))
@case(UNITS, "the waves in a unit of 1e20", train("e20"), "persistence", check=lambda _: same_errors("e20"))
@case(UNITS, "waves", train("one"), "persistence")
def field_units() -> None:
    for name, unit in (("one", 1.0), ("e20", 1e20), ("em20", 1e-20)):
        write_tensor(f"{name}.hdf5", unit * line_waves(), dtype="f8")


@case(UNITS, "float64 values that float32 cannot store: 1e39", f"{INSPECT} huge.hdf5", "beyond 3.4e38", code=3)
@case(UNITS, "float64 values of which float32 loses digits: 1e-42", validate("minute.hdf5"), "few digits", code=3)
def out_of_range() -> None:
    write_tensor("huge.hdf5", 1e39 * line_waves(), dtype="f8")
    write_tensor("minute.hdf5", 1e-42 * line_waves(), dtype="f8")


@case(
    UNITS,
    "the default H1 loss of the same fields on grids in km, m and nm",
    'python -c "import numpy as np; from ups_jax.losses.field import h1; x = np.arange(64) / 64; '
    "u = np.sin(2 * np.pi * x)[None, :, None]; v = u + 0.05 * np.cos(6 * np.pi * x)[None, :, None]; "
    "u, v = u.astype('f4'), v.astype('f4'); "
    "print(*{f'{float(h1(v, u, (step,), (True,))):.5f}' for step in (1e-9, 1e-3, 1.0, 1e3, 1e6)})\"",
    check=lambda output: "" if len(output.split()) == 1 else "the loss depends on the unit of length",
)
def length_units() -> None:
    return


@case(
    UNITS,
    "a viscosity of 3e-7 to 1.2e-6 m2/s",
    'python -c "from ups_jax.config import load; from ups_jax.data import open_dataset; '
    "cfg = load('tiny', ['data.tasks=[{name: mine, path: si.hdf5, coefficients: {nu: linear}}]']); "
    "print(f'std {open_dataset(cfg).task.coefficients[0].std:.1e}')\"",
    check=lambda output: "" if 2e-7 < float(output.split()[1]) < 3e-7 else "the deviation is not that of the values",
)
@case(UNITS, "a viscosity of 3e-7 to 1.2e-6 m2/s", f"{INSPECT} si.hdf5", "nu 3e-07 to 1.2e-06")
def coefficient_units() -> None:
    write_tensor("si.hdf5", line_waves(), parameters_nu=np.linspace(3e-7, 1.2e-6, 12))


@case(
    UNITS,
    "300 K and waves, heated by a tenth of their deviation",
    f"{INSPECT} kelvin.hdf5",
    "channel     T",
    lacks=("conserved",),
)
@case(
    UNITS,
    "300 K and waves, heated by a tenth of their deviation",
    validate("kelvin.hdf5", "channels: [T]", "conserved: [T]"),
    "drifts",
    code=3,
)
@case(
    UNITS,
    "300 K and waves to the right: no mirror symmetry",
    validate("kelvin.hdf5", "channels: [T]", "periodic: [x]", "symmetries: [{reflect: [x]}]"),
    "symmetries.0",
    code=3,
)
@case(UNITS, "the same without 300 K", validate("plain.hdf5", "channels: [T]", "conserved: [T]"), "drifts", code=3)
@case(
    UNITS,
    "the same without 300 K",
    validate("plain.hdf5", "channels: [T]", "periodic: [x]", "symmetries: [{reflect: [x]}]"),
    "symmetries.0",
    code=3,
)
def offsets() -> None:
    waves = line_waves(40)
    fields = waves + 0.1 * waves.std() * np.linspace(0, 1, waves.shape[1])[:, None]
    for name, offset in (("kelvin", 300.0), ("plain", 0.0)):
        with h5py.File(f"{name}.hdf5", "w") as file:
            file["T"] = offset + fields
            write_coordinates(file, fields.shape)


@case(UNITS, "The Well: time steps of 1e-10 and of 3e-10", f"{INSPECT} steps.hdf5", "differs between", code=3)
@case(UNITS, "The Well: time steps of 1e-10", f"{INSPECT} equal.hdf5", "dt 1e-10")
def small_times() -> None:
    steps = np.where(np.arange(12) < 6, 1e-10, 3e-10)[:, None]
    write_well("steps.hdf5", steps * np.arange(8))
    write_well("equal.hdf5", 1e-10 * np.arange(8) + 0 * steps)


@case(
    METRICS,
    "channels of very different size: 1e5 Pa, 1 m/s, 1e-6",
    "evaluate --run-dir scales --json scales.json evaluation.plots=false",
    "nRMSE by channel",
)
@case(
    METRICS,
    "channels of very different size: 1e5 Pa, 1 m/s, 1e-6",
    train("scales", "channels: [p, v, c], periodic: [x]"),
    "p ",
    check=lambda output: (
        ""
        if set(
            json.loads(Path("scales/evaluation/test.json").read_text())["metrics"]["mine"]["rollout"][
                "nrmse_by_channel"
            ]
        )
        == {"p", "v", "c"}
        else "no errors by channel"
    ),
)
def channel_sizes() -> None:
    waves = line_waves()
    with h5py.File("scales.hdf5", "w") as file:
        file["p"], file["v"], file["c"] = 1e5 + 1e4 * waves, np.roll(waves, 5, 2), 1e-6 * (2 + np.roll(waves, 9, 2))
        write_coordinates(file, waves.shape)
