"""Who is the only one to write a file, and what of it stays."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import TextIO

import pytest
from commands import quiet

from ups_jax.core.errors import ConfigError, StorageError
from ups_jax.core.locks import lock_file

HOLDS = """
import sys, time
from pathlib import Path
from ups_jax.core.locks import lock_file

with lock_file(Path(sys.argv[1]), "wait"):
    print("held", flush=True)
    time.sleep(600)
"""


def test_a_second_one_is_refused_by_name_and_a_dead_one_holds_nothing(tmp_path: Path) -> None:
    file = tmp_path / "new" / "out"
    first = subprocess.Popen([sys.executable, "-c", HOLDS, str(file)], env=quiet(), stdout=subprocess.PIPE)
    try:
        assert first.stdout is not None and first.stdout.readline() == b"held\n"
        with (
            pytest.raises(ConfigError, match=rf"out: is locked by process {first.pid} on .*; wait") as raised,
            lock_file(file, "wait"),
        ):
            pass
        assert os.uname().nodename in str(raised.value)
    finally:
        first.send_signal(signal.SIGKILL)
        first.communicate()
    with (
        lock_file(file, "wait"),
        pytest.raises(ConfigError, match=f"locked by process {os.getpid()}"),
        lock_file(file, "wait"),
    ):
        pass
    assert list(file.parent.iterdir()) == []


def test_a_lock_that_its_last_holder_took_away_meanwhile_is_taken_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    take, calls = fcntl.flock, [0]

    def late(handle: TextIO, operation: int) -> None:
        calls[0] += 1
        if calls[0] == 1:
            (tmp_path / ".out.lock").unlink()
        take(handle, operation)

    monkeypatch.setattr(fcntl, "flock", late)
    with lock_file(tmp_path / "out", "wait"):
        assert calls[0] == 2
        with pytest.raises(ConfigError), lock_file(tmp_path / "out", "wait"):
            pass


def test_a_folder_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StorageError), lock_file(tmp_path / "file" / "out", "wait"):
        pass
