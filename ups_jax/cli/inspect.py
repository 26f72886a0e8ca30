"""Describe data files: layout, grid, times, PDE coefficients, value ranges, defects, and settings for training."""

from __future__ import annotations

import argparse
import itertools
from pathlib import Path

from ups_jax.cli import runner
from ups_jax.core.errors import DataError


def main(argv: list[str] | None = None) -> int:
    """Run `ups-jax inspect` with the given arguments and return its exit code."""
    parser = runner.make_parser(__doc__, name="inspect")
    parser.add_argument(
        "files",
        nargs="+",
        metavar="FILE",
        help="HDF5 file, YAML file that describes arrays, folder of such files, or pattern such as 'data/*.hdf5'",
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
    from ups_jax.data.files import files_to_inspect

    code = 0
    pictures: set[Path] = set()
    for argument in args.files:
        try:
            files = files_to_inspect(argument)
        except DataError as error:
            runner.print_error(error)
            code = error.exit_code
            continue
        for file in files:
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

                picture = _unused_name(args.output / f"{file.stem}.png", pictures)
                write_picture(report, picture)
                print(f"picture     {picture}")
            if not report.is_usable:
                runner.print_error(
                    f"{file}: contains NaN or Inf, incomplete trajectories or a constant channel; see the description "
                    "above and correct the file"
                )
                code = DataError.exit_code
    return code


def _unused_name(path: Path, used: set[Path]) -> Path:
    """Add to `used` and return the first of `path`, `NAME-2`, `NAME-3` and so on that is not in `used`."""
    candidates = (path if count == 1 else path.with_stem(f"{path.stem}-{count}") for count in itertools.count(1))
    name = next(candidate for candidate in candidates if candidate not in used)
    used.add(name)
    return name
