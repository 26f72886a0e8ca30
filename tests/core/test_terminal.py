"""A program whose listener goes away works on; what is wrong with a disk is still told."""

from __future__ import annotations

import argparse
import errno
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from commands import ROOT

from ups_jax.cli import runner
from ups_jax.core.errors import StorageError
from ups_jax.core.terminal import TolerantStream, hangup_signals


def test_what_nobody_reads_is_dropped_and_a_full_disk_is_an_error() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as pipe:
        stream = TolerantStream(pipe)
        for _ in range(2):
            assert stream.write("line\n") == 5
            stream.flush()
    with Path("/dev/full").open("w") as full:
        stream = TolerantStream(full)
        stream.write("line\n")
        with pytest.raises(StorageError, match=rf"^/dev/full.*{os.strerror(errno.ENOSPC)}"):
            stream.flush()


@pytest.fixture
def hung_up() -> Iterator[None]:
    previous = signal.getsignal(signal.SIGHUP)
    yield
    signal.signal(signal.SIGHUP, previous)


@pytest.mark.parametrize(("before", "code"), [(signal.SIG_DFL, 75), (signal.SIG_IGN, 0)])
def test_a_hang_up_stops_a_script_unless_it_is_to_be_ignored(hung_up: None, before: signal.Handlers, code: int) -> None:
    signal.signal(signal.SIGHUP, before)
    assert hangup_signals() == (() if code == 0 else (signal.SIGHUP,))
    parser = argparse.ArgumentParser()
    parser.add_argument("--traceback", action="store_true")
    assert runner.run_command(parser, lambda _: signal.raise_signal(signal.SIGHUP), []) == code
    assert signal.getsignal(signal.SIGHUP) is before


CLOSED = """
import os, sys, tempfile
from ups_jax.cli import runner
def main(args):
    with tempfile.NamedTemporaryFile() as file:
        os.write(1, b'printed by a library')
        print('printed by us')
        assert file.fileno() > 2 and os.path.getsize(file.name) == 0
sys.exit(runner.run_command(runner.make_parser('.'), main, []))
"""


def test_streams_that_are_closed_at_the_start_do_not_become_files() -> None:
    process = subprocess.Popen(
        ["/bin/sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh", sys.executable, "-c", CLOSED],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert process.wait(timeout=60) == 0
