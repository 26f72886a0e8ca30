"""Export a trained model as a StableHLO file that runs with jax alone, and a JSON file that describes its inputs."""

from __future__ import annotations

import argparse
from pathlib import Path

from ups_jax.cli import runner
from ups_jax.core.stage_names import STAGES


def main(argv: list[str] | None = None) -> int:
    """Run `ups-jax export` with the given arguments and return its exit code."""
    parser = runner.make_parser(__doc__, name="export")
    parser.add_argument("--run-dir", type=Path, required=True, metavar="R", help="directory of the trained run")
    parser.add_argument(
        "--output",
        type=Path,
        required=True,
        metavar="O",
        help="output folder for model.stablehlo and model.json, or the output file if the name has a suffix",
    )
    stage_help = (
        "stage to export (default: operator, or the last stage of the run); a corrector cannot be exported alone"
    )
    runner.add_stage_option(parser, STAGES, stage_help)
    parser.add_argument("--task", metavar="NAME", help="task to export, if the run was trained on several")
    parser.add_argument(
        "--platforms",
        nargs="+",
        default=["cpu", "cuda"],
        metavar="P",
        help="target platforms: cpu, cuda, rocm, tpu; this machine need not have them (default: cpu cuda)",
    )
    return runner.run_command(parser, export, argv)


def export(args: argparse.Namespace) -> None:
    """Export the model of a run and print the paths of the written files."""
    from ups_jax.inference.export import export_run

    for path in export_run(args.run_dir, args.output, args.platforms, stage=args.stage, task=args.task):
        print(path)
