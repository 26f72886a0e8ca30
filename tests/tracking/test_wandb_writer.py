"""wandb never stops or delays training, and gets everything that it is told."""

from __future__ import annotations

import sys
import threading
import time
from types import SimpleNamespace

import pytest

from ups_jax.config import WandbConfig
from ups_jax.tracking.wandb_run import has_wandb_login, wandb_mode
from ups_jax.tracking.wandb_writer import WandbWriter


class TestLogin:
    def test_auto_is_online_only_where_a_login_is_found(self, monkeypatch, tmp_path):
        assert wandb_mode("auto") == "offline" and not has_wandb_login()
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
        with pytest.warns(UserWarning, match="wandb login"):
            writer.scalars(1, {"loss": 1.0}, "operator")
        writer.close()
        assert not writer.has_delivered("scalars")


def wandb_writer(directory, mode="offline", **kwargs):
    config = WandbConfig(mode=mode)
    return WandbWriter(config, directory=directory, group="run", name="run-1", run_config={"lr": 0.1}, **kwargs)


def fake_wandb(monkeypatch, **overrides):
    """A stand-in for wandb that records what it is asked to do; `overrides` replace methods of its run or `init`."""
    calls = []

    def note(name):
        return lambda *args, **kwargs: calls.append((name, args, kwargs))

    logged = SimpleNamespace(wait=overrides.get("wait", note("wait")))

    def log_artifact(artifact, aliases):
        calls.append(("log_artifact", (), {}))
        return logged

    run = SimpleNamespace(
        id="id-1",
        entity="team",
        url="https://wandb.example/id-1",
        tags=("old",),
        define_metric=overrides.get("define_metric", note("define_metric")),
        log=overrides.get("log", note("log")),
        log_artifact=log_artifact,
        alert=overrides.get("alert", note("alert")),
        finish=overrides.get("finish", note("finish")),
        mark_preempting=note("mark_preempting"),
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
    assert calls[-2:] == [("summary", ({"nrmse": 0.1},), {}), ("finish", (), {"exit_code": 0})]


def failure(*args, **kwargs):
    raise RuntimeError("no route to host")


def names(calls):
    return [name for name, _, _ in calls]


@pytest.mark.parametrize("where", ["init", "finish"])
def test_a_run_that_cannot_begin_or_end_is_told_once(monkeypatch, tmp_path, where):
    fake_wandb(monkeypatch, **{where: failure})
    writer = wandb_writer(tmp_path)
    with pytest.warns(UserWarning, match="RuntimeError: no route to host") as warned:
        writer.scalars(1, {"loss": 0.5}, "operator")
        writer.alert("ended", "well")
        writer.close()
        writer.scalars(2, {"loss": 0.5}, "operator")
    assert len(warned) == 1 and "RuntimeError" in writer.problem
    assert not writer.has_delivered("alert")


@pytest.mark.parametrize("where", ["define_metric", "log", "alert"])
def test_an_operation_that_fails_is_left_out_told_once_of_its_kind_and_the_rest_arrives(monkeypatch, tmp_path, where):
    calls = fake_wandb(monkeypatch, **{where: failure})
    writer = wandb_writer(tmp_path)
    with pytest.warns(UserWarning, match="no route to host") as warned:
        for step in (1, 2):
            writer.scalars(step, {"loss": 0.5}, "operator")
            writer.alert("ended", "well")
            writer.summary({"step": step})
        writer.close()
    assert len(warned) == 1 and writer.problem is None
    assert names(calls).count("summary") == 2 and names(calls)[-1] == "finish"
    assert writer.has_delivered("summary", "artifact") and writer.has_delivered("alert") == (where != "alert")


def test_a_kind_that_failed_once_is_not_lost_for_good(monkeypatch, tmp_path):
    heard = []

    def log(record):
        if "training/operator/loss" not in record:
            raise ValueError("cannot be shown")
        heard.append(record["training/operator/step"])

    fake_wandb(monkeypatch, log=log)
    writer = wandb_writer(tmp_path)
    with pytest.warns(UserWarning, match="cannot be shown") as warned:
        # Never five in a row, though far more than five in all.
        for step in range(40):
            writer.scalars(step, {"loss": 0.5} if step % 5 == 4 else {}, "operator")
        writer.close()
    assert heard == list(range(4, 40, 5)) and len(warned) == 1 and writer.problem is None


def test_after_five_failures_in_a_row_nothing_more_is_sent_but_the_end(monkeypatch, tmp_path):
    tried = []

    def log(record):
        tried.append(record)
        failure()

    calls = fake_wandb(monkeypatch, log=log)
    writer = wandb_writer(tmp_path)
    with pytest.warns(UserWarning) as warned:
        for step in range(20):
            writer.scalars(step, {"loss": 0.5}, "operator")
        writer.close("failed")
    assert len(tried) == 5 and names(calls)[-1] == "finish"
    assert [str(item.message).split(":")[1].split()[0] for item in warned] == ["`scalars`", "disabled"]
    assert writer.problem == "5 operations in a row failed, the last one with RuntimeError: no route to host"


@pytest.mark.parametrize(
    ("outcome", "end"),
    [
        ("finished", [("finish", (), {"exit_code": 0})]),
        ("failed", [("finish", (), {"exit_code": 1})]),
        ("stopped", [("mark_preempting", (), {}), ("finish", (), {"exit_code": 75})]),
    ],
)
def test_wandb_is_told_how_a_run_ended(monkeypatch, tmp_path, outcome, end):
    calls = fake_wandb(monkeypatch)
    writer = wandb_writer(tmp_path)
    writer.close(outcome)
    assert calls[-len(end) :] == end and names(calls).count("mark_preempting") == (outcome == "stopped")


def refusing_online(asked, answer=None):
    """An `init` that has no answer online, once the event `answer` is set; offline it is a run."""

    def init(**kwargs):
        asked.append(kwargs)
        if kwargs["mode"] == "online":
            assert answer is None or answer.wait(30)
            raise ConnectionError("no answer")
        return sys.modules["wandb"].run

    return init


def test_without_an_answer_the_run_goes_on_offline_with_all_that_it_was_told(monkeypatch, tmp_path):
    monkeypatch.setenv("WANDB_API_KEY", "x")
    asked, answer = [], threading.Event()
    calls = fake_wandb(monkeypatch, init=refusing_online(asked, answer))
    writer = wandb_writer(tmp_path, mode="online")
    # Training does not wait for the answer.
    writer.scalars(1, {"loss": 0.5}, "operator")
    answer.set()
    with pytest.warns(UserWarning, match=r"ConnectionError: no answer.*wandb sync") as warned:
        writer.close()
    assert len(warned) == 1 and writer.problem is None and writer.mode == "offline"
    assert [kwargs["mode"] for kwargs in asked] == ["online", "offline"]
    assert asked[0]["settings"]["init_timeout"] == 90
    assert names(calls).count("log") == 1 and names(calls)[-1] == "finish"


def test_a_long_wait_for_the_answer_is_told_and_ends(monkeypatch, tmp_path):
    monkeypatch.setenv("WANDB_API_KEY", "x")
    release = threading.Event()
    fake_wandb(monkeypatch, init=lambda **kwargs: release.wait(30))
    writer = wandb_writer(tmp_path, mode="online", finish_timeout=0.1, init_timeout=0.5)
    begin = time.monotonic()
    with pytest.warns(UserWarning) as warned:
        writer.close()
    assert 0.5 < time.monotonic() - begin < 5
    assert len(warned) == 2 and "wandb sync" in writer.problem
    release.set()


@pytest.mark.parametrize("where", ["init", "log", "finish"])
def test_a_hang_of_wandb_delays_nothing_but_the_bounded_close(monkeypatch, tmp_path, where):
    release = threading.Event()
    fake_wandb(monkeypatch, **{where: lambda *args, **kwargs: release.wait(30)})
    writer = wandb_writer(tmp_path, finish_timeout=0.1)
    begin = time.monotonic()
    for step in range(100):
        writer.scalars(step, {"loss": 0.5}, "operator")
    with pytest.warns(UserWarning, match="wandb sync"):
        writer.close()
    assert time.monotonic() - begin < 5
    # Otherwise the process could not end while wandb hangs.
    threads = [thread for thread in threading.enumerate() if thread.name == "wandb"]
    assert threads and all(thread.daemon for thread in threads)
    release.set()


def test_a_hang_in_a_long_run_does_not_fill_the_memory(monkeypatch, tmp_path):
    release = threading.Event()
    fake_wandb(monkeypatch, init=lambda **kwargs: release.wait(30))
    writer = wandb_writer(tmp_path, finish_timeout=0.1, max_queued=5)
    begin = time.monotonic()
    for step in range(5):
        writer.scalars(step, {"loss": 0.5}, "operator")
    with pytest.warns(UserWarning, match="5") as warned:
        for step in range(5, 20):
            writer.scalars(step, {"loss": 0.5}, "operator")
    assert len(warned) == 1 and writer.problem is not None
    assert time.monotonic() - begin < 1
    release.set()
    writer.close()


@pytest.fixture
def folder(monkeypatch, tmp_path):
    """An artifact of half a megabyte for an online run."""
    monkeypatch.setenv("WANDB_API_KEY", "x")
    (tmp_path / "best").mkdir()
    (tmp_path / "best" / "weights").write_bytes(b"x" * 500_000)
    return tmp_path / "best"


def send(writer, folder):
    writer.artifact(folder, "run", kind="model", labels=["best"], metadata={})


def test_close_waits_for_an_upload_as_long_as_its_size_allows(monkeypatch, tmp_path, folder):
    granted = []

    def wait(timeout):
        granted.append(timeout)
        time.sleep(0.4)

    # Longer than twice `finish_timeout`: what is still in the queue counts as well as what is on its way.
    calls = fake_wandb(monkeypatch, wait=wait, log=lambda record: time.sleep(1))
    monkeypatch.setattr("ups_jax.tracking.wandb_writer.folder_size", lambda path: 2_500_000)
    writer = wandb_writer(tmp_path, mode="online", finish_timeout=0.25)
    writer.scalars(1, {"loss": 0.5}, "operator")
    send(writer, folder)
    writer.alert("ended", "well")
    writer.close()
    assert writer.problem is None and granted == [3]
    # The upload held up nothing that was sent after it.
    assert names(calls)[-3:] == ["log_artifact", "alert", "finish"]


@pytest.mark.parametrize("size", [500_000, 10**12])
def test_close_waits_for_an_upload_no_longer_than_its_size_and_the_bound_allow(monkeypatch, tmp_path, folder, size):
    release = threading.Event()
    fake_wandb(monkeypatch, wait=lambda timeout: release.wait(30))
    monkeypatch.setattr("ups_jax.tracking.wandb_writer.folder_size", lambda path: size)
    writer = wandb_writer(tmp_path, mode="online", finish_timeout=0.1, max_upload_seconds=1.0)
    send(writer, folder)
    begin = time.monotonic()
    with pytest.warns(UserWarning, match="wandb sync"):
        writer.close()
    assert time.monotonic() - begin < 5
    release.set()


def test_an_upload_that_fails_is_told_and_the_run_ends_all_the_same(monkeypatch, tmp_path, folder):
    calls = fake_wandb(monkeypatch, wait=failure)
    writer = wandb_writer(tmp_path, mode="online", finish_timeout=0.1)
    send(writer, folder)
    with pytest.warns(UserWarning, match=r"`artifact` failed.*no route to host"):
        writer.close()
    assert names(calls)[-1] == "finish" and not writer.has_delivered("artifact")
