"""The metrics file survives kills, resumes and damage; a full disk is an error of its own."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ups_jax.core.errors import DataError, StorageError
from ups_jax.tracking import read_jsonl
from ups_jax.tracking.jsonl import JsonlWriter


def steps_of(path, stage="operator"):
    return [record["step"] for record in read_jsonl(path) if record["stage"] == stage]


class TestJsonl:
    def test_records_come_back_with_null_for_non_finite(self, tmp_path):
        writer = JsonlWriter(tmp_path / "run" / "metrics.jsonl")
        writer.scalars(3, {"epoch": 0.5, "loss": np.float32(0.25), "norm": float("inf")}, "operator")
        # Readable before close: a run is watched while it trains.
        assert read_jsonl(writer.path) == [{"stage": "operator", "step": 3, "epoch": 0.5, "loss": 0.25, "norm": None}]
        json.loads(writer.path.read_text(), parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
        writer.close()

    def test_steps_of_a_stage_are_strictly_increasing_also_in_the_next_process(self, tmp_path):
        path = tmp_path / "metrics.jsonl"
        writer = JsonlWriter(path)
        for stage in ("operator", "corrector"):
            writer.scalars(1, {}, stage)
        writer.close()
        writer = JsonlWriter(path)
        with pytest.raises(ValueError, match=r"step 1.*operator.*step 1"):
            writer.scalars(1, {}, "operator")
        writer.scalars(2, {}, "operator")
        writer.close()
        assert steps_of(path) == [1, 2]

    def test_a_resume_drops_the_steps_after_the_restored_one_of_that_stage_only(self, tmp_path):
        path = tmp_path / "metrics.jsonl"
        writer = JsonlWriter(path)
        for step in range(1, 6):
            writer.scalars(step, {"loss": float(step)}, "operator")
            writer.scalars(10 * step, {}, "corrector")
        writer.drop_records_after("operator", 3)
        assert steps_of(path) == [1, 2, 3] and steps_of(path, "corrector") == [10, 20, 30, 40, 50]
        writer.scalars(4, {"loss": 0.0}, "operator")
        writer.close()
        assert [record["loss"] for record in read_jsonl(path) if "loss" in record] == [1, 2, 3, 0]
        assert [item.name for item in tmp_path.iterdir()] == ["metrics.jsonl"]

    @given(cut=st.integers(1, 30))
    def test_a_kill_inside_a_record_costs_that_record_alone(self, tmp_path_factory, cut):
        path = tmp_path_factory.mktemp("run") / "metrics.jsonl"
        writer = JsonlWriter(path)
        writer.scalars(1, {}, "operator")
        size = path.stat().st_size
        writer.scalars(2, {"loss": 0.5}, "operator")
        writer.close()
        path.write_bytes(path.read_bytes()[: size + cut])
        assert steps_of(path) == [1]
        writer = JsonlWriter(path)
        writer.scalars(2, {}, "operator")
        writer.close()
        assert steps_of(path) == [1, 2]

    def test_damage_before_the_last_line_is_named(self, tmp_path):
        path = tmp_path / "metrics.jsonl"
        path.write_text('{"stage": "operator", "step": 1}\n{"st\n{"stage": "operator", "step": 3}\n')
        with pytest.raises(DataError, match=r"metrics\.jsonl.*line 2"):
            read_jsonl(path)

    def test_a_place_that_cannot_be_written_is_a_storage_error(self, tmp_path):
        (tmp_path / "file").write_text("")
        with pytest.raises(StorageError, match=r"metrics\.jsonl"):
            JsonlWriter(tmp_path / "file" / "metrics.jsonl")

    @pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
    def test_a_full_disk_is_a_storage_error(self, tmp_path):
        path = tmp_path / "metrics.jsonl"
        writer = JsonlWriter(path)
        with Path("/dev/full").open("w") as full:
            for link in Path("/proc/self/fd").iterdir():
                if link.resolve() == path.resolve():
                    os.dup2(full.fileno(), int(link.name))
        with pytest.raises(StorageError, match=os.strerror(errno.ENOSPC)):
            writer.scalars(1, {}, "operator")
        with pytest.raises(StorageError, match=os.strerror(errno.ENOSPC)):
            writer.close()
