"""The command `ups-jax`, with one subcommand for each module of this package."""

from __future__ import annotations

import difflib
import importlib
import sys

from ups_jax.cli import runner
from ups_jax.core.commands import COMMANDS, program
from ups_jax.core.errors import ConfigError
from ups_jax.core.files import version
from ups_jax.core.terminal import tolerate_closed_output


def main(argv: list[str] | None = None) -> int:
    """Run the subcommand that the first argument names, with the arguments after it; return its exit code."""
    name, *rest = (sys.argv[1:] if argv is None else argv) or ["--help"]
    if name in ("-h", "--help", "--version"):
        with tolerate_closed_output():
            print(_usage() if name != "--version" else f"ups_jax {version('ups_jax')}")
        return 0
    if name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS, n=1)
        hint = f"did you mean {near[0]}?" if near else f"`{program()} --help` lists the subcommands"
        runner.print_error(f"ups-jax has no subcommand {name!r}; {hint}")
        return ConfigError.exit_code
    code: int = importlib.import_module(f"ups_jax.cli.{name}").main(rest)
    return code


def _usage() -> str:
    """Return the help text of `ups-jax`, with a summary of each subcommand."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {summary}" for name, (_, summary) in COMMANDS.items()]
    return "\n".join(
        [
            f"usage: {program()} COMMAND ...",
            "",
            "Train, evaluate and use neural simulators of partial differential equations.",
            "",
            *lines,
            "",
            f"`{program()} COMMAND --help` describes a command; `{program()} --version` prints the version.",
        ]
    )
