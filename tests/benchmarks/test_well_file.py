"""The built-in shallow water as a file of The Well holds what the generator wrote."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from commands import CONFIGS
from comparison.well_file import write_well

from ups_jax import simulate
from ups_jax.config import load
from ups_jax.data import data_path, open_dataset
from ups_jax.data.sources import detect_layout, open_file


def test_the_shallow_water_as_a_file_of_the_well_is_the_same_data(data_root: Path, tmp_path: Path) -> None:
    cfg = load(CONFIGS / "swe2d.yaml", [f"data.root={data_root}", "data.tasks.0.preset=tiny"])
    simulate.generate_missing(cfg)
    source, out = data_path(cfg.data, cfg.data.tasks[0]), tmp_path / "well.hdf5"
    write_well(source, out)
    assert detect_layout(out).name == "well"
    one, other = open_file(source, "transient"), open_file(out, "transient", ("height", "velocity_x", "velocity_y"))
    ids = np.arange(one.trajectories)
    frames = np.tile(np.arange(one.frames), (len(ids), 1))
    np.testing.assert_array_equal(other.read(ids, frames), one.read(ids, frames))
    expected, actual = one.coefficient("gravity"), other.coefficient("gravity")
    assert expected is not None and actual is not None
    np.testing.assert_allclose(actual, expected, rtol=1e-6)
    well = load(CONFIGS / "swe2d_well.yaml", [f"data.tasks.0.path={out}"])
    assert open_dataset(well).task.boundary_codes == open_dataset(cfg).task.boundary_codes
