"""Faults that take more than a start with one fault: each scene plays one, checks its answer, and gives its row."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

import damage
import h5py
import numpy as np
import places
import runs
from commands import command
from end_state import differences, end_state
from faults import at, kill
from rows import Row
from wandb_server import server

from ups_jax.runs.best_weights import best_weights
from ups_jax.tracking import read_jsonl

# Becomes the command behind it, without stdin, stdout and stderr.
CLOSED = ["/bin/sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh"]
SHORT = ("stages.operator.steps=12", "evaluation.enabled=false")


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a scene is played: an empty folder, the data, and a finished run of `SHORT` to copy."""

    folder: Path
    data_root: Path
    whole: Path

    def line(self, run: Path, *overrides: str) -> list[str]:
        return runs.training("operator", run, self.data_root, *SHORT, *overrides)

    def copy(self, name: str = "run") -> Path:
        run = self.folder / name
        shutil.copytree(self.whole, run)
        return run

    def same(self, run: Path) -> None:
        """The run came to what the one came to that met nothing."""
        assert list(differences(end_state(self.whole), end_state(run))) == []


def refused(result: runs.Ended, code: int, says: str) -> Row:
    """One line, no more, with its exit code."""
    assert result.code == code, (result.code, result.err)
    messages = [line for line in result.err.splitlines() if not line.startswith("warning: ")]
    assert len(messages) <= 2 and re.search(says, result.err), result.err
    return Row(fault="", answer=result.last_line, code=code)


def nan_batches(place: Place) -> Row:
    """Two NaN batches are left out, and a run that is killed after them goes on to the same bits."""
    faults = at(places.READ_BATCHES, "nan_fields", batches=[5, 6])(place.folder)
    whole, run = place.folder / "whole", place.folder / "run"
    assert runs.run(place.line(whole), faults).code == 0
    assert runs.run(place.line(run), [*faults, *kill(places.RECORD, 10)(run)]).code == -signal.SIGKILL
    before, last = runs.reached(run, "operator"), runs.run(place.line(run), faults)
    assert last.code == 0 and last.resumed is not None, last.err
    assert list(differences(end_state(whole), end_state(run))) == []
    assert json.loads((run / "run.json").read_text())["stages"]["operator"]["skipped"] == 2
    assert np.isfinite(np.concatenate([np.ravel(leaf) for leaf in _parameters(run)])).all()
    return Row(fault="two NaN batches", answer="left out, `skipped` 2 in run.json", code=0, again=before - last.resumed)


def nan_gradients(place: Place) -> Row:
    """A NaN gradient of a finite loss is left out."""
    run = place.folder / "run"
    faults = [*at(places.READ_BATCHES, "mark", batches=[5])(run), *at(places.GRADIENTS, "nan_gradients")(run)]
    result = runs.run(place.line(run), faults)
    assert result.code == 0, result.err
    (record,) = (record for record in read_jsonl(run / "metrics.jsonl") if record["step"] == 6)
    assert record["skipped"] == 1 and record["grad_norm"] is None and record["loss"] > 0, record
    assert np.isfinite(np.concatenate([np.ravel(leaf) for leaf in _parameters(run)])).all()
    return Row(fault="a NaN gradient", answer="left out, `skipped` 1 in run.json", code=0)


def nan_for_good(place: Place) -> Row:
    """Nothing but NaN: exit 5, and what is saved is finite."""
    run = place.folder / "run"
    faults = at(places.READ_BATCHES, "nan_fields", batches=list(range(5, 100)))(run)
    row = refused(runs.run(place.line(run, "training.max_skips=5"), faults), 5, "5 steps")
    assert np.isfinite(np.concatenate([np.ravel(leaf) for leaf in _parameters(run)])).all()
    return Row(fault="NaN from step 6 on", answer=row.answer, code=5)


