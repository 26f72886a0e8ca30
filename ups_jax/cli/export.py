"""Export a trained run as one StableHLO file that a program steps with jax alone, and a JSON that says how."""

from __future__ import annotations

import argparse
from pathlib import Path

from ups_jax.cli import runner
from ups_jax.core.stage_names import STAGES


def main(argv: list[str] | None = None) -> int:
    parser = runner.parser(__doc__, name="export")
    parser.add_argument("--run-dir", type=Path, required=True, metavar="R", help="the trained run")
    parser.add_argument(
        "--output",
        type=Path,
        required=True,
        metavar="O",
        help="a folder for model.stablehlo and model.json, or the file itself, with a suffix",
    )
    which = "which stage's model (default: the operator, or the run's last); a corrector is none by itself"
    runner.add_stage(parser, STAGES, which)
    parser.add_argument("--task", metavar="NAME", help="of a run on several tasks, whose model")
    parser.add_argument(
        "--platforms",
        nargs="+",
        default=["cpu", "cuda"],
        metavar="P",
        help="cpu, cuda, rocm, tpu: where it will run; none has to be here (default: cpu cuda)",
    )
    return runner.run(parser, write, argv)


def write(args: argparse.Namespace) -> None:
    from ups_jax.inference.export import export_run

    for path in export_run(args.run_dir, args.output, args.platforms, stage=args.stage, task=args.task):
        print(path)
