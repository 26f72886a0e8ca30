"""Write a data set of an embedded task as HDF5 in the layout of PDEBench."""

from __future__ import annotations

import argparse

from ups_jax.cli import runner


def main(argv: list[str] | None = None) -> int:
    parser = runner.parser(__doc__, name="generate")
    parser.add_argument("--task", required=True, help="such as burgers1d; an unknown name lists all tasks")
    parser.add_argument("--out", required=True, metavar="DIR", help="folder for TASK_PRESET.hdf5")
    parser.add_argument(
        "--preset", default="default", help="size and resolution (default: default; tiny for a quick look)"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of initial fields and coefficients (default: 0)")
    parser.add_argument("--trajectories", type=int, metavar="N", help="instead of the preset's number")
    parser.add_argument("--overwrite", action="store_true", help="replace a file that is there")
    return runner.run(parser, generate, argv)


def generate(args: argparse.Namespace) -> None:
    from rich.console import Console

    from ups_jax import simulate
    from ups_jax.data.files import embedded_file

    path = embedded_file(args.out, args.task, args.preset)
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
    print(path if written else f"{path} (was there already)")