def out_of_memory(place: Place) -> Row:
    """The device's memory runs out once: half the rows at a time from then on, and the same run to round-off."""
    run = place.folder / "run"
    result = runs.run(place.line(run), at(places.COMPILATION, "out_of_memory")(run))
    assert result.code == 0, result.err
    message = next(line for line in result.out.splitlines() if line.startswith("memory"))
    losses = [[record["loss"] for record in read_jsonl(path / "metrics.jsonl")] for path in (place.whole, run)]
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-3)
    return Row(fault="out of the device's memory", answer=message, code=0, again=0)


def all_checkpoints_damaged(place: Place) -> Row:
    """Never a fresh start, however often it is tried."""
    run = place.copy()
    for folder in (run / "checkpoints" / "operator").iterdir():
        damage.flip(damage.largest(folder))
    curve = (run / "metrics.jsonl").read_bytes()
    rows = [refused(runs.run(place.line(run)), 4, r"checkpoints.*\[\d+(, \d+)*\]") for _ in range(2)]
    assert (run / "metrics.jsonl").read_bytes() == curve
    seen = runs.run(command("verify_run.py", str(run)))
    assert seen.code == 4 and seen.out.count("DAMAGED") == len(list((run / "checkpoints" / "operator").iterdir()))
    return Row(fault="all checkpoints damaged", answer=rows[1].answer, code=4)


def all_checkpoints_gone(place: Place) -> Row:
    run = place.copy()
    for folder in (run / "checkpoints" / "operator").iterdir():
        shutil.rmtree(folder)
    row = refused(runs.run(place.line(run)), 4, "checkpoints.*step 12")
    assert runs.run(command("verify_run.py", str(run))).code == 4
    return Row(fault="all checkpoints deleted", answer=row.answer, code=4)


def newest_checkpoint_gone(place: Place) -> Row:
    run = place.copy()
    shutil.rmtree(damage.newest(run, "operator"))
    result = runs.run(place.line(run))
    assert result.code == 0 and re.search("^lost .*step 12", result.out, re.MULTILINE) and result.resumed is not None, (
        result.err
    )
    place.same(run)
    message = next(line for line in result.out.splitlines() if line.startswith("lost"))
    return Row(fault="newest checkpoint deleted", answer=message, code=0, again=12 - result.resumed)


def best_checkpoint_damaged(place: Place) -> Row:
    """The newest one is sound: an evaluation says which step stands for the best and measures that one; the training
    sets it aside, and whoever reads later is told again."""
    run = place.copy()
    steps = sorted(int(folder.name) for folder in (run / "checkpoints" / "operator").iterdir())
    best, others = steps[0], steps[1:]
    for number, step in enumerate([best, *reversed(others)]):
        damage.validated(run / "checkpoints" / "operator" / str(step), 0.1 * (number + 1))
    damage.flip(damage.largest(run / "checkpoints" / "operator" / str(best)))
    evaluation = command("evaluate.py", "--run-dir", str(run), "evaluation.plots=false")
    for expected in (f"operator/{best}: ", f"step {best} "):
        seen = runs.run(evaluation)
        assert seen.code == 0 and seen.err.count("\n") == 1, seen.err
        assert re.search(f"^warning: .*{expected}.*step {others[-1]}", seen.err), seen.err
        meta = json.loads((run / "evaluation" / "test.json").read_text())["meta"]
        assert (meta["steps"], meta["checkpoint"]) == (others[-1], f"checkpoints/operator/{others[-1]}")
        result = runs.run(place.line(run))
        assert result.code == 0, result.err
        assert (run / "checkpoints" / "operator" / f"damaged-{best}").is_dir()
    return Row(fault="best checkpoint damaged, the newest sound", answer=seen.last_line, code=0, again=0)


def a_second_writer(place: Place) -> Row:
    """It is refused by name, and the first one does not notice; who was killed holds nothing any more."""
    run = place.folder / "run"
    first = runs.start(place.line(run), at(places.RECORD, "sleep", 5, seconds=3000)(run))
    try:
        _wait(lambda: runs.reached(run, "operator") >= 4, first)
        row = refused(runs.run(place.line(run)), 2, rf"{first.pid}.*{os.uname().nodename}")
    finally:
        first.kill()
        first.communicate()
    assert (run / ".lock").read_text() == f"process {first.pid} on {os.uname().nodename}"
    result = runs.run(place.line(run))
    assert result.code == 0, result.err
    place.same(run)
    return Row(fault="a second writer; then the first one dies", answer=row.answer, code=2, again=0)


