"""Generate the data set of a built-in task and write it to an HDF5 file with the layout of PDEBench."""

from __future__ import annotations

import argparse

from ups_jax.cli import runner


def main(argv: list[str] | None = None) -> int:
    """Run `ups-jax generate` with the given arguments and return its exit code."""
    parser = runner.make_parser(__doc__, name="generate")
    parser.add_argument(
        "--task", required=True, help="name of a built-in task, such as burgers1d; an unknown name lists all tasks"
    )
    parser.add_argument("--out", required=True, metavar="DIR", help="output folder for TASK_PRESET.hdf5")
    parser.add_argument(
        "--preset",
        default="default",
        help="named size and resolution of the data set (default: `default`; the smallest is `tiny`)",
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="random seed of the initial fields and coefficients (default: 0)"
    )
    parser.add_argument("--trajectories", type=int, metavar="N", help="number of trajectories (default: by --preset)")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing file")
    return runner.run_command(parser, generate, argv)


def generate(args: argparse.Namespace) -> None:
    """Generate the selected data set and print the path of its file."""
    from rich.console import Console

    from ups_jax import simulate
    from ups_jax.data.files import generated_file

    path = generated_file(args.out, args.task, args.preset)
    with Console(stderr=True).status("") as status:
        written = simulate.generate(
            args.task,
            args.preset,
            path,
            args.seed,
            trajectories=args.trajectories,
            overwrite=args.overwrite,
            report=status.update,
        )
    print(path if written else f"{path} (already exists)")
