"""Steps as real processes: their codes, logs and cost, and what becomes of them when the pipeline is ended."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from commands import ROOT

from ups_jax.core.errors import ConfigError, Stopped
from ups_jax.core.locks import is_unlocked, lock_directory
from ups_jax.pipeline import subprocess_step
from ups_jax.pipeline.subprocess_step import Step, StepResult, run_step

PRINTS = "import sys; print('one'); print('error: it is wrong', file=sys.stderr); print('two'); sys.exit(3)"
WAITS = """
import pathlib, signal, sys, time
here = pathlib.Path(sys.argv[1])
def save(*_):
    time.sleep(0.5)
    (here / "saved").write_text("")
    sys.exit(75)
signal.signal(signal.SIGTERM, save)
(here / "ready").write_text("")
time.sleep(60)
"""


# The orchestrator forks without jax, which a process of tests may have.
pytestmark = pytest.mark.filterwarnings("ignore:os.fork:RuntimeWarning")


@pytest.fixture
def scripts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(subprocess_step, "command_line", lambda name: [sys.executable, str(tmp_path / name)])
    (tmp_path / "prints.py").write_text(PRINTS)
    (tmp_path / "waits.py").write_text(WAITS)
    return tmp_path


def run(folder: Path, script: str, shown: list[str], **environment: str) -> StepResult:
    step = Step(name="step", command=script, arguments=[str(folder)], environment=environment)
    with lock_directory(folder / "run", "wait") as lock:
        return run_step(step, folder / "logs" / "step.log", lock, shown.append)


def test_a_step_s_code_output_cost_and_error_are_kept(scripts: Path) -> None:
    shown: list[str] = []
    ended = run(scripts, "prints.py", shown)
    assert (ended.exit_code, ended.error) == (3, "it is wrong")
    assert ended.seconds > 0 and ended.peak_memory_mib is not None and ended.peak_memory_mib > 1
    log = (scripts / "logs" / "step.log").read_text()
    assert sorted("".join(shown).split()) == sorted(log.split()) and "one" in log
    # A second start adds to the log and looks for errors in its own part of it.
    (scripts / "prints.py").write_text("import os, sys; sys.exit(int(os.environ['CODE']))")
    again = run(scripts, "prints.py", shown, CODE="4")
    assert (again.exit_code, again.error) == (4, None)
    (scripts / "prints.py").write_text("import os, signal; os.kill(os.getpid(), signal.SIGKILL)")
    assert run(scripts, "prints.py", shown).exit_code == 128 + signal.SIGKILL


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + 60
    while not path.exists():
        assert time.monotonic() < deadline, path
        time.sleep(0.02)


PARENT = """
import signal, sys
from pathlib import Path
from ups_jax.cli import runner
from ups_jax.core.locks import lock_directory
from ups_jax.pipeline import subprocess_step
folder = Path(sys.argv[1])
# Programs that a shell starts in the background ignore the signal of Ctrl-C.
signal.signal(signal.SIGINT, signal.default_int_handler)
subprocess_step.command_line = lambda name: [sys.executable, str(folder / name)]
step = subprocess_step.Step(name="s", command="waits.py", arguments=[str(folder)])
def main(args):
    with lock_directory(folder / "run", "wait") as lock:
        subprocess_step.run_step(step, folder / "log", lock, print)
sys.argv = sys.argv[:1]
sys.exit(runner.run_command(runner.make_parser("test"), main))
"""


@pytest.mark.multiprocess
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_a_pipeline_that_is_ended_takes_its_step_with_it_which_saves_first(scripts: Path, number: int) -> None:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", PARENT, str(scripts)]
    parent = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    wait_for(scripts / "ready")
    assert not is_unlocked(scripts / "run")
    parent.send_signal(number)
    _, errors = parent.communicate(timeout=240)
    if number == signal.SIGKILL:
        # The step is still saving, and holds the run as long: it is waited for, not taken for somebody at work.
        assert is_unlocked(scripts / "run")
        with lock_directory(scripts / "run", "wait", patience=60.0):
            assert (scripts / "saved").exists()
    else:
        assert parent.returncode == Stopped.exit_code and (scripts / "saved").exists()
        assert errors.startswith("error: stopped: run the same command again")


def test_a_run_that_a_living_process_holds_is_refused_at_once(tmp_path: Path) -> None:
    with lock_directory(tmp_path, "wait"):
        assert not is_unlocked(tmp_path)
        with pytest.raises(ConfigError, match=str(os.getpid())), lock_directory(tmp_path, "wait", patience=60.0):
            pass
    assert is_unlocked(tmp_path)
    with lock_directory(tmp_path, "wait"):
        pass