def half_a_data_file(place: Place) -> Row:
    file = place.folder / "data" / "burgers1d_tiny.hdf5"
    file.parent.mkdir()
    shutil.copy(place.data_root / file.name, file)
    damage.truncate(file)
    line = runs.training("operator", place.folder / "run", file.parent, *SHORT)
    row = refused(runs.run(line), 3, r"burgers1d_tiny\.hdf5.*generate_data\.py")
    assert not (place.folder / "run").exists()
    return Row(fault="half-written HDF5", answer=row.answer, code=3)


def killed_while_generating(place: Place) -> Row:
    """The file is whole or not there, and in the end the same, byte for byte."""
    file = place.folder / "data" / "burgers1d_tiny.hdf5"
    line = command("generate_data.py", "--task", "burgers1d", "--preset", "tiny", "--out", str(file.parent))
    for where in (places.SOLVE, places.FLUSH):
        assert runs.run(line, kill(where)(file)).code == -signal.SIGKILL
        assert not file.exists()
    assert runs.run(line).code == 0
    assert _arrays(file) == _arrays(place.data_root / file.name)
    assert list(file.parent.iterdir()) == [file]
    return Row(fault="kill -9 while data is generated", answer="no file; the same command writes it", code=-9, again=0)


def killed_while_converting(place: Place) -> Row:
    """In the middle of a shard, before and after each of the renames: in the end the same folder, byte for byte."""
    source, whole = place.folder / "waves.hdf5", place.folder / "whole"
    with h5py.File(source, "w") as file:
        file["tensor"] = np.random.default_rng(0).normal(size=(9, 21, 4096)).astype(np.float32)
        file["x-coordinate"] = (np.arange(4096, dtype=np.float32) + 0.5) / 4096
        file["t-coordinate"] = np.linspace(0, 1, 21, dtype=np.float32)

    def line(out: Path) -> list[str]:
        return command("convert_data.py", str(source), str(out), "--shard-mib", "1", "--record-kib", "64")

    assert runs.run(line(whole)).code == 0
    files = {path.name: path.read_bytes() for path in whole.iterdir() if path.name != ".lock"}
    shards = sum(name.startswith("data-") for name in files)
    assert shards == 3 and len(files) == 4, sorted(files)
    kills = [
        # A record is 4 of 21 frames: of three trajectories 18, of which this is in the second shard.
        kill(places.SHARD_RECORD, 25),
        kill(places.SHARD_FLUSH, 3),
        # What renames a shard renames its note as well, and the manifest at the end.
        *(at(places.SHARD_RENAME, "signal", call, signal=signal.SIGKILL) for call in range(1, 2 * shards + 2)),
        at(places.SHARD_RENAME, "signal", 2 * shards + 1, signal=signal.SIGKILL, after=True),
        at(places.SHARD_NOTE, "signal", shards + 1, signal=signal.SIGKILL, after=True),
    ]
    for number, fault in enumerate(kills):
        out = place.folder / f"out-{number}"
        assert runs.run(line(out), fault(out)).code == -signal.SIGKILL
        written = {path.name: path.read_bytes() for path in out.iterdir() if not path.name.startswith(".")}
        # Whatever has its name by then is whole.
        assert all(files.get(name, content) == content for name, content in written.items()), number
        result = runs.run(line(out))
        assert result.code == 0, result.err
        assert {path.name: path.read_bytes() for path in out.iterdir() if path.name != ".lock"} == files, number
        shutil.rmtree(out)
    return Row(fault="kill -9 while data is converted", answer="the same command goes on", code=-9, again=0)


