"""wandb never stops or delays training, and gets everything that it is told."""

from __future__ import annotations

import sys
import threading
import time
from types import SimpleNamespace

import pytest

from ups_jax.config import WandbConfig
from ups_jax.tracking import WandbWriter, login_found, wandb_mode


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

    logged = SimpleNamespace(wait=overrides.get("wait", note("wait")))
    run = SimpleNamespace(
        id="id-1",
        entity="team",
        url="https://wandb.example/id-1",
        tags=("old",),
        define_metric=overrides.get("define_metric", note("define_metric")),
        log=overrides.get("log", note("log")),
        log_artifact=lambda artifact, aliases: logged,
        alert=overrides.get("alert", note("alert")),
        finish=overrides.get("finish", note("finish")),
        summary=SimpleNamespace(update=note("summary")),
        config=SimpleNamespace(update=note("config")),
    )

    def init(**kwargs):
        calls.append(("init", (), kwargs))
        return run

    fake = SimpleNamespace(
        init=overrides.get("init", init),
        setup=note("setup"),
        Image=lambda path: path,
        Artifact=lambda name, type, metadata: SimpleNamespace(add_dir=note("add_dir")),
        Settings=lambda **kwargs: kwargs,
        run=run,
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
    assert logs[1] == (({"training/operator/loss": 0.5, "training/operator/step": 2},), {})
    assert all(not kwargs for _, kwargs in logs)
    metrics = [(args, kwargs) for name, args, kwargs in calls if name == "define_metric"]
    for stage in ("operator", "corrector"):
        axis = f"training/{stage}/step"
        assert metrics.count(((f"training/{stage}/*",), {"step_metric": axis})) == 1
    assert calls[-2:] == [("summary", ({"nrmse": 0.1},), {}), ("finish", (), {})]


def failure(*args, **kwargs):
    raise RuntimeError("no route to host")


@pytest.mark.parametrize("where", ["init", "define_metric", "log", "alert", "finish"])
def test_an_error_of_wandb_is_told_once_and_turns_it_off(monkeypatch, tmp_path, where):
    fake_wandb(monkeypatch, **{where: failure})
    writer = wandb_writer(tmp_path)
    with pytest.warns(UserWarning, match="no route to host") as told:
        writer.scalars(1, {"loss": 0.5}, "operator")
        writer.alert("ended", "well")
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
    monkeypatch.setattr("ups_jax.tracking.wandb_writer._WAITING_RECORDS", 5)
    writer = wandb_writer(tmp_path, patience=0.1)
    begin = time.monotonic()
    with pytest.warns(UserWarning, match="it hangs"):
        for step in range(20):
            writer.scalars(step, {"loss": 0.5}, "operator")
    assert writer._jobs.qsize() == 5
    assert time.monotonic() - begin < 1
    release.set()
    writer.close()


def test_close_waits_for_an_upload_as_long_as_its_size_allows_and_no_longer(monkeypatch, tmp_path):
    monkeypatch.setenv("WANDB_API_KEY", "x")
    (tmp_path / "best").mkdir()
    (tmp_path / "best" / "weights").write_bytes(b"x" * 500_000)
    granted = []

    def wait(timeout):
        granted.append(timeout)
        time.sleep(0.4)

    fake_wandb(monkeypatch, wait=wait)
    writer = wandb_writer(tmp_path, mode="online", patience=0.1)
    writer.artifact(tmp_path / "best", "run", kind="model", labels=["best"], about={})
    writer.close()
    # The upload took longer than twice the patience; half a megabyte is worth half a second more.
    assert writer.problem is None and granted == [1]

    release = threading.Event()
    fake_wandb(monkeypatch, wait=lambda timeout: release.wait(30))
    writer = wandb_writer(tmp_path, mode="online", patience=0.1)
    writer.artifact(tmp_path / "best", "run", kind="model", labels=["best"], about={})
    begin = time.monotonic()
    with pytest.warns(UserWarning, match="did not finish in time"):
        writer.close()
    assert time.monotonic() - begin < 5
    release.set()
