"""Evaluate a trained run on a split: metrics beside those of its baselines, plots and a report."""

from __future__ import annotations

import argparse
from pathlib import Path

from ups_jax.cli import runner
from ups_jax.core.stage_names import STAGES


def main(argv: list[str] | None = None) -> int:
    parser = runner.parser(__doc__, name="evaluate")
    parser.add_argument("--run-dir", type=Path, required=True, help="the trained run")
    runner.add_stage(parser, STAGES, "which stage's result (default: the operator, or the run's last)")
    parser.add_argument(
        "--split", choices=["train", "val", "test"], default="test", help="whose trajectories (default: test)"
    )
    parser.add_argument(
        "--pipeline",
        choices=["small", "full"],
        help="instead of a split: the trajectories of this section of `pipeline`, under this name",
    )
    parser.add_argument("--config", type=Path, help="whose sections on evaluation and data files hold, not the run's")
    parser.add_argument("--output-dir", type=Path, metavar="DIR", help="where the results go (default: the run)")
    parser.add_argument("--film", action="store_true", help="a film of the median rollout as well")
    parser.add_argument("--track", action="store_true", help="send the result to W&B and TensorBoard where they are on")
    parser.add_argument("--json", type=Path, metavar="OUT", help="write the result here as well")
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="such as data.tasks.0.path=FILE, data.tasks.0.preset=fine"
    )
    return runner.run(parser, evaluate, argv)


def evaluate(args: argparse.Namespace) -> None:
    from rich.console import Console

    from ups_jax.core.xla import enable_compilation_cache, require_determinism
    from ups_jax.evaluation.evaluate_run import Selection, evaluate_run, run_config
    from ups_jax.tracking import check_logging, context_path

    cfg = run_config(args.run_dir, args.overrides, args.config)
    require_determinism(cfg.deterministic)
    enable_compilation_cache()
    # A pipeline's evaluation belongs to the pipeline's run.
    track = args.track or context_path() is not None
    if track:
        check_logging(cfg.logging)
    chosen = Selection(split=args.split, output=args.output_dir, film=args.film)
    if args.pipeline is not None:
        section = {"small": cfg.pipeline.small, "full": cfg.pipeline.full}[args.pipeline]
        chosen = chosen.for_pipeline_section(args.pipeline, section)
    evaluate_run(
        args.run_dir, cfg, stage=args.stage, selection=chosen, json_path=args.json, track=track, console=Console()
    )
