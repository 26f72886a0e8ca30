"""Write a data set of an embedded task as HDF5 in PDEBench's layout."""

from __future__ import annotations

import argparse
import sys

from ups_jax import cli, simulate
from ups_jax.data.paths import embedded_file


def main(args: argparse.Namespace) -> None:
    path = embedded_file(args.out, args.task, args.preset)
    terminal = sys.stderr.isatty()
    written = simulate.generate(
        args.task,
        args.preset,
        path,
        args.seed,
        trajectories=args.trajectories,
        overwrite=args.overwrite,
        report=lambda line: print(f"\r{line}", end="", file=sys.stderr) if terminal else None,
    )
    if written and terminal:
        print(file=sys.stderr)
    print(path if written else f"{path} (was there already)")


if __name__ == "__main__":
    arguments = cli.parser("Write a data set of an embedded task as HDF5 in the layout of PDEBench.")
    arguments.add_argument("--task", required=True, help=f"one of {', '.join(simulate.PRESETS)}")
    arguments.add_argument("--out", required=True, metavar="DIR", help="folder for TASK_PRESET.hdf5")
    arguments.add_argument("--preset", default="default", help="default, or tiny for a quick look")
    arguments.add_argument("--seed", type=int, default=0, help="seed of initial fields and coefficients")
    arguments.add_argument("--trajectories", type=int, metavar="N", help="instead of the preset's number")
    arguments.add_argument("--overwrite", action="store_true", help="replace a file that is there")
    sys.exit(cli.run(arguments, main))
