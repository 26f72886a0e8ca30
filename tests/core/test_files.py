"""A file is written whole or not at all, and what killed writers leave does not pile up."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from ups_jax.core.errors import StorageError
from ups_jax.core.files import atomic_file, read_json, write_atomically

_WRITER = """
import sys, time
from pathlib import Path
from ups_jax.core.files import atomic_file
with atomic_file(Path(sys.argv[1])) as temporary:
    temporary.write_text("half")
    print(temporary, flush=True)
    time.sleep(600)
"""


def writer(path: Path) -> tuple[subprocess.Popen[str], Path]:
    """A process in the middle of writing the file, and where it writes."""
    process = subprocess.Popen([sys.executable, "-c", _WRITER, str(path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    return process, Path(process.stdout.readline().strip())


@pytest.mark.parametrize("name", ["data.hdf5", "odd [name]*?.json"])
def test_the_next_write_takes_away_what_a_killed_one_left_and_nothing_else(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    killed, left = writer(path)
    live, partial = writer(path)
    others = [tmp_path / f".{name}.hidden", tmp_path / ".another.hdf5.abcdefgh.tmp", tmp_path / f"{name}.abcdefgh.tmp"]
    for other in others:
        other.write_text("mine")
    try:
        killed.send_signal(signal.SIGKILL)
        killed.wait()
        assert left.exists() and partial.exists() and not path.exists()
        write_atomically(path, "whole")
        assert sorted(tmp_path.iterdir()) == sorted([path, partial, *others])
        assert path.read_text() == "whole" and partial.read_text() == "half"
    finally:
        for process in (killed, live):
            process.kill()
            process.communicate()
    write_atomically(path, "again")
    assert sorted(tmp_path.iterdir()) == sorted([path, *others])


def test_json_that_cannot_be_read_is_a_value_error(tmp_path: Path) -> None:
    path = tmp_path / "file.json"
    for text in ("{", "[" * 100_000):
        path.write_text(text)
        with pytest.raises(ValueError):
            read_json(path)
    path.write_text('{"a": [1]}')
    assert read_json(path) == {"a": [1]}


def test_what_fails_leaves_the_file_as_it_was_and_nothing_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_atomically(path, "before")
    with pytest.raises(StorageError, match=path.name), atomic_file(path) as temporary:
        temporary.write_text("half")
        raise OSError(28, os.strerror(28))
    with pytest.raises(KeyboardInterrupt), atomic_file(path):
        raise KeyboardInterrupt
    assert path.read_text() == "before" and list(tmp_path.iterdir()) == [path]
