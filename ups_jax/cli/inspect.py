"""Describe data files: layout, grid, times, PDE coefficients, value ranges, defects, and settings for training."""

from __future__ import annotations

import argparse
from pathlib import Path

from ups_jax.cli import runner
from ups_jax.core.errors import DataError


def main(argv: list[str] | None = None) -> int:
    """Run `ups-jax inspect` with the given arguments and return its exit code."""
    parser = runner.make_parser(__doc__, name="inspect")
    parser.add_argument(
        "files", nargs="+", type=Path, metavar="FILE", help="HDF5 file, or YAML file that describes arrays"
    )
    parser.add_argument("--all", action="store_true", help="read every trajectory of a large file instead of a sample")
    parser.add_argument(
        "--output",
        type=Path,
        default=Path(),
        metavar="DIR",
        help="output folder of the pictures (default: current folder)",
    )
    parser.add_argument("--no-picture", action="store_true", help="write no picture")
    return runner.run_command(parser, inspect, argv)


def inspect(args: argparse.Namespace) -> int:
    """Print a description of each file and write a picture of it; return 0, or the exit code of the last error."""
    from ups_jax.data import inspection

    code = 0
    for file in args.files:
        try:
            report = inspection.inspect(file, read_all_trajectories=args.all)
        except DataError as error:
            runner.print_error(error)
            code = error.exit_code
            continue
        print("\n".join(inspection.describe(report)))
        if not args.no_picture:
            # Imports matplotlib, which --no-picture does not need.
            from ups_jax.evaluation.plots.inspection import write_picture

            picture = args.output / f"{file.stem}.png"
            write_picture(report, picture)
            print(f"picture     {picture}")
        if not report.is_usable:
            runner.print_error(
                f"{file}: contains NaN or Inf, incomplete trajectories or a constant channel; see the description "
                "above and correct the file"
            )
            code = DataError.exit_code
    return code
