"""Check configurations and their data without training: every problem at once, each with its mend."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from ups_jax.cli import runner
from ups_jax.core.stage_names import STAGES


def main(argv: list[str] | None = None) -> int:
    parser = runner.parser(__doc__, name="validate")
    parser.add_argument(
        "--config",
        type=Path,
        action="append",
        metavar="FILE",
        help=f"{runner.CONFIG_HELP}; of several the first is the training's (default: burgers1d)",
    )
    runner.add_stage(parser, [*STAGES, "all"], "what is to be trained (default: operator)", default="operator")
    parser.add_argument("--only", choices=["config", "data"], help="check one of the two (default: both)")
    parser.add_argument("--json", type=Path, metavar="OUT", help="write what was found")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="overrides of all configurations")
    return runner.run(parser, validate, argv)


def validate(args: argparse.Namespace) -> int:
    from ups_jax.core.files import write_atomically
    from ups_jax.pipeline.validation import Found, check_config, check_data, check_pair

    paths: list[Path] = args.config or [Path("burgers1d")]
    found: dict[Path, list[Found]] = {path: [check_config(path, args.stage, args.overrides)] for path in paths}
    sound = not any(item.problems for own in found.values() for item in own)
    if sound:
        for path in paths[1:]:
            found[path].append(check_pair(paths[0], path, args.overrides))
    if sound and args.only != "config":
        for path, own in check_data(paths, args.overrides).items():
            found[path].append(own)
    problems = list(dict.fromkeys(line for own in found.values() for item in own for line in item.problems))
    for line in dict.fromkeys(line for own in found.values() for item in own for line in item.notes):
        print(f"note: {line}")
    for line in problems:
        runner.print_error(line)
    if args.json is not None:
        values = {
            str(path): {
                "problems": [line for item in own for line in item.problems],
                "fingerprint": own[-1].fingerprint,
            }
            for path, own in found.items()
        }
        write_atomically(args.json, json.dumps(values, indent=2) + "\n")
    if not problems:
        print(f"sound: {', '.join(map(str, paths))}")
    return next((item.exit_code for own in found.values() for item in own if item.exit_code), 0)
