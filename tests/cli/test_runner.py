"""Exit codes and one-line errors of every script's common part."""

from __future__ import annotations

import argparse
import os
import re
import signal
import sys
import warnings
from typing import Any

import numpy as np
import pytest

from ups_jax.cli import runner
from ups_jax.core import errors


@pytest.mark.parametrize(
    ("kind", "code"),
    [
        (errors.ConfigError, 2),
        (errors.DataError, 3),
        (errors.CheckpointError, 4),
        (errors.DivergedError, 5),
        (errors.StorageError, 7),
        (errors.HostMemoryError, 7),
        (errors.Stopped, 75),
    ],
)
def test_each_error_is_one_line_and_its_own_exit_code(
    kind: type[errors.UserError], code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(args: argparse.Namespace) -> None:
        raise kind("what, where, how to mend")

    assert runner.run_command(runner.make_parser("x"), fail, []) == code
    assert capsys.readouterr().err == "error: what, where, how to mend\n"


@pytest.mark.parametrize("bytes_wanted", [0, 2**59])
def test_memory_that_runs_out_is_one_line_that_says_what_to_do(
    capsys: pytest.CaptureFixture[str], bytes_wanted: int
) -> None:
    """As Python says it, with no word, and as NumPy does."""

    def fail(args: argparse.Namespace) -> None:
        if bytes_wanted:
            np.empty(bytes_wanted)
        raise MemoryError

    assert runner.run_command(runner.make_parser("x"), fail, []) == 7
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and ("4.00 EiB" if bytes_wanted else "MemoryError") in line


def test_a_name_that_no_file_system_takes_is_one_line_and_other_faults_are_not(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert runner.run_command(runner.make_parser("x"), lambda args: os.stat("x" * 300).st_size, []) == 2
    assert re.fullmatch(r"error: x{60}\.\..*\n", capsys.readouterr().err)
    with pytest.raises(FileNotFoundError):
        runner.run_command(runner.make_parser("x"), lambda args: os.stat("there is no such file").st_size, [])


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_outside_training_ends_a_script_with_75(number: int, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted(args: argparse.Namespace) -> None:
        os.kill(os.getpid(), number)

    # A shell's background job inherits an ignored SIGINT, which would make this test one of the shell.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        assert runner.run_command(runner.make_parser("x"), interrupted, []) == 75
    finally:
        signal.signal(signal.SIGINT, before)
    assert capsys.readouterr().err.count("\n") == 1


def test_overrides_may_stand_among_the_options() -> None:
    seen = []
    parser = runner.make_parser("x", config="c.yaml")
    assert (
        runner.run_command(
            parser, lambda args: seen.append((args.config, args.overrides)), ["a=1", "--config", "d", "b=2"]
        )
        == 0
    )
    assert seen == [("d", ["a=1", "b=2"])]


def test_a_count_is_a_whole_number_from_one_on() -> None:
    assert runner.positive_int("3") == 3
    for text in ("0", "-2"):
        with pytest.raises(argparse.ArgumentTypeError, match="1"):
            runner.positive_int(text)


def test_a_warning_is_one_line_unless_the_traceback_is_wanted(capsys: pytest.CaptureFixture[str]) -> None:
    def warn(args: argparse.Namespace) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            warnings.showwarning = shown
            warnings.warn("wandb: offline", stacklevel=1)

    def shown(*arguments: Any) -> None:
        sys.stderr.write(warnings.formatwarning(*arguments[:4]))

    form = warnings.formatwarning
    runner.run_command(runner.make_parser("x"), warn, [])
    assert capsys.readouterr().err == "warning: wandb: offline\n"
    assert warnings.formatwarning is form
    runner.run_command(runner.make_parser("x"), warn, ["--traceback"])
    assert "test_runner.py" in capsys.readouterr().err
