"""Writers: the JSONL file survives kills and resumes, wandb never stops or delays training."""

from __future__ import annotations

import contextlib
import json
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ups_jax.config import WandbConfig
from ups_jax.errors import DataError, StorageError
from ups_jax.tracking import JsonlWriter, Tee, WandbWriter, login_found, read_jsonl, wandb_mode


@pytest.fixture(autouse=True)
def no_login(monkeypatch, tmp_path):
    for name in ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE", "WANDB_MODE", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))


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
        with pytest.raises(ValueError, match="step 1 of stage operator follows step 1"):
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
        writer.truncate("operator", 3)
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
        with pytest.raises(DataError, match=r"metrics\.jsonl: line 2"):
            read_jsonl(path)

    def test_a_place_that_cannot_be_written_is_a_storage_error(self, tmp_path):
        (tmp_path / "file").write_text("")
        with pytest.raises(StorageError, match=r"metrics\.jsonl"):
            JsonlWriter(tmp_path / "file" / "metrics.jsonl")

    @pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
    def test_a_full_disk_is_a_storage_error(self, tmp_path):
        writer = JsonlWriter(tmp_path / "metrics.jsonl")
        writer.close()
        writer._file = Path("/dev/full").open("w")  # noqa: SIM115 (closing it raises too)
        with pytest.raises(StorageError, match="No space left"):
            writer.scalars(1, {}, "operator")
        with contextlib.suppress(OSError):
            writer.close()


def test_tee_hands_on_everything_and_closes_all_even_when_one_raises():
    calls = []

    def recorder(name):
        def note(kind):
            return lambda *args: calls.append((name, kind, *args))

        return SimpleNamespace(**{kind: note(kind) for kind in ("scalars", "summary", "image", "close")})

    first, second = recorder("a"), recorder("b")
    tee = Tee([first, second])
    tee.scalars(1, {"loss": 2.0}, "operator")
    tee.summary({"x": 1})
    tee.image("plot", Path("p.png"))
    assert calls[::2] == [
        ("a", "scalars", 1, {"loss": 2.0}, "operator"),
        ("a", "summary", {"x": 1}),
        ("a", "image", "plot", Path("p.png")),
    ]
    assert [call[1:] for call in calls[::2]] == [call[1:] for call in calls[1::2]]

    def fail():
        raise StorageError("full")

    first.close = fail
    with pytest.raises(StorageError):
        tee.close()
    assert calls[-1] == ("b", "close")


class TestLogin:
    def test_auto_is_online_only_where_a_login_is_found(self, monkeypatch, tmp_path):
        assert wandb_mode("auto") == "offline" and not login_found()
        (tmp_path / "netrc").write_text("machine api.wandb.ai login user password x\n")
        assert wandb_mode("auto") == "online"
        monkeypatch.setenv("WANDB_BASE_URL", "https://other.example")
        assert wandb_mode("auto") == "offline"
        monkeypatch.setenv("WANDB_API_KEY", "x")
        assert wandb_mode("auto") == "online"

    def test_the_environment_has_the_last_word(self, monkeypatch):
        monkeypatch.setenv("WANDB_MODE", "offline")
        assert wandb_mode("online") == "offline"
        monkeypatch.setenv("WANDB_MODE", "disabled")
        assert wandb_mode("auto") == "disabled"

    def test_online_without_a_login_is_off_instead_of_asking(self, tmp_path):
        writer = wandb_writer(tmp_path, mode="online")
        with pytest.warns(UserWarning, match="no login was found"):
            writer.scalars(1, {"loss": 1.0}, "operator")
        writer.close()


def wandb_writer(directory, mode="offline", **kwargs):
    config = WandbConfig(mode=mode)
    return WandbWriter(config, directory=directory, group="run", name="run-1", run_config={"lr": 0.1}, **kwargs)


