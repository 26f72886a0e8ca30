"""Predict future states from initial frames with a trained run, and write them to an HDF5 file that xarray can open."""

from __future__ import annotations

import argparse
from pathlib import Path

from ups_jax.cli import runner
from ups_jax.core.stage_names import STAGE_NEEDS


def main(argv: list[str] | None = None) -> int:
    """Run `ups-jax rollout` with the given arguments and return its exit code."""
    parser = runner.make_parser(__doc__, name="rollout")
    run = parser.add_mutually_exclusive_group(required=True)
    run.add_argument("--run-dir", type=Path, metavar="R", help="directory of the trained run")
    run.add_argument(
        "--champion", metavar="TASK", help="use the champion of this task, which the pipeline promoted last"
    )
    parser.add_argument(
        "--champions",
        type=Path,
        default=Path("artifacts/champions"),
        metavar="DIR",
        help="folder of the champions (default: %(default)s)",
    )
    parser.add_argument("--protocol", help="with --champion: evaluation protocol, if the task has several champions")
    parser.add_argument(
        "--input",
        required=True,
        metavar="F",
        help="initial frames: a .npy, .npz or HDF5 file, or test:3 for test trajectory 3",
    )
    parser.add_argument("--steps", type=runner.positive_int, required=True, metavar="N", help="frames to predict")
    parser.add_argument("--output", type=Path, required=True, metavar="O", help="HDF5 file to write")
    parser.add_argument(
        "--params",
        nargs="+",
        default=[],
        type=runner.name_and_number,
        metavar="NAME=VALUE",
        help="PDE coefficients, such as nu=0.01",
    )
    parser.add_argument("--task", metavar="NAME", help="task to predict, if the run was trained on several")
    parser.add_argument("--dt", type=float, help="time between input frames; must equal the time step of the run")
    parser.add_argument("--images", action="store_true", help="also write a PNG image and a film beside the output")
    parser.add_argument("--film", choices=["mp4", "gif"], default="mp4", help="format of the film (default: mp4)")
    corrector_help = "stage that corrects the predictions by their mean error, or with --members by sampled errors"
    runner.add_stage_option(parser, STAGE_NEEDS["transient"], corrector_help, name="--corrector")
    parser.add_argument(
        "--correct-every",
        type=runner.positive_int,
        default=1,
        metavar="N",
        help="correct every N-th step only (default: 1)",
    )
    parser.add_argument(
        "--correct-above",
        type=float,
        metavar="X",
        help="correct only samples whose expected RMS error exceeds X standard deviations",
    )
    parser.add_argument(
        "--members",
        type=runner.positive_int,
        default=1,
        metavar="M",
        help="ensemble size, with --corrector (default: 1)",
    )
    parser.add_argument(
        "--sampler-steps",
        type=runner.positive_int,
        metavar="K",
        help="sampler steps of each ensemble member (default: set by the corrector)",
    )
    parser.add_argument("--seed", type=int, default=0, help="random seed of the ensemble (default: 0)")
    parser.add_argument("--limit", type=runner.positive_int, metavar="N", help="read only the first N initial states")
    parser.add_argument(
        "--batch-size",
        type=runner.positive_int,
        metavar="B",
        help="samples per batch (default: evaluation.batch_size of the run)",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an existing output")
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="overrides of the configuration, such as data.root=DIR"
    )
    return runner.run_command(parser, predict, argv)


def predict(args: argparse.Namespace) -> None:
    """Run `write_rollout` with the parsed arguments."""
    from rich.console import Console

    from ups_jax.cli.predict import RolloutRequest, write_rollout
    from ups_jax.core.xla import enable_compilation_cache
    from ups_jax.evaluation.evaluate_run import evaluation_config
    from ups_jax.pipeline.champions import Champions

    run = args.run_dir or Champions(args.champions).run_directory(args.champion, args.protocol)
    cfg = evaluation_config(run, args.overrides)
    enable_compilation_cache()
    request = runner.dataclass_from_arguments(
        RolloutRequest, args, params=dict(args.params), images=["png", args.film] if args.images else ()
    )
    write_rollout(run, cfg, request, console=Console())
