"""A case: files that a function writes, a command on them, and what it has to print."""

from __future__ import annotations

import contextlib
import functools
import importlib
import io
import os
import re
import shlex
import tempfile
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

# A check of what a command leaves behind, in the folder of the case: returns what is wrong, or an empty string.
Check = Callable[[str], str]
_TABLE_CELLS = re.compile(r"[┃━╇│┏┓┡┩┗┛└┘─┴┬┳╃╄]")


@dataclass(frozen=True, kw_only=True)
class Case:
    """A command on foreign files.

    Attributes:
        section: Subject of the case.
        kind: What the files are.
        write: Writes the files to the working directory. Cases with the same function share one folder.
        command: Arguments of `ups-jax`, or `python -c` with a program.
        code: Exit code of the command.
        contains: Texts that the command has to print.
        lacks: Texts that it must not print.
        follow: Whether the configuration that `inspect` prints has to be valid.
        check: Further check of the output and of the files that the command leaves.
    """

    section: str
    kind: str
    write: Callable[[], None]
    command: str
    code: int
    contains: tuple[str, ...]
    lacks: tuple[str, ...]
    follow: bool
    check: Check

    @property
    def is_slow(self) -> bool:
        """Whether the command trains a model."""
        return self.command.split()[0] in ("train", "evaluate")

    @property
    def label(self) -> str:
        """A name that no other case has."""
        return f"{self.write.__name__}: {self.command}"


@dataclass(frozen=True, kw_only=True)
class Result:
    """The result of a case.

    Attributes:
        case: The case.
        code: Exit code of the command.
        output: What it printed.
        faults: What differs from the expectation; empty if nothing does.
    """

    case: Case
    code: int
    output: str
    faults: tuple[str, ...]


CASES: list[Case] = []
INSPECT = "inspect --no-picture"
# Sections of the table.
LAYOUT = "What a file says"
CONTENT = "Data without content"
AT_REST = "Fields that become uniform"
UNITS = "Units"
METRICS = "Metrics"
SYMMETRY = "Symmetries of steady tasks"
GRID = "Grids that no patch divides"
SECTIONS = (LAYOUT, CONTENT, AT_REST, UNITS, METRICS, SYMMETRY, GRID)


def case(
    section: str,
    kind: str,
    command: str,
    *contains: str,
    code: int = 0,
    lacks: Sequence[str] = (),
    follow: bool | None = None,
    check: Check = lambda output: "",
) -> Callable[[Callable[[], None]], Callable[[], None]]:
    """Return a decorator that adds a case to `CASES`, with the decorated function as its writer.

    Decorators of one function are listed from the last to the first, as Python applies them.
    """

    def add(write: Callable[[], None]) -> Callable[[], None]:
        CASES.append(
            Case(
                section=section,
                kind=kind,
                write=write,
                command=command,
                code=code,
                contains=contains,
                lacks=tuple(lacks),
                follow=command.startswith("inspect") and code == 0 if follow is None else follow,
                check=check,
            )
        )
        return write

    return add


def validate(path: str, *entries: str) -> str:
    """Return the command that validates a task with these entries in the configuration."""
    task = ", ".join(["name: mine", f'path: "{path}"', *entries])
    return f"validate --config tiny 'data.tasks=[{{{task}}}]'"


def run_cases(cases: Sequence[Case]) -> Iterator[Result]:
    """Run cases in temporary folders, and yield the result of each."""
    with tempfile.TemporaryDirectory() as root:
        folders: dict[Callable[[], None], Path] = {}
        for item in cases:
            folder = folders.get(item.write)
            if folder is None:
                folder = folders[item.write] = Path(root, str(len(folders)))
                folder.mkdir()
                with contextlib.chdir(folder):
                    item.write()
            with contextlib.chdir(folder):
                yield run_case(item)


def run_case(case: Case) -> Result:
    """Run the command of a case in the working directory, which has its files."""
    code, output = run_command(shlex.split(case.command))
    faults = [f"the exit code is {code} instead of {case.code}"] if code != case.code else []
    faults += [f"does not print {text!r}" for text in case.contains if text not in output]
    faults += [f"prints {text!r}" for text in case.lacks if text in output]
    if not faults and (fault := case.check(output)):
        faults.append(fault)
    if case.follow:
        faults += follow_advice(output)
    return Result(case=case, code=code, output=output, faults=tuple(faults))


def follow_advice(output: str) -> Iterator[str]:
    """Yield a fault for each configuration in the output of `inspect` that `validate` refuses."""
    for number, text in enumerate(output.split("\nconfig\n")[1:]):
        lines = [line for line in text.splitlines() if line.startswith("  ")]
        path = Path(f"printed{number}.yaml")
        path.write_text("\n".join(["include: tiny.yaml", *(line.removeprefix("  ") for line in lines), ""]))
        code, printed = run_command(["validate", "--config", str(path)])
        if code:
            yield f"the printed configuration is refused: {printed.strip()}"


def run_command(arguments: Sequence[str]) -> tuple[int, str]:
    """Return the exit code of a command in this process and what it printed; 70 and the traceback of a crash."""
    stream = io.StringIO()
    with contextlib.redirect_stdout(stream), contextlib.redirect_stderr(stream):
        try:
            code = _call(arguments)
        except SystemExit as error:
            code = error.code if isinstance(error.code, int) else 1
        except Exception:
            traceback.print_exc(file=stream)
            code = 70
    return code, stream.getvalue()


def _call(arguments: Sequence[str]) -> int:
    """Run `ups-jax` with arguments, or `python -c PROGRAM`, and return its exit code."""
    if arguments[0] == "python":
        exec(compile(arguments[2], "<python -c>", "exec"), {"__name__": "__main__"})
        return 0
    os.environ.setdefault("COLUMNS", "160")
    code: int = _main()(list(arguments))
    return code


@functools.cache
def _main() -> Callable[[list[str]], int]:
    main: Callable[[list[str]], int] = importlib.import_module("ups_jax.cli.main").main
    return main


def markdown(results: Sequence[Result]) -> str:
    """Return tables of the results, one for each section, with one row for each command."""
    lines = [
        "# Files of other people's tools",
        "",
        "What the commands print about small files as other programs write them: errors, and the lines that matter.",
        "Source: `python benchmarks/foreign_files.py`, which writes each file and fails if a command prints something",
        "else.",
    ]
    section = ""
    for result in results:
        if result.case.section != section:
            section = result.case.section
            lines += ["", f"## {section}", "", "| files | command | what it prints | exit code |", "|---|---|---|---|"]
        printed = "<br>".join(_code(line) for line in telling_lines(result))
        lines.append(f"{row_start(result.case)} {printed} | {result.code} |")
    return "\n".join(lines)


def row_start(case: Case) -> str:
    """Return the first two cells of the row of a case."""
    command = case.command if case.command.startswith("python") else f"ups-jax {case.command}"
    return f"| {case.kind} | {_code(' '.join(command.replace(' --no-picture', '').split()))} |"


def telling_lines(result: Result) -> list[str]:
    """Return the lines of the output that the case is about, and all errors."""
    lines = []
    for line in result.output.splitlines():
        text = " ".join(_TABLE_CELLS.sub(" ", line).split())
        is_meant = (
            result.case.command.startswith("python")
            or text.startswith("error:")
            or any(part in line for part in result.case.contains)
        )
        if text and is_meant and text not in lines:
            lines.append(text)
    return lines


def _code(text: str) -> str:
    """Return a text as code in a cell of a table."""
    escaped = text.replace("|", r"\|")
    return f"`` {escaped} ``" if "`" in text else f"`{escaped}`"
