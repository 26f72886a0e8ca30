"""Code that all commands share: common arguments, and errors that are printed as one line and set the exit code."""

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


def make_parser(
    description: str | None, *, name: str | None = None, config: str | None = None
) -> argparse.ArgumentParser:
    """Return an argument parser that has the option `--traceback`.

    Args:
        description: Description in the help text.
        name: Name of the subcommand of `ups-jax`; None for a program that is not a subcommand.
        config: Default of the option `--config`; None omits this option and the `key=value` overrides.
    """
    result = argparse.ArgumentParser(prog=None if name is None else command(name), description=description)
    if config is not None:
        result.add_argument("--config", default=config, help=f"{CONFIG_HELP} (default: %(default)s)")
        result.add_argument(
            "overrides",
            nargs="*",
            metavar="key=value",
            help="overrides of the configuration, such as optimizer.lr=1e-3",
        )
    result.add_argument("--traceback", action="store_true", help="print the traceback if an error occurs")
    return result


def positive_int(text: str) -> int:
    """Return the positive integer of a command-line argument."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a positive integer; give 1 or more")
    return number


def name_and_number(text: str) -> tuple[str, float]:
    """Return the name and the number of a command-line argument `name=number`."""
    name, _, value = text.partition("=")
    try:
        return name, float(value)
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not NAME=NUMBER, such as nu=0.01; put overrides of the configuration before --params"
        ) from None


def add_stage_option(
    parser: argparse.ArgumentParser | argparse._ArgumentGroup,
    choices: Iterable[str],
    help: str,
    *,
    name: str = "--stage",
    default: str | None = None,
) -> None:
    """Add to a parser an option that selects one of the stages `choices`; former names of stages are accepted."""
    parser.add_argument(
        name, type=lambda text: STAGE_ALIASES.get(text, text), choices=list(choices), default=default, help=help
    )


def dataclass_from_arguments(dataclass_type: Callable[..., T], args: argparse.Namespace, **extra_fields: Any) -> T:
    """Return a dataclass instance whose field values are in `extra_fields` or else in the argument of the same name."""
    names = [item.name for item in dataclasses.fields(dataclass_type) if hasattr(args, item.name)]  # type: ignore[arg-type]
    return dataclass_type(**{name: getattr(args, name) for name in names} | extra_fields)


def print_error(error: object) -> None:
    """Print an error as one line to stderr."""
    print(f"error: {one_line(error)}", file=sys.stderr)


def run_command(
    parser: argparse.ArgumentParser, main: Callable[[argparse.Namespace], int | None], argv: Sequence[str] | None = None
) -> int:
    """Parse the arguments, perform a command, and return its exit code; errors are printed as one line.

    Args:
        parser: Parser of the arguments.
        main: Function of the parsed arguments that performs the command and returns an exit code, or None for 0.
        argv: Arguments; None for the arguments of this process.
    """
    args = parser.parse_intermixed_args(argv)
    # These signals raise KeyboardInterrupt like Ctrl-C. The training loop has its own handlers.
    numbers = (signal.SIGTERM, *hangup_signals()) if _is_main_thread() else ()
    previous = {number: signal.signal(number, _raise_keyboard_interrupt) for number in numbers}
    format_warning = warnings.formatwarning
    if not args.traceback:
        warnings.formatwarning = _format_warning_as_line
    try:
        with tolerate_closed_output():
            return _call_main(main, args)
    finally:
        warnings.formatwarning = format_warning
        for number, handler in previous.items():
            signal.signal(number, handler)


def _call_main(main: Callable[[argparse.Namespace], int | None], args: argparse.Namespace) -> int:
    """Call `main` and return its exit code. Errors that a user can fix are printed; all others are raised."""
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
    """Return the `UserError` that explains an error to the user, or None if the error is a defect of the program."""
    if isinstance(error, UserError):
        return error
    if isinstance(error, MemoryError) or error.errno == errno.ENOMEM:
        return _host_memory_error(error)
    if error.errno == errno.ENAMETOOLONG:
        return ConfigError(f"{error.filename!s:.60}..: is too long for a file name; give a shorter one")
    return None


def _host_memory_error(error: MemoryError | OSError) -> HostMemoryError:
    """Return the error for exhausted host memory; the message names the settings that reduce memory use."""
    return HostMemoryError(
        f"the memory of this machine is exhausted ({first_line(error)}); close other programs, or lower "
        "`data.loader.buffer`, `data.loader.memory_gib` or batch sizes, then repeat the command"
    )


def _format_warning_as_line(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
) -> str:
    """Return a warning as one line; this replaces `warnings.formatwarning`."""
    return f"warning: {one_line(message)}\n"


def _raise_keyboard_interrupt(number: int, frame: FrameType | None) -> None:
    """Raise KeyboardInterrupt; this is a signal handler."""
    raise KeyboardInterrupt


def _is_main_thread() -> bool:
    """Return whether the main thread runs this code; other threads cannot set signal handlers."""
    return threading.current_thread() is threading.main_thread()