def clock_that_jumps(place: Place) -> Row:
    """Back by a day, for all that tells the time of the day: the run has odd dates, and is the same."""
    run = place.folder / "run"
    result = runs.run(place.line(run), at(places.RECORD, "jump", 3, seconds=86_400)(run))
    assert result.code == 0 and result.err == "", result.err
    place.same(run)
    record = json.loads((run / "run.json").read_text())
    start, end = (
        datetime.fromisoformat(text) for text in (record["created"], record["stages"]["operator"]["finished"])
    )
    assert timedelta(days=-1) < end - start < timedelta(days=-0.9), (start, end)
    assert all(record.get("epoch_time_sec", 1) > 0 for record in read_jsonl(run / "metrics.jsonl"))
    return Row(fault="the clock jumps back by a day", answer="dates in records are odd", code=0, again=0)


def host_memory_gone(place: Place) -> Row:
    """In the reader of batches and at the opening of the data: one line, and the same command goes on."""
    run, says = place.folder / "run", "Unable to allocate"
    refused(runs.run(place.line(run), at(places.OPEN_DATA, "memory_error")(run)), 7, says)
    assert not run.exists()
    # Without a thread that is ahead, each batch of the small task is read by itself.
    line = place.line(run, "data.loader.threads=0")
    row = refused(runs.run(line, at(places.READ_BATCHES, "memory_error", 12)(run)), 7, says)
    assert json.loads((run / "run.json").read_text())["status"] == "failed"
    before, last = runs.reached(run, "operator"), runs.run(place.line(run))
    assert last.code == 0 and last.resumed is not None, last.err
    place.same(run)
    return Row(fault="out of the host's memory", answer=row.answer, code=7, again=before - last.resumed)


def limited_memory(place: Place) -> Row:
    """A file of which a trajectory does not fit: the system itself refuses the memory, to who may have 3 GiB."""
    file = place.folder / "large.hdf5"
    with h5py.File(file, "w") as handle:
        # Never written: it is read as zeros.
        handle.create_dataset("tensor", (4, 2000, 2**20), np.float32)
        handle["x-coordinate"], handle["t-coordinate"] = np.arange(2.0**20), np.linspace(0, 1, 2000)
    line = command("inspect_data.py", str(file), "--no-picture")
    limited = ["/bin/sh", "-c", 'ulimit -v 3145728; exec "$@"', "sh", *line]
    row = refused(runs.run(limited, OPENBLAS_NUM_THREADS="1"), 7, "Unable to allocate")
    return Row(fault="a limit of memory (`ulimit -v`)", answer=row.answer, code=7)


def reader_of_the_output_gone(place: Place) -> Row:
    """`train.py | head -1` trains to its end."""
    run = place.folder / "run"
    process = runs.start(place.line(run))
    assert process.stdout is not None
    assert process.stdout.readline().startswith("run ")
    process.stdout.close()
    assert process.stderr is not None
    with process.stderr:
        err = process.stderr.read()
    assert process.wait(timeout=1500) == 0, err
    assert all(line.startswith("warning: ") for line in err.splitlines()), err
    place.same(run)
    return Row(fault="stdout: its reader goes away", answer="goes on, silently", code=0, again=0)


def output_closed(place: Place) -> Row:
    """Started without stdin, stdout and stderr, as by a daemon."""
    run = place.folder / "run"

    process = subprocess.Popen(CLOSED + place.line(run), env=runs.environment())
    assert process.wait(timeout=1500) == 0
    place.same(run)
    assert (run / ".lock").read_text() == f"process {process.pid} on {os.uname().nodename}"
    return Row(fault="stdin, stdout and stderr closed", answer="goes on, silently", code=0, again=0)


def output_on_a_full_disk(place: Place) -> Row:
    with open("/dev/full", "w") as full:
        result = runs.run(place.line(place.folder / "run"), stdout=full)
    row = refused(result, 7, os.strerror(errno.ENOSPC))
    return Row(fault="stdout on a full disk", answer=row.answer, code=7)


