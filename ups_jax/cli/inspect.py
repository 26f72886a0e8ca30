"""Say what data files hold: layout, grid, times, parameters, numbers and their defects, and how to train on them."""

from __future__ import annotations

import argparse
from pathlib import Path

from ups_jax.cli import runner
from ups_jax.core.errors import DataError


def main(argv: list[str] | None = None) -> int:
    parser = runner.parser(__doc__, name="inspect")
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE", help="HDF5, or a YAML that describes arrays")
    parser.add_argument("--all", action="store_true", help="read every trajectory of a large file, not some")
    parser.add_argument(
        "--output", type=Path, default=Path(), metavar="DIR", help="folder for the pictures (default: this one)"
    )
    parser.add_argument("--no-picture", action="store_true", help="write no picture")
    return runner.run(parser, inspect, argv)


def inspect(args: argparse.Namespace) -> int:
    from ups_jax.data import inspection

    code = 0
    for file in args.files:
        try:
            found = inspection.inspect(file, whole=args.all)
        except DataError as error:
            runner.tell(error)
            code = error.exit_code
            continue
        print("\n".join(inspection.described(found)))
        if not args.no_picture:
            # Loads matplotlib, which --no-picture does not need.
            from ups_jax.evaluation.plots.inspection import write_picture

            picture = args.output / f"{file.stem}.png"
            write_picture(found, picture)
            print(f"picture     {picture}")
        if not found.sane:
            runner.tell(
                f"{file}: holds NaN or Inf, or a channel that is the same everywhere; see above, and correct it"
            )
            code = DataError.exit_code
    return code
