"""One W&B run for the processes of a pipeline: who begins it, who joins it, and who may not."""

from __future__ import annotations

import pytest
from test_wandb_writer import fake_wandb, refusing_online, wandb_writer

from ups_jax.config import LoggingConfig, WandbConfig
from ups_jax.core.errors import ConfigError, StorageError
from ups_jax.tracking import check_logging, open_evaluation_writer, open_training_writer, wandb_context_path
from ups_jax.tracking.wandb_run import RunContext, read_context, write_context
from ups_jax.tracking.wandb_writer import WandbWriter

SHARED = RunContext(run_id="id-0", project="theirs", entity="team", group="pipeline", mode="online", url="https://w/0")


@pytest.fixture
def online(monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "x")


def started(tmp_path, path, mode="online", **options):
    config = WandbConfig(mode=mode, project="mine", tags=("new",))
    writer = WandbWriter(
        config, directory=tmp_path, group="run", name="run-0", run_config={"seed": 1}, context_file=path, **options
    )
    writer.close()
    assert writer.problem is None


def asked(calls, name):
    return [(args, kwargs) for called, args, kwargs in calls if called == name]


def is_its_own(init):
    """Whether a run is no other's, whatever WANDB_RUN_ID and WANDB_RESUME say."""
    return len(init["id"]) == 16 and init["id"] != "id-0" and init["resume"] == "never"


def test_the_first_process_begins_a_run_and_says_so(monkeypatch, tmp_path, online):
    calls = fake_wandb(monkeypatch)
    path = tmp_path / "new" / "context.json"
    assert read_context(path) is None
    started(tmp_path, path)
    ((_, init),) = asked(calls, "init")
    assert init["name"] == "run-0" and init["group"] == "run" and is_its_own(init)
    expected = RunContext(
        run_id="id-1", project="mine", entity="team", group="run", mode="online", url="https://wandb.example/id-1"
    )
    assert read_context(path) == expected
    assert [item.name for item in path.parent.iterdir()] == ["context.json"]


def test_a_later_process_joins_it_by_its_id_and_adds_its_own_settings(monkeypatch, tmp_path, online):
    calls = fake_wandb(monkeypatch)
    path = tmp_path / "context.json"
    write_context(path, SHARED)
    started(tmp_path, path)
    ((_, init),) = asked(calls, "init")
    expected = {"id": "id-0", "resume": "allow", "project": "theirs", "entity": "team", "group": "pipeline"}
    assert init.items() >= expected.items()
    # The run keeps the name that it was begun with.
    assert not {"name", "tags", "config"} & init.keys()
    assert asked(calls, "config") == [(({"seed": 1},), {"allow_val_change": True})]
    import wandb

    assert wandb.run.tags == ("old", "new")
    assert read_context(path) == SHARED


def test_a_restart_begins_a_run_of_the_group_and_is_the_one_to_join(monkeypatch, tmp_path, online):
    calls = fake_wandb(monkeypatch)
    path = tmp_path / "context.json"
    write_context(path, SHARED)
    started(tmp_path, path, join=False)
    ((_, init),) = asked(calls, "init")
    assert init["group"] == "pipeline" and init["project"] == "theirs" and is_its_own(init)
    assert read_context(path).run_id == "id-1"


def test_an_offline_process_is_one_more_run_of_the_group_and_leaves_the_run_to_others(monkeypatch, tmp_path):
    calls = fake_wandb(monkeypatch)
    path = tmp_path / "context.json"
    write_context(path, SHARED)
    started(tmp_path, path, mode="offline")
    ((_, init),) = asked(calls, "init")
    assert init["group"] == "pipeline" and is_its_own(init)
    assert read_context(path) == SHARED


def test_nobody_joins_an_offline_run(monkeypatch, tmp_path, online):
    calls = fake_wandb(monkeypatch)
    path = tmp_path / "context.json"
    write_context(path, RunContext(run_id="id-0", project="p", entity=None, group="pipeline", mode="offline"))
    started(tmp_path, path)
    ((_, init),) = asked(calls, "init")
    assert init["group"] == "pipeline" and is_its_own(init)
    assert read_context(path).run_id == "id-1"


def test_every_start_has_an_id_of_its_own(monkeypatch, tmp_path):
    calls = fake_wandb(monkeypatch)
    for _ in range(3):
        started(tmp_path, None, mode="offline")
    assert len({init["id"] for _, init in asked(calls, "init")}) == 3


def test_a_run_that_is_offline_for_want_of_an_answer_joins_nobody(monkeypatch, tmp_path, online):
    seen = []
    calls = fake_wandb(monkeypatch, init=refusing_online(seen))
    path = tmp_path / "context.json"
    write_context(path, SHARED)
    with pytest.warns(UserWarning, match="wandb"):
        started(tmp_path, path)
    assert seen[0]["id"] == "id-0"
    assert seen[1].items() >= {"group": "pipeline", "mode": "offline", "name": "run-0", "tags": ("new",)}.items()
    assert is_its_own(seen[1]) and read_context(path) == SHARED
    assert calls[-1][0] == "finish"


def test_a_file_that_is_damaged_after_the_start_is_a_line_and_the_run_its_own(monkeypatch, tmp_path):
    calls = fake_wandb(monkeypatch)
    path = tmp_path / "context.json"
    path.write_text("{")
    monkeypatch.setenv("WANDB_CONTEXT_FILE", str(path))
    logging = LoggingConfig(wandb=WandbConfig(mode="offline"))
    run = tmp_path / "run"
    with pytest.warns(UserWarning, match=r"context\.json") as warned:
        writer = open_training_writer(run, run / "m.jsonl", logging, stage="operator", step=0, run_config={})
        writer.scalars(1, {"loss": 1.0}, "operator")
        writer.close()
        writer = open_evaluation_writer(run, logging, name="test", run_config={})
        writer.summary({"nrmse": 1.0})
        writer.close()
    assert len(warned) == 2
    assert [init["group"] for _, init in asked(calls, "init")] == [tmp_path.name, tmp_path.name]
    assert len(asked(calls, "log")) == len(asked(calls, "summary")) == 1
    # Whoever finds it should see what it was.
    assert path.read_text() == "{"


def test_a_file_that_cannot_be_written_is_a_line_and_the_run_goes_on(monkeypatch, tmp_path):
    def full(path, context):
        raise StorageError(f"{path}: cannot be written")

    calls = fake_wandb(monkeypatch)
    monkeypatch.setattr("ups_jax.tracking.wandb_run.write_context", full)
    writer = wandb_writer(tmp_path, context_file=tmp_path / "context.json")
    with pytest.warns(UserWarning, match=r"context\.json"):
        writer.summary({"nrmse": 1.0})
        writer.close()
    assert writer.problem is None and len(asked(calls, "summary")) == 1


@pytest.mark.parametrize("text", ["", "{", '{"run_id": "x"}', "[1]"])
def test_a_damaged_file_is_one_line_before_anything_starts(monkeypatch, tmp_path, text):
    path = tmp_path / "context.json"
    path.write_text(text)
    monkeypatch.setenv("WANDB_CONTEXT_FILE", str(path))
    assert wandb_context_path() == path
    with pytest.raises(ConfigError, match=r"context\.json") as error:
        check_logging(LoggingConfig())
    assert "\n" not in str(error.value)
    check_logging(LoggingConfig(wandb=WandbConfig(enabled=False)))
