"""An inspection reports the values that were written to the file, and its configuration opens the file."""

from __future__ import annotations

import re
from pathlib import Path

import h5py
import numpy as np
import pytest
import yaml
from travelling_waves import waves
from written_layouts import N, centres, random, write_cfd, write_incompressible, write_seeds, write_well

from ups_jax import config
from ups_jax.data import open_dataset
from ups_jax.data.inspection import config_yaml, describe, inspect


def write_darcy(path: Path) -> None:
    with h5py.File(path, "w") as file:
        file["tensor"], file["nu"] = random(N, 1, 8, 8), np.abs(random(N, 8, 8, seed=1))
        file["x-coordinate"] = file["y-coordinate"] = centres(8, 0.0, 1.0)
        file.attrs["beta"] = 1.0


FILES = {
    "1D_CFD_Rand_Eta1.e-8_Zeta1.e-8_periodic_Train.hdf5": (lambda path: write_cfd(path, 1), "compressible_ns1d"),
    "2D_CFD_Turb_M1.0_Eta1e-08_Zeta1e-08_periodic_8_Train.hdf5": (lambda path: write_cfd(path, 2), "compressible_ns2d"),
    "1D_diff-sorp_NA_NA.h5": (lambda path: write_seeds(path, 1, 1), "diffusion_sorption1d"),
    "2D_diff-react_NA_NA.h5": (lambda path: write_seeds(path, 2, 2), "reaction_diffusion2d"),
    "2D_rdb_NA_NA.h5": (lambda path: write_seeds(path, 2, 1), "shallow_water2d"),
    "ns_incom_inhom_2d_512-0.h5": (write_incompressible, "navier_stokes2d"),
    "2D_DarcyFlow_beta1.0_Train.hdf5": (write_darcy, "darcy2d"),
    "anything.hdf5": (write_well, "made_up"),
}


@pytest.mark.parametrize("name", FILES)
def test_the_lines_of_a_configuration_open_the_file(tmp_path: Path, name: str) -> None:
    write, task = FILES[name]
    write(tmp_path / name)
    inspection = inspect(tmp_path / name)
    assert (
        inspection.task.name == task
        and inspection.is_usable
        and inspection.trajectories_read == inspection.source.trajectories
    )
    values = yaml.safe_load(config_yaml(inspection))
    # Random numbers are not periodic, whatever the names of their files say.
    said = values["data"]["tasks"][0].pop("periodic", [])
    assert said == (
        ["x", "y"][: len(inspection.source.grid.shape)] if "periodic" in name else ["x"] if task == "made_up" else []
    )
    dataset = open_dataset(config.from_dict(values))
    assert dataset.task.channels == inspection.task.channels
    assert [item.name for item in dataset.task.coefficients] == list(inspection.task.coefficients)


def test_numbers_parameters_and_boundary_are_those_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "1D_CFD_Shock_Eta1.e-8_Zeta1.e-8_trans_Train.hdf5"
    written = write_cfd(path, 1)
    inspection = inspect(path)
    for channel in inspection.channels:
        values = written[channel.name]
        ends = (channel.minimum, channel.maximum, channel.std)
        np.testing.assert_allclose(ends, (values.min(), values.max(), values.std()), rtol=1e-6)
    assert (inspection.boundary, inspection.constants) == ("transmissive", {"eta": 1e-8, "zeta": 1e-8})
    lines = "\n".join(describe(inspection))
    assert re.search(r"pdebench cfd \(transient\).*compressible_ns1d", lines)
    assert "4 trajectories of 5 frames, 3 channels" in lines and "dt 0.05" in lines
    assert re.search(r"axis x +8 points.*-0\.875.*0\.25", lines) and re.search("parameter +eta 1e-08", lines)


def test_what_varies_over_decades_is_told_on_a_logarithmic_scale_and_what_looks_periodic_is_hinted_at(write) -> None:
    fields, beta = waves()
    path = write(fields, parameters_beta=beta, parameters_nu=np.geomspace(1e-3, 1e-1, len(beta)))
    inspection = inspect(path)
    assert inspection.task.coefficients == {"beta": "linear", "nu": "log10"}
    assert inspection.coefficients["nu"] == (pytest.approx(1e-3), pytest.approx(1e-1))
    assert any("axis x looks periodic" in hint for hint in inspection.hints)
    assert any("spatial mean of u is constant" in hint for hint in inspection.hints)


def test_defects_are_counted(tmp_path: Path) -> None:
    values = random(N, 5, 8)
    values[1, 2, 3], values[1, 4, 0], values[3] = np.nan, np.inf, 2.0
    write_cfd(tmp_path / "flow.hdf5", 1, Vx=values)
    inspection = inspect(tmp_path / "flow.hdf5")
    assert not inspection.is_usable and [channel.nonfinite_frames for channel in inspection.channels] == [0, 0, 2]
    assert [channel.constant_trajectories for channel in inspection.channels] == [0, 0, 1]
    finite = values[np.isfinite(values)]
    assert inspection.channels[2].maximum == finite.max() and inspection.channels[2].std == pytest.approx(
        finite.std(), rel=1e-6
    )
    assert "NaN or Inf in 2 frames" in "\n".join(describe(inspection))


def test_of_a_large_file_some_trajectories_are_looked_at(tmp_path: Path) -> None:
    write_cfd(tmp_path / "flow.hdf5", 1)
    some = inspect(tmp_path / "flow.hdf5", max_bytes=2 * 4 * 5 * 3 * 8)
    assert some.trajectories_read == 2
    assert "2 trajectories" in "\n".join(describe(some))
    assert inspect(tmp_path / "flow.hdf5", read_all_trajectories=True).trajectories_read == N


def test_exchanged_axes_of_time_and_trajectories_are_hinted_at(write) -> None:
    fields = waves(trajectories=32)[0][:, :8]
    for name, values, is_exchanged in (("right", fields, False), ("wrong", fields.swapaxes(0, 1), True)):
        hints = inspect(write(values, f"{name}.hdf5")).hints
        assert any("exchange the first two axes" in hint for hint in hints) == is_exchanged
