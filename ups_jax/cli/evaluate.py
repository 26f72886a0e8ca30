"""Evaluate a trained run on a data split: write its metrics, the metrics of baselines, plots and a report."""

from __future__ import annotations

import argparse
from pathlib import Path

from ups_jax.cli import runner
from ups_jax.core.stage_names import STAGES


def main(argv: list[str] | None = None) -> int:
    """Run `ups-jax evaluate` with the given arguments and return its exit code."""
    parser = runner.make_parser(__doc__, name="evaluate")
    parser.add_argument("--run-dir", type=Path, required=True, help="directory of the trained run")
    runner.add_stage_option(parser, STAGES, "stage to evaluate (default: operator, or the last stage of the run)")
    parser.add_argument(
        "--split", choices=["train", "val", "test"], default="test", help="data split to evaluate on (default: test)"
    )
    parser.add_argument(
        "--pipeline",
        choices=["small", "full"],
        help="evaluate on the trajectories that `pipeline.small` or `pipeline.full` selects, instead of --split",
    )
    parser.add_argument(
        "--config",
        type=Path,
        help="YAML file for the settings of evaluation and data files (default: those of the run)",
    )
    parser.add_argument("--output-dir", type=Path, metavar="DIR", help="output folder (default: the run directory)")
    parser.add_argument("--film", action="store_true", help="also render a film of the rollout with the median error")
    parser.add_argument(
        "--track", action="store_true", help="log the result to W&B and TensorBoard if the configuration enables them"
    )
    parser.add_argument("--json", type=Path, metavar="OUT", help="also write the metrics to this JSON file")
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="key=value",
        help="overrides of the configuration, such as data.tasks.0.path=FILE",
    )
    return runner.run_command(parser, evaluate, argv)


def evaluate(args: argparse.Namespace) -> None:
    """Evaluate the selected stage of a run and write the results."""
    from rich.console import Console

    from ups_jax.core.xla import enable_compilation_cache, require_determinism
    from ups_jax.evaluation.evaluate_run import Selection, evaluate_run, evaluation_config
    from ups_jax.tracking import check_logging, wandb_context_path

    cfg = evaluation_config(args.run_dir, args.overrides, args.config)
    require_determinism(cfg.deterministic)
    enable_compilation_cache()
    # An evaluation that the pipeline started is logged to the pipeline's W&B run.
    track = args.track or wandb_context_path() is not None
    if track:
        check_logging(cfg.logging)
    selection = Selection(split=args.split, output=args.output_dir, film=args.film)
    if args.pipeline is not None:
        section = {"small": cfg.pipeline.small, "full": cfg.pipeline.full}[args.pipeline]
        selection = selection.for_pipeline_section(args.pipeline, section)
    evaluate_run(
        args.run_dir, cfg, stage=args.stage, selection=selection, json_path=args.json, track=track, console=Console()
    )
