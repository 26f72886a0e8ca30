"""Predict with a trained run: states in time from given frames, written as HDF5 that xarray opens."""

from __future__ import annotations

import argparse
from pathlib import Path

from ups_jax.cli import runner
from ups_jax.core.stage_names import STAGE_NEEDS


def main(argv: list[str] | None = None) -> int:
    parser = runner.parser(__doc__, name="rollout")
    run = parser.add_mutually_exclusive_group(required=True)
    run.add_argument("--run-dir", type=Path, metavar="R", help="the trained run")
    run.add_argument("--champion", metavar="TASK", help="the run that the pipeline promoted last")
    parser.add_argument(
        "--champions", type=Path, default=Path("artifacts/champions"), metavar="DIR", help="their folder"
    )
    parser.add_argument("--protocol", help="with --champion: of a task with several champions, which")
    parser.add_argument(
        "--input", required=True, metavar="F", help="a .npy, .npz or HDF5 file of fields, or test:3, a test trajectory"
    )
    parser.add_argument("--steps", type=runner.positive, required=True, metavar="N", help="frames to predict")
    parser.add_argument("--output", type=Path, required=True, metavar="O", help="HDF5 file of the states")
    parser.add_argument(
        "--params",
        nargs="+",
        default=[],
        type=runner.assignment,
        metavar="NAME=VALUE",
        help="PDE coefficients: nu=0.01",
    )
    parser.add_argument("--task", metavar="NAME", help="of a run on several tasks, which")
    parser.add_argument("--dt", type=float, help="time between frames, to be checked against the run's")
    parser.add_argument("--images", action="store_true", help="a picture (PNG) and a film beside the output")
    parser.add_argument("--film", choices=["mp4", "gif"], default="mp4", help="the kind of film (default: mp4)")
    how = "the stage of the run that corrects the operator's steps: by its expected error, or in members by samples"
    runner.add_stage(parser, STAGE_NEEDS["transient"], how, name="--corrector")
    parser.add_argument("--correct-every", type=runner.positive, default=1, metavar="N", help="at each N-th step")
    parser.add_argument(
        "--correct-above", type=float, metavar="X", help="of these only where it expects an rms error above X stds"
    )
    parser.add_argument(
        "--members", type=runner.positive, default=1, metavar="M", help="size of a corrector's ensemble"
    )
    parser.add_argument(
        "--sampler-steps",
        type=runner.positive,
        metavar="K",
        help="of each member's samples (default: the corrector's own)",
    )
    parser.add_argument("--seed", type=int, default=0, help="of what is random in a corrector (default: 0)")
    parser.add_argument("--limit", type=runner.positive, metavar="N", help="the first N samples of the input only")
    parser.add_argument("--batch-size", type=runner.positive, metavar="B", help="samples at a time")
    parser.add_argument("--overwrite", action="store_true", help="replace an output that is there")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="where the run's data lies: data.root=DIR")
    return runner.run(parser, predict, argv)


def predict(args: argparse.Namespace) -> None:
    from rich.console import Console

    from ups_jax.cli.predict import RolloutRequest, rollout_run
    from ups_jax.core.xla import enable_compilation_cache
    from ups_jax.evaluation.evaluate_run import run_config
    from ups_jax.pipeline.champions import Champions

    run = args.run_dir or Champions(args.champions).run_of(args.champion, args.protocol)
    cfg = run_config(run, args.overrides)
    enable_compilation_cache()
    wanted = runner.from_arguments(
        RolloutRequest, args, params=dict(args.params), images=["png", args.film] if args.images else ()
    )
    rollout_run(run, cfg, wanted, console=Console())
