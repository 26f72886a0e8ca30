"""Validate, train, evaluate small and in full, ask the gates, and promote the run where it is better than the champion.

Started again with the same arguments it goes on where it stopped; what was computed before is not computed again.
Exit code 6: the run is not promoted.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from ups_jax.cli import runner
from ups_jax.core.commands import command
from ups_jax.core.errors import ConfigError
from ups_jax.core.stage_names import STAGES
from ups_jax.core.terminal import say

if TYPE_CHECKING:
    from rich.console import Console

    from ups_jax.pipeline.request import Request

# Options that are another name of a key of the configuration.
_KEYS = {
    "min_small_delta": "gates.min_small_delta",
    "min_full_delta": "gates.min_full_delta",
    "improvement_metric": "gates.metric",
    "on_missing_gate": "gates.on_missing",
    "seed": "seed",
}
# Each step of the pipeline, the option `skip_..` that leaves it out, and what it does.
_STEPS = (
    ("validate_config", "validation", "all keys and values of the three configurations"),
    ("validate_data", "data_check", "the data of all three; embedded data is generated where it is not there"),
    (
        "dry_run",
        "dry_run",
        "compile, a few steps, memory, time, a checkpoint saved and restored; unless it was trained before",
    ),
    ("train", "training", f"{command('train')}, for each seed; unless the same was trained before"),
    ("small_eval", "small_eval", "the trajectories of pipeline.small, then the gates"),
    ("full_eval", "full_eval", "the trajectories of pipeline.full, then the gates; unless the first gates refuse"),
    ("promotion", "full_eval", "if the gates pass: the checkpoint is copied and is the champion"),
    ("report", "analysis", "analysis/report.html"),
)


def main(argv: list[str] | None = None) -> int:
    return runner.run(pipeline_parser(str(__doc__)), pipeline, argv)


def pipeline(args: argparse.Namespace) -> None:
    from rich.console import Console

    from ups_jax.pipeline.request import resolve

    request = request_of(args)
    # A misspelt key is reported before the modules of the steps are loaded.
    resolve(request)
    if args.dry_run:
        plan_pipeline(request, Console())
        return
    from ups_jax.pipeline.run import run_pipeline

    run_pipeline(request, Console())


def pipeline_parser(description: str) -> argparse.ArgumentParser:
    """All options, in groups."""
    parser = runner.parser(description, name="pipeline")
    add = parser.add_argument
    add("--train-config", type=Path, required=True, metavar="C", help="configuration of the training")
    add("--small-eval-config", type=Path, metavar="C", help="of the small evaluation (default: the training's)")
    add("--full-eval-config", type=Path, metavar="C", help="of the full evaluation (default: the training's)")
    add("--config-override", action="append", default=[], metavar="KEY=VALUE", help="override of all configurations")
    add("overrides", nargs="*", metavar="key=value", help="the same")
    add(
        "--run-id",
        type=_name,
        metavar="ID",
        help="name of the run (default: one that this command left unfinished, or the time)",
    )
    add(
        "--runs-root",
        type=Path,
        default=Path("artifacts/runs"),
        metavar="DIR",
        help="folder of the runs (default: %(default)s)",
    )
    add("--dry-run", action="store_true", help="print what would be done, check the configurations, and do nothing")
    add("--tag", action="append", default=[], metavar="KEY=VALUE", type=_pair, help="a column of the leaderboard")
    add("--notes", default="", help="a remark in the leaderboard")
    add("--wandb-mode", choices=["online", "offline", "disabled"], help="sets WANDB_MODE for all steps")
    train = parser.add_argument_group("training")
    runner.add_stage(train, [*STAGES, "all"], "what is trained (default: all)", name="--train-stage", default="all")
    train.add_argument(
        "--train-extra-arg", action="append", default=[], metavar="ARG", help=f"for {command('train')} as it is"
    )
    train.add_argument("--seed", type=int, help="of the first training (default: the configuration's)")
    train.add_argument(
        "--n-seeds", type=runner.positive, default=1, metavar="K", help="train K seeds and judge their mean"
    )
    train.add_argument("--force-train", action="store_true", help="train even where the same was trained before")
    steps = parser.add_argument_group("steps to leave out or do again")
    for name in ("validation", "data-check", "dry-run", "training", "small-eval", "full-eval", "analysis"):
        steps.add_argument(f"--skip-{name}", action="store_true")
    steps.add_argument(
        "--redo-small-eval", action="store_true", help="evaluate even where the same was evaluated before"
    )
    steps.add_argument("--redo-full-eval", action="store_true", help="the same of the full evaluation")
    steps.add_argument("--force-full-eval", action="store_true", help="do it whatever the small evaluation's gates say")
    devices = ["auto", "cpu", "cuda", "gpu", "tpu"]
    steps.add_argument("--eval-device", choices=devices, default="auto", help="default: what JAX finds")
    gates = parser.add_argument_group("gates (also keys of `gates` in the configuration)")
    gates.add_argument("--min-small-delta", type=float, metavar="D", help="improvement asked of the small evaluation")
    gates.add_argument("--min-full-delta", type=float, metavar="D", help="improvement asked of the full evaluation")
    gates.add_argument("--improvement-metric", type=_metric, metavar="NAME", help="the metric that has to improve")
    gates.add_argument("--metric-direction", choices=["lower", "higher"], help="which way that metric is better")
    gates.add_argument(
        "--gate-ratio",
        action="append",
        default=[],
        type=runner.assignment,
        metavar="KEY=FACTOR",
        help="allow FACTOR times the champion's",
    )
    gates.add_argument("--clear-default-ratio-gates", action="store_true", help="only the ratios that are given here")
    gates.add_argument(
        "--on-missing-gate", choices=["fail", "warn"], help="where only the champion has measured a ratio"
    )
    gates.add_argument(
        "--baseline-label",
        action="append",
        default=[],
        metavar="LABEL",
        help="whom to beat, best first (default: --champion-label, baseline)",
    )
    gates.add_argument("--baseline-run-id", metavar="ID", help="this run, and the champion if it is another one")
    gates.add_argument("--promote-demoted", action="store_true", help="also a checkpoint that was taken down once")
    board = parser.add_argument_group("leaderboard")
    board.add_argument("--champion-label", default="champion", help="label of a promoted run (default: %(default)s)")
    board.add_argument("--leaderboard-csv", type=Path, default=Path("reports/leaderboard.csv"), metavar="F")
    board.add_argument("--leaderboard-html", type=Path, metavar="F", help="default: beside the CSV file")
    return parser


def request_of(args: argparse.Namespace) -> Request:
    """The request of parsed arguments. Raises `ConfigError`."""
    from ups_jax.pipeline.request import Request
    from ups_jax.pipeline.scores import canonical

    if args.skip_full_eval and args.force_full_eval:
        raise ConfigError("--skip-full-eval and --force-full-eval exclude each other; leave one of them out")
    if args.skip_training and args.force_train:
        raise ConfigError("--skip-training and --force-train exclude each other; leave one of them out")
    overrides = [*args.config_override, *args.overrides]
    overrides += [f"{key}={value}" for option, key in _KEYS.items() if (value := getattr(args, option)) is not None]
    return runner.from_arguments(
        Request,
        args,
        overrides=tuple(overrides),
        gate_ratios={canonical(name): factor for name, factor in args.gate_ratio},
        train_extra_args=tuple(args.train_extra_arg),
        baseline_labels=tuple(args.baseline_label) or (args.champion_label, "baseline"),
        tags=dict(args.tag),
    )


def plan_pipeline(request: Request, console: Console) -> None:
    """Say what a request would do, check its configurations, and do nothing. Raises `ConfigError`."""
    from ups_jax.pipeline.context import unfinished
    from ups_jax.pipeline.request import resolve
    from ups_jax.pipeline.validation import check_config

    resolved = resolve(request)
    for path in {*request.configs.values()}:
        found = check_config(path, request.train_stage, request.overrides)
        if found.problems:
            raise ConfigError("; ".join(found.problems))
    name = request.run_id or unfinished(request.runs_root, request.digest(resolved))
    lines = [f"run             {request.runs_root / (name or 'run_TIME')}" + (" (goes on)" if name else "")]
    for step, option, what in _STEPS:
        lines.append(f"{step:<16}{'skipped' if getattr(request, f'skip_{option}') else what}")
    for line in lines:
        say(console, line)


def _metric(text: str) -> str:
    from ups_jax.pipeline.scores import canonical

    return canonical(text)


def _pair(text: str) -> tuple[str, str]:
    name, separator, value = text.partition("=")
    if not separator or not name:
        raise argparse.ArgumentTypeError(f"{text!r} is not KEY=VALUE")
    return name, value


def _name(text: str) -> str:
    if not text or "/" in text or text.startswith("."):
        raise argparse.ArgumentTypeError(f"{text!r} is not a folder's name; it is made in --runs-root")
    return text
