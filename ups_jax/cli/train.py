"""Train a stage of a neural PDE simulator, evaluate it on the test split, and write plots and a report."""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

from ups_jax.cli import runner
from ups_jax.core.errors import ConfigError
from ups_jax.core.stage_names import STAGES


def main(argv: list[str] | None = None) -> int:
    """Run `ups-jax train` with the given arguments and return its exit code."""
    parser = runner.make_parser(__doc__, name="train", config="burgers1d")
    stage_help = "stage to train (default: operator); all: all enabled stages"
    runner.add_stage_option(parser, [*STAGES, "all"], stage_help)
    parser.add_argument(
        "--run-dir", type=Path, help="run directory; an existing run is resumed (default: a new one in runs/)"
    )
    parser.add_argument(
        "--resume",
        choices=["auto", "must", "never"],
        default="auto",
        help="auto: resume the run in --run-dir if there is one; must: require one; never: refuse one (default: auto)",
    )
    parser.add_argument(
        "--init-from", type=Path, metavar="RUN", help="initialise the model with the weights of another run"
    )
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="do not train; print parameter count, cost and time per step of --stage, or of all enabled stages",
    )
    return runner.run_command(parser, train_and_evaluate, argv)


def train_and_evaluate(args: argparse.Namespace) -> None:
    """Train and evaluate a stage or all stages; with --dry-run only print their cost."""
    if args.stage == "all" and args.init_from is not None:
        raise ConfigError("--init-from works with a single stage; name it with --stage")
    from ups_jax.config import load

    cfg = load(args.config, args.overrides)
    # Slow imports come after the configuration, so that errors in it are reported immediately.
    from rich.console import Console

    from ups_jax.core.terminal import print_line
    from ups_jax.core.xla import enable_compilation_cache, require_determinism
    from ups_jax.distributed.processes import broadcast_from_host0, is_host0, on_host0, start_processes
    from ups_jax.evaluation.evaluate_run import evaluate_run
    from ups_jax.runs.directory import new_run_path
    from ups_jax.trainer.train import train

    require_determinism(cfg.deterministic)
    start_processes(cfg.parallel)
    enable_compilation_cache()
    console = Console(quiet=not is_host0())
    if args.dry_run:
        from ups_jax.trainer.dry_run import dry_run
        from ups_jax.training.stages import enabled_stages

        dry_run(cfg, enabled_stages(cfg) if args.stage in (None, "all") else (args.stage,), console, args.init_from)
        return
    stage = args.stage or "operator"
    names = "+".join(task.name for task in cfg.data.tasks)
    path = args.run_dir or Path(broadcast_from_host0(str(new_run_path(Path(cfg.runs), names))))
    print_line(console, f"run         {path}")
    if stage == "all":
        from ups_jax.pipeline.train_all_stages import train_all

        train_all(cfg, path, resume=args.resume, console=console)
    else:
        trained = train(cfg, stage, path, resume=args.resume, init_from=args.init_from, console=console)
        if cfg.evaluation.enabled:
            evaluate = partial(evaluate_run, path, cfg, data=trained.data, models=trained.model)
            on_host0(partial(evaluate, stage=stage, track=True, console=console))
    print_line(console, f"run         {path}")
