"""Trace a few training steps with the JAX profiler and print the time of each part of the model."""

from __future__ import annotations

import argparse
from pathlib import Path

from ups_jax.cli import runner
from ups_jax.core.stage_names import STAGES


def main(argv: list[str] | None = None) -> int:
    """Run `ups-jax profile` with the given arguments and return its exit code."""
    parser = runner.make_parser(__doc__, name="profile", config="burgers1d")
    parser.add_argument("--stage", choices=STAGES, default="operator", help="stage to profile (default: operator)")
    parser.add_argument("--steps", type=runner.positive_int, default=10, help="number of steps to trace (default: 10)")
    parser.add_argument(
        "--depth",
        type=runner.positive_int,
        default=3,
        help="depth of the listed parts in the tree of modules (default: 3)",
    )
    parser.add_argument(
        "--out", type=Path, default=Path("profile"), metavar="DIR", help="output folder of the trace (default: profile)"
    )
    return runner.run_command(parser, profile, argv)


def profile(args: argparse.Namespace) -> None:
    """Profile the training step of a stage and print the time of each part of the model."""
    from ups_jax.config import load

    cfg = load(args.config, args.overrides)
    import jax
    from rich.console import Console
    from rich.table import Table

    from ups_jax import simulate
    from ups_jax.core.xla import enable_compilation_cache, require_determinism
    from ups_jax.data import open_mixture
    from ups_jax.trainer.profile import profile_step
    from ups_jax.trainer.timing import open_step_trial
    from ups_jax.training.build import build_joint_model

    require_determinism(cfg.deterministic)
    enable_compilation_cache()
    simulate.generate_missing(cfg)
    data = open_mixture(cfg)
    with open_step_trial(
        cfg, args.stage, data, build_joint_model(cfg, data.tasks, args.stage), steps_per_call=1
    ) as step_trial:
        settings = {"steps": args.steps, "depth": args.depth}
        result = profile_step(step_trial.train_step, step_trial.new_state(), step_trial.batches, args.out, **settings)
    table = Table(title=f"one step of {args.stage} on {jax.devices()[0].device_kind}", title_justify="left")
    for heading in ("part", "direction"):
        table.add_column(heading, no_wrap=True)
    for heading in ("ms per step", "share", "operations"):
        table.add_column(heading, justify="right")
    for part in result.parts:
        milliseconds = f"{1e3 * part.seconds_per_step:.3f}"
        table.add_row(part.part, part.direction, milliseconds, f"{part.share:.1%}", str(part.operations))
    console = Console()
    console.print(table)
    busy = sum(part.seconds_per_step for part in result.parts)
    wall = 1e3 * result.seconds_per_step
    console.print(
        f"wall        {wall:.2f} ms per step while tracing; operations take {1e3 * busy:.2f} ms, summed over threads "
        "and streams"
    )
    console.print(f"trace       {result.trace.parent} (open perfetto_trace.json.gz in ui.perfetto.dev)", soft_wrap=True)
