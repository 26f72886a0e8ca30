"""What every command shares: the common arguments, and errors turned into one line and an exit code."""

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
        description: What the program does.
        name: Its name among the project's commands, where it is one of them.
        config: Default of `--config`. With it the parser also takes `--config` and trailing `key=value` overrides.
    """
    result = argparse.ArgumentParser(prog=None if name is None else command(name), description=description)
    if config is not None:
        result.add_argument("--config", default=config, help=f"{CONFIG_HELP} (default: %(default)s)")
        result.add_argument("overrides", nargs="*", metavar="key=value", help="overrides, such as optimizer.lr=1e-3")
    result.add_argument("--traceback", action="store_true", help="show where an error came from")
    return result


def positive(text: str) -> int:
    """The type of an argument that counts something: a whole number, 1 or more."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not 1 or more")
    return number


def assignment(text: str) -> tuple[str, float]:
    """The type of an argument `name=number`."""
    name, _, value = text.partition("=")
    try:
        return name, float(value)
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not name=number, such as nu=0.01; overrides stand before --params"
        ) from None


def add_stage(
    arguments: argparse.ArgumentParser | argparse._ArgumentGroup,
    choices: Iterable[str],
    help: str,
    *,
    name: str = "--stage",
    default: str | None = None,
) -> None:
    """Add an argument that names a stage, also by a former name."""
    arguments.add_argument(
        name, type=lambda text: STAGE_ALIASES.get(text, text), choices=list(choices), default=default, help=help
    )


def from_arguments(kind: Callable[..., T], args: argparse.Namespace, **others: Any) -> T:
    """Return the dataclass `kind` of the arguments that are called as its fields are, and of `others`."""
    names = [item.name for item in dataclasses.fields(kind) if hasattr(args, item.name)]  # type: ignore[arg-type]
    return kind(**{name: getattr(args, name) for name in names} | others)


def print_error(error: object) -> None:
    """An error, or its text, as a line on stderr."""
    print(f"error: {one_line(error)}", file=sys.stderr)


def run(
    arguments: argparse.ArgumentParser,
    main: Callable[[argparse.Namespace], int | None],
    argv: Sequence[str] | None = None,
) -> int:
    """Parse, call, and answer with an exit code: 0, or the code of the error that is told in one line."""
    args = arguments.parse_intermixed_args(argv)
    # Outside the training loop, which has its own way to stop, these end a script the way Ctrl-C does.
    numbers = (signal.SIGTERM, *hangup_signals()) if _in_main_thread() else ()
    previous = {number: signal.signal(number, _interrupt) for number in numbers}
    form = warnings.formatwarning
    if not args.traceback:
        warnings.formatwarning = _in_one_line
    try:
        with tolerate_closed_output():
            return _answered(main, args)
    finally:
        warnings.formatwarning = form
        for number, handler in previous.items():
            signal.signal(number, handler)


def _answered(main: Callable[[argparse.Namespace], int | None], args: argparse.Namespace) -> int:
    """The exit code of `main`, whatever it raises that a user can mend."""
    try:
        return main(args) or 0
    except KeyboardInterrupt:
        print("stopped: the same command starts again where it can go on", file=sys.stderr)
        return Stopped.exit_code
    except (UserError, MemoryError, OSError) as error:
        known = _known(error)
        if known is None:
            raise
        if args.traceback:
            traceback.print_exc()
        else:
            print_error(known)
        return known.exit_code


def _known(error: UserError | MemoryError | OSError) -> UserError | None:
    """What a user can mend about an error; None where it is a fault of the program."""
    if isinstance(error, UserError):
        return error
    if isinstance(error, MemoryError) or error.errno == errno.ENOMEM:
        return _out_of_memory(error)
    if error.errno == errno.ENAMETOOLONG:
        return ConfigError(f"{error.filename!s:.60}..: is too long for the name of a file; give a shorter one")
    return None


def _out_of_memory(error: MemoryError | OSError) -> HostMemoryError:
    return HostMemoryError(
        f"the memory of this machine has run out ({first_line(error)}); close other programs, or read and hold less at "
        "a time (data.loader.buffer, data.loader.memory_gib, batch sizes), then start the same command again"
    )


def _in_one_line(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
) -> str:
    return f"warning: {one_line(message)}\n"


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()