def fake_wandb(monkeypatch, **overrides):
    """A stand-in for wandb that records what it is asked to do; `overrides` replace methods of its run or `init`."""
    calls = []

    def note(name):
        return lambda *args, **kwargs: calls.append((name, args, kwargs))

    run = SimpleNamespace(
        define_metric=overrides.get("define_metric", note("define_metric")),
        log=overrides.get("log", note("log")),
        finish=overrides.get("finish", note("finish")),
        summary=SimpleNamespace(update=note("summary")),
    )

    def init(**kwargs):
        calls.append(("init", (), kwargs))
        return run

    fake = SimpleNamespace(
        init=overrides.get("init", init), setup=note("setup"), Image=lambda path: path, Settings=lambda **kwargs: kwargs
    )
    monkeypatch.setitem(sys.modules, "wandb", fake)
    return calls


def test_wandb_gets_stages_as_prefixes_with_their_own_step_axis_and_never_a_step(monkeypatch, tmp_path):
    calls = fake_wandb(monkeypatch)
    writer = wandb_writer(tmp_path)
    for stage, step in (("operator", 1), ("operator", 2), ("corrector", 1)):
        writer.scalars(step, {"loss": 0.5}, stage)
    writer.summary({"nrmse": 0.1})
    writer.close()
    assert writer.problem is None
    (init,) = [kwargs for name, _, kwargs in calls if name == "init"]
    assert init["group"] == "run" and init["dir"] == str(tmp_path) and init["mode"] == "offline"
    logs = [(args, kwargs) for name, args, kwargs in calls if name == "log"]
    assert logs[1] == (({"operator/loss": 0.5, "operator/step": 2},), {})
    assert all(not kwargs for _, kwargs in logs)
    metrics = [(args, kwargs) for name, args, kwargs in calls if name == "define_metric"]
    for stage in ("operator", "corrector"):
        assert metrics.count(((f"{stage}/*",), {"step_metric": f"{stage}/step"})) == 1
    assert calls[-2:] == [("summary", ({"nrmse": 0.1},), {}), ("finish", (), {})]


def failure(*args, **kwargs):
    raise RuntimeError("no route to host")


@pytest.mark.parametrize("where", ["init", "define_metric", "log", "finish"])
def test_an_error_of_wandb_is_told_once_and_turns_it_off(monkeypatch, tmp_path, where):
    fake_wandb(monkeypatch, **{where: failure})
    writer = wandb_writer(tmp_path)
    with pytest.warns(UserWarning, match="no route to host") as told:
        writer.scalars(1, {"loss": 0.5}, "operator")
        writer.close()
        writer.scalars(2, {"loss": 0.5}, "operator")
    assert len(told) == 1
    assert "RuntimeError" in writer.problem


@pytest.mark.parametrize("where", ["init", "log", "finish"])
def test_a_hang_of_wandb_delays_nothing_but_the_bounded_close(monkeypatch, tmp_path, where):
    release = threading.Event()
    fake_wandb(monkeypatch, **{where: lambda *args, **kwargs: release.wait(30)})
    writer = wandb_writer(tmp_path, patience=0.1)
    begin = time.monotonic()
    for step in range(100):
        writer.scalars(step, {"loss": 0.5}, "operator")
    with pytest.warns(UserWarning, match="did not finish in time"):
        writer.close()
    assert time.monotonic() - begin < 5
    # Otherwise the process could not end while wandb hangs.
    assert writer._thread.daemon
    release.set()


def test_a_hang_in_a_long_run_does_not_fill_the_memory(monkeypatch, tmp_path):
    release = threading.Event()
    fake_wandb(monkeypatch, init=lambda **kwargs: release.wait(30))
    monkeypatch.setattr("ups_jax.tracking._WAITING_RECORDS", 5)
    writer = wandb_writer(tmp_path, patience=0.1)
    begin = time.monotonic()
    with pytest.warns(UserWarning, match="it hangs"):
        for step in range(20):
            writer.scalars(step, {"loss": 0.5}, "operator")
    assert writer._jobs.qsize() == 5
    assert time.monotonic() - begin < 1
    release.set()
    writer.close()


def test_the_real_wandb_offline_writes_into_the_run_directory_and_says_nothing(tmp_path, capfd):
    writer = wandb_writer(tmp_path, patience=30.0)
    for step in range(5):
        writer.scalars(step, {"loss": 1.0, "norm": float("nan")}, "operator")
    writer.close()
    assert writer.problem is None
    assert list((tmp_path / "wandb").glob("offline-run-*/run-*.wandb"))
    assert capfd.readouterr() == ("", "")