def stopped_in_the_evaluation(place: Place) -> Row:
    run = place.folder / "run"
    shutil.copytree(place.whole, run)
    line = place.line(run, "evaluation.enabled=true")
    faults = at(places.EVALUATION, "signal", signal=signal.SIGTERM)(run)
    row = refused(runs.run(line, faults), 75, "stopped")
    assert not list((run / "evaluation").glob("*"))
    assert runs.run(line, kill(places.EVALUATION_RESULT)(run)).code == -signal.SIGKILL
    result = runs.run(line)
    assert result.code == 0 and result.resumed == 12, result.err
    assert json.loads((run / "evaluation" / "test.json").read_text())["meta"]["steps"] == 12
    return Row(fault="SIGTERM, then kill -9 in the evaluation", answer=row.answer, code=75, again=0)


def damaged_program_cache(place: Place) -> Row:
    """A kill in the middle of keeping a compiled program leaves half of it: it is compiled again."""
    cache = place.folder / "programs"
    shutil.copytree(os.environ["JAX_COMPILATION_CACHE_DIR"], cache)
    for file in cache.glob("*-cache"):
        damage.truncate(file)
    run = place.folder / "run"
    result = runs.run(place.line(run), JAX_COMPILATION_CACHE_DIR=str(cache))
    assert result.code == 0 and "Traceback" not in result.err, result.err
    place.same(run)
    return Row(fault="half-written compiled programs", answer="compiled again", code=0, again=0)


def wandb(kind: str) -> Callable[[Place], Row]:
    def scene(place: Place) -> Row:
        """The run ends as ever, in bounded time, with one warning of what was lost."""
        run = place.folder / "run"
        bounds = {"finish_timeout": 5.0, "init_timeout": 3.0}
        faults = [{"at": places.WANDB, "do": "defaults", "values": bounds}]
        homes = {f"WANDB_{name}_DIR": str(place.folder / "home") for name in ("DATA", "CACHE", "CONFIG")}
        with server(kind) as login:
            result = runs.run(place.line(run, "logging.wandb.enabled=true"), faults, **homes, **login)
        assert result.code == 0, result.err
        # Beside it wandb's own telemetry may complain.
        lines = [line for line in result.err.splitlines() if line.startswith("warning: wandb: ")]
        assert 1 <= len(lines) <= 3 and "Traceback" not in result.err, result.err
        place.same(run)
        return Row(fault=f"a W&B server that {kind}", answer=lines[0], code=0, again=0)

    return scene


FAST: dict[str, Callable[[Place], Row]] = {
    "nan_batches": nan_batches,
    "all_checkpoints_damaged": all_checkpoints_damaged,
    "newest_checkpoint_gone": newest_checkpoint_gone,
    "half_a_data_file": half_a_data_file,
}
SLOW: dict[str, Callable[[Place], Row]] = {
    "best_checkpoint_damaged": best_checkpoint_damaged,
    "nan_gradients": nan_gradients,
    "out_of_memory": out_of_memory,
    "a_second_writer": a_second_writer,
    "killed_while_generating": killed_while_generating,
    "killed_while_converting": killed_while_converting,
    "clock_that_jumps": clock_that_jumps,
    "host_memory_gone": host_memory_gone,
    "limited_memory": limited_memory,
    "reader_of_the_output_gone": reader_of_the_output_gone,
    "stopped_in_the_evaluation": stopped_in_the_evaluation,
    "nan_for_good": nan_for_good,
    "all_checkpoints_gone": all_checkpoints_gone,
    "wandb_answers_500": wandb("answers 500"),
    "output_closed": output_closed,
    "output_on_a_full_disk": output_on_a_full_disk,
    "damaged_program_cache": damaged_program_cache,
    "wandb_refuses": wandb("refuses"),
    "wandb_hangs": wandb("hangs"),
}


def _parameters(run: Path) -> list[np.ndarray]:
    import jax

    return [np.asarray(leaf) for leaf in jax.tree.leaves(best_weights(run, "operator").params)]


def _arrays(path: Path) -> dict[str, bytes]:
    arrays: dict[str, bytes] = {}
    with h5py.File(path) as file:
        file.visititems(
            lambda name, item: arrays.update({name: item[()].tobytes()}) if hasattr(item, "dtype") else None
        )
    return arrays


def _wait(condition: Callable[[], bool], process: subprocess.Popen[str], seconds: float = 1500) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
