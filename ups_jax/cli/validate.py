"""Check configurations and their data without training, and list all problems and how to fix them."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from ups_jax.cli import runner
from ups_jax.core.stage_names import STAGES


def main(argv: list[str] | None = None) -> int:
    """Run `ups-jax validate` with the given arguments and return its exit code."""
    parser = runner.make_parser(__doc__, name="validate")
    parser.add_argument(
        "--config",
        type=Path,
        action="append",
        metavar="FILE",
        help=f"{runner.CONFIG_HELP}; repeat to check several; the first is the one for training (default: burgers1d)",
    )
    runner.add_stage_option(parser, [*STAGES, "all"], "stage to be trained (default: operator)", default="operator")
    parser.add_argument(
        "--only", choices=["config", "data"], help="check only the configurations or only the data (default: both)"
    )
    parser.add_argument("--json", type=Path, metavar="OUT", help="also write the problems to this JSON file")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="overrides, applied to every --config")
    return runner.run_command(parser, validate, argv)


def validate(args: argparse.Namespace) -> int:
    """Print the problems and notes of all configurations; return 0, or the exit code of the first problem."""
    from ups_jax.core.files import write_atomically
    from ups_jax.pipeline.validation import CheckResult, check_config, check_data, check_same_tasks

    paths: list[Path] = args.config or [Path("burgers1d")]
    results: dict[Path, list[CheckResult]] = {path: [check_config(path, args.stage, args.overrides)] for path in paths}
    is_valid = not any(item.problems for checks in results.values() for item in checks)
    if is_valid:
        for path in paths[1:]:
            results[path].append(check_same_tasks(paths[0], path, args.overrides))
    if is_valid and args.only != "config":
        for path, data_check in check_data(paths, args.overrides).items():
            results[path].append(data_check)
    problems = list(dict.fromkeys(line for checks in results.values() for item in checks for line in item.problems))
    for line in dict.fromkeys(line for checks in results.values() for item in checks for line in item.notes):
        print(f"note: {line}")
    for line in problems:
        runner.print_error(line)
    if args.json is not None:
        values = {
            str(path): {
                "problems": [line for item in checks for line in item.problems],
                "fingerprint": checks[-1].fingerprint,
            }
            for path, checks in results.items()
        }
        write_atomically(args.json, json.dumps(values, indent=2) + "\n")
    if not problems:
        print(f"valid: {', '.join(map(str, paths))}")
    return next((item.exit_code for checks in results.values() for item in checks if item.exit_code), 0)
