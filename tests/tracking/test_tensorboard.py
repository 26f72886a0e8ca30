"""TensorBoard's event files: one curve after a resume, all of it readable, a clear word without the library."""

from __future__ import annotations

import importlib.util
import struct

import matplotlib.image
import numpy as np
import pytest

from ups_jax.config import LoggingConfig, WandbConfig
from ups_jax.core.errors import ConfigError, StorageError
from ups_jax.tracking import check_logging, open_training_writer
from ups_jax.tracking.tensorboard import TensorboardWriter

OFF = WandbConfig(enabled=False)


def test_without_the_library_the_error_names_the_extra(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    check_logging(LoggingConfig(wandb=OFF))
    with pytest.raises(ConfigError, match=r"logging\.tensorboard.*ups_jax\[tensorboard\]"):
        check_logging(LoggingConfig(tensorboard=True, wandb=OFF))


@pytest.fixture
def event_type():
    pytest.importorskip("tensorboardX")
    from tensorboardX.proto.event_pb2 import Event

    return Event


def events(directory, event_type):
    """The events of a folder in the order in which TensorBoard reads them."""
    items = []
    for path in sorted(directory.iterdir()):
        data, position = path.read_bytes(), 0
        while position < len(data):
            (length,) = struct.unpack_from("<Q", data, position)
            items.append(event_type.FromString(data[position + 12 : position + 12 + length]))
            position += length + 16
    return items


def curve(directory, event_type, tag):
    """Points of a curve with TensorBoard's rule for a restart: what lies at its step and after is dropped."""
    points = {}
    for event in events(directory, event_type):
        if event.session_log.status == event.session_log.START:
            points = {step: value for step, value in points.items() if step < event.step}
        points |= [(event.step, value.simple_value) for value in event.summary.value if value.tag == tag]
    return points


def test_a_resumed_stage_is_one_curve_beside_those_of_other_stages(tmp_path, event_type):
    logging = LoggingConfig(tensorboard=True, wandb=OFF)

    def train(stage, start, values):
        writer = open_training_writer(tmp_path, tmp_path / "m.jsonl", logging, stage=stage, step=start, run_config={})
        for step, value in values.items():
            writer.scalars(step, {"loss": value, "norm": float("inf")}, stage)
        writer.close()

    train("operator", 0, {1: 1.0, 2: 2.0, 3: 3.0, 4: 4.0})
    train("corrector", 0, {1: 7.0})
    train("operator", 2, {3: 30.0})
    assert curve(tmp_path / "tensorboard" / "operator", event_type, "loss") == {1: 1.0, 2: 2.0, 3: 30.0}
    assert curve(tmp_path / "tensorboard" / "corrector", event_type, "loss") == {1: 7.0}
    assert curve(tmp_path / "tensorboard" / "corrector", event_type, "norm") == {}


def test_results_are_numbers_a_table_and_pictures(tmp_path, event_type):
    matplotlib.image.imsave(tmp_path / "plot.png", np.zeros((5, 3)))
    writer = TensorboardWriter(tmp_path)
    writer.summary({"eval": {"test": {"nrmse": 0.5, "nrmse_by_time": [1.0], "name": "x"}}})
    writer.table("headlines", ["", "nrmse"], [["this model", 0.5], ["persistence", None]])
    writer.image("rollout", tmp_path / "plot.png")
    with pytest.raises(ValueError, match="not a PNG"):
        writer.image("rollout", tmp_path / "results" / next((tmp_path / "results").iterdir()).name)
    writer.close()
    values = {value.tag: value for event in events(tmp_path / "results", event_type) for value in event.summary.value}
    assert values.keys() == {"eval/test/nrmse", "headlines/text_summary", "rollout"}
    assert values["eval/test/nrmse"].simple_value == 0.5
    text = values["headlines/text_summary"].tensor.string_val[0].decode()
    assert text == "||nrmse|\n|---|---|\n|this model|0.5|\n|persistence||"
    picture = values["rollout"].image
    assert (picture.height, picture.width) == (5, 3)
    assert picture.encoded_image_string == (tmp_path / "plot.png").read_bytes()


def test_a_place_that_cannot_be_written_is_a_storage_error(tmp_path, event_type):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="file"):
        TensorboardWriter(tmp_path / "file").scalars(1, {"loss": 1.0}, "operator")
