"""Configurations, and files of the tensor layout written with plain h5py."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest
from travelling_waves import DT, SPACING

from ups_jax import config


@pytest.fixture
def configure(tmp_path):
    def make(name="waves", *, data=None, training=None, seed=17, batch_size=8, **task):
        return config.from_dict(
            {
                "seed": seed,
                "data": {"root": str(tmp_path), "tasks": [{"name": name, **task}], **(data or {})},
                "training": {"batch_size": batch_size, **(training or {})},
            }
        )

    return make


@pytest.fixture
def write(tmp_path):
    """Write a file of the tensor layout; a dataset given as None is left out."""

    def make(fields, file_name="waves.hdf5", attributes=None, spacing=SPACING, **datasets) -> Path:
        content = {
            "tensor": np.asarray(fields, np.float32),
            "t-coordinate": (DT * np.arange(fields.shape[1] + 1)).astype(np.float32),
        }
        for axis, points in zip("xy", fields.shape[2:], strict=False):
            content[f"{axis}-coordinate"] = (-1 + spacing * np.arange(points)).astype(np.float32)
        path = tmp_path / file_name
        with h5py.File(path, "w") as file:
            for name, values in (content | {key.replace("__", "-"): value for key, value in datasets.items()}).items():
                if values is not None:
                    file[name.replace("parameters_", "parameters/")] = values
            file.attrs.update(attributes or {})
        return path

    return make
