"""Shared parts of all commands: common arguments, and errors printed as one line with an exit code."""

from __future__ import annotations

import argparse
import dataclasses
import errno
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Iterable, Sequence
from types import FrameType
from typing import Any, TypeVar

from ups_jax.core.commands import command
from ups_jax.core.errors import ConfigError, HostMemoryError, Stopped, UserError, first_line
from ups_jax.core.stage_names import STAGE_ALIASES
from ups_jax.core.terminal import hangup_signals, one_line, tolerate_closed_output

T = TypeVar("T")
CONFIG_HELP = "YAML configuration: a file, or the name of a packaged one"


def parser(description: str | None, *, name: str | None = None, config: str | None = None) -> argparse.ArgumentParser:
    """Return an argument parser with `--traceback`.

    Args:
        description: Description of the program.
        name: Name of the subcommand of `ups-jax`; None for a program that is not a subcommand.
        config: Default of `--config`; None for a parser without `--config` and `key=value` overrides.
    """
    result = argparse.ArgumentParser(prog=None if name is None else command(name), description=description)
    if config is not None:
        result.add_argument("--config", default=config, help=f"{CONFIG_HELP} (default: %(default)s)")
        result.add_argument("overrides", nargs="*", metavar="key=value", help="overrides, such as optimizer.lr=1e-3")
    result.add_argument("--traceback", action="store_true", help="print the traceback of an error")
    return result


def positive(text: str) -> int:
    """Return a positive integer from its text, as an argparse type."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a positive integer; give 1 or more")
    return number


def assignment(text: str) -> tuple[str, float]:
    """Return the name and the number of `name=number`, as an argparse type."""
    name, _, value = text.partition("=")
    try:
        return name, float(value)
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not name=number, such as nu=0.01; give key=value overrides before --params"
        ) from None


def add_stage(
    arguments: argparse.ArgumentParser | argparse._ArgumentGroup,
    choices: Iterable[str],
    help: str,
    *,
    name: str = "--stage",
    default: str | None = None,
) -> None:
    """Add an option that selects a stage; former names of stages are accepted.

    Args:
        arguments: Parser or argument group.
        choices: Names of the selectable stages.
        help: Help text.
        name: Name of the option.
        default: Default stage.
    """
    arguments.add_argument(
        name, type=lambda text: STAGE_ALIASES.get(text, text), choices=list(choices), default=default, help=help
    )


def from_arguments(dataclass_type: Callable[..., T], args: argparse.Namespace, **extra_fields: Any) -> T:
    """Return a dataclass whose fields come from the parsed arguments of the same names.

    Args:
        dataclass_type: Dataclass to create.
        args: Parsed arguments.
        **extra_fields: Further fields, which replace those of `args`.
    """
    names = [item.name for item in dataclasses.fields(dataclass_type) if hasattr(args, item.name)]  # type: ignore[arg-type]
    return dataclass_type(**{name: getattr(args, name) for name in names} | extra_fields)


def print_error(error: object) -> None:
    """Print an error as one line to stderr."""
    print(f"error: {one_line(error)}", file=sys.stderr)


def run(
    arguments: argparse.ArgumentParser,
    main: Callable[[argparse.Namespace], int | None],
    argv: Sequence[str] | None = None,
) -> int:
    """Parse the arguments, call the command, and return its exit code; errors are printed as one line.

    Args:
        arguments: Parser.
        main: The command; it returns an exit code, or None for 0.
        argv: Arguments; None for those of the process.
    """
    args = arguments.parse_intermixed_args(argv)
    # These signals raise KeyboardInterrupt like Ctrl-C. The training loop has its own handlers.
    numbers = (signal.SIGTERM, *hangup_signals()) if _in_main_thread() else ()
    previous = {number: signal.signal(number, _interrupt) for number in numbers}
    format_warning = warnings.formatwarning
    if not args.traceback:
        warnings.formatwarning = _in_one_line
    try:
        with tolerate_closed_output():
            return _exit_code(main, args)
    finally:
        warnings.formatwarning = format_warning
        for number, handler in previous.items():
            signal.signal(number, handler)


def _exit_code(main: Callable[[argparse.Namespace], int | None], args: argparse.Namespace) -> int:
    """Return the exit code of the command; print errors that a user can fix, and raise all others."""
    try:
        return main(args) or 0
    except KeyboardInterrupt:
        print("stopped: repeat the command to resume", file=sys.stderr)
        return Stopped.exit_code
    except (UserError, MemoryError, OSError) as error:
        user_error = _as_user_error(error)
        if user_error is None:
            raise
        if args.traceback:
            traceback.print_exc()
        else:
            print_error(user_error)
        return user_error.exit_code


def _as_user_error(error: UserError | MemoryError | OSError) -> UserError | None:
    """Return the error as one that a user can fix, or None for a defect of the program."""
    if isinstance(error, UserError):
        return error
    if isinstance(error, MemoryError) or error.errno == errno.ENOMEM:
        return _out_of_memory(error)
    if error.errno == errno.ENAMETOOLONG:
        return ConfigError(f"{error.filename!s:.60}..: is too long for a file name; give a shorter one")
    return None


def _out_of_memory(error: MemoryError | OSError) -> HostMemoryError:
    """Return the error for exhausted host memory, with the settings that reduce it."""
    return HostMemoryError(
        f"the memory of this machine is exhausted ({first_line(error)}); close other programs, or lower "
        "data.loader.buffer, data.loader.memory_gib or batch sizes, then repeat the command"
    )


def _in_one_line(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
) -> str:
    """Return a warning as one line, in place of `warnings.formatwarning`."""
    return f"warning: {one_line(message)}\n"


def _interrupt(number: int, frame: FrameType | None) -> None:
    """Raise KeyboardInterrupt, as a signal handler."""
    raise KeyboardInterrupt


def _in_main_thread() -> bool:
    """Return whether this is the main thread, which alone can set signal handlers."""
    return threading.current_thread() is threading.main_thread()
