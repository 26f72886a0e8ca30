"""Train a run, evaluate it on a small and a full set of trajectories, and promote it if it beats the champion.

The run must also pass the gates, which are conditions on its metrics relative to the champion. To resume an interrupted
pipeline, run the same command again; finished steps are not repeated. Exit code 6: the run was not promoted.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from ups_jax.cli import runner
from ups_jax.core.commands import command
from ups_jax.core.errors import ConfigError
from ups_jax.core.stage_names import STAGES
from ups_jax.core.terminal import print_line

if TYPE_CHECKING:
    from rich.console import Console

    from ups_jax.pipeline.request import Request

# Options that set a key of the configuration.
_OPTION_KEYS = {
    "min_small_delta": "gates.min_small_delta",
    "min_full_delta": "gates.min_full_delta",
    "improvement_metric": "gates.metric",
    "on_missing_gate": "gates.on_missing",
    "seed": "seed",
}
# The steps of the pipeline: name, suffix of the option `skip_...` that skips it, and description.
_STEPS = (
    ("validate_config", "validation", "check all keys and values of the three configurations"),
    ("validate_data", "data_check", "check the data of all three; generate built-in data that is missing"),
    (
        "dry_run",
        "dry_run",
        "compile, measure a few steps, save and restore a checkpoint; omitted if training is cached",
    ),
    ("train", "training", f"{command('train')} for each seed; omitted if cached"),
    ("small_eval", "small_eval", "evaluate on the trajectories of pipeline.small, then apply the gates"),
    (
        "full_eval",
        "full_eval",
        "evaluate on the trajectories of pipeline.full, then apply the gates; only if the small gates pass",
    ),
    ("promotion", "full_eval", "if the gates pass, copy the checkpoint and make it the champion"),
    ("report", "analysis", "write analysis/report.html"),
)


def main(argv: list[str] | None = None) -> int:
    """Run `ups-jax pipeline` with the given arguments and return its exit code."""
    return runner.run_command(pipeline_parser(str(__doc__)), pipeline, argv)


def pipeline(args: argparse.Namespace) -> None:
    """Run the pipeline; with --dry-run only print its steps."""
    from rich.console import Console

    from ups_jax.pipeline.request import resolve_configs

    request = request_from_arguments(args)
    # A misspelt key is reported before the modules of the steps are loaded.
    resolve_configs(request)
    if args.dry_run:
        print_pipeline_plan(request, Console())
        return
    from ups_jax.pipeline.run import run_pipeline

    run_pipeline(request, Console())


def pipeline_parser(description: str) -> argparse.ArgumentParser:
    """Return the argument parser with all options of the pipeline, in groups."""
    parser = runner.make_parser(description, name="pipeline")
    add = parser.add_argument
    add("--train-config", type=Path, required=True, metavar="C", help="configuration of the training")
    add(
        "--small-eval-config",
        type=Path,
        metavar="C",
        help="configuration of the small evaluation (default: --train-config)",
    )
    add(
        "--full-eval-config",
        type=Path,
        metavar="C",
        help="configuration of the full evaluation (default: --train-config)",
    )
    add(
        "--config-override",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="override a key in all configurations",
    )
    add("overrides", nargs="*", metavar="key=value", help="like --config-override")
    add(
        "--run-id",
        type=_run_id,
        metavar="ID",
        help="name of the run (default: name of the unfinished run of the same command, or a new one from the time)",
    )
    add(
        "--runs-root",
        type=Path,
        default=Path("artifacts/runs"),
        metavar="DIR",
        help="folder of pipeline runs (default: %(default)s)",
    )
    add("--dry-run", action="store_true", help="check the configurations and print the steps without running them")
    add(
        "--tag",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        type=_key_and_value,
        help="add a tag column to the leaderboard",
    )
    add("--notes", default="", help="remark for the leaderboard")
    add("--wandb-mode", choices=["online", "offline", "disabled"], help="value of WANDB_MODE for all steps")
    train = parser.add_argument_group("training")
    runner.add_stage_option(
        train, [*STAGES, "all"], "stage to train (default: all)", name="--train-stage", default="all"
    )
    train.add_argument(
        "--train-extra-arg",
        action="append",
        default=[],
        metavar="ARG",
        help=f"additional argument of {command('train')}; may be repeated",
    )
    train.add_argument(
        "--seed", type=int, help="random seed of the first training (default: `seed` in the configuration)"
    )
    train.add_argument(
        "--n-seeds",
        type=runner.positive_int,
        default=1,
        metavar="K",
        help="train with K seeds and apply the gates to the mean metrics",
    )
    train.add_argument("--force-train", action="store_true", help="train even if the result is cached")
    steps = parser.add_argument_group("steps to skip or repeat")
    for name in ("validation", "data-check", "dry-run", "training", "small-eval", "full-eval", "analysis"):
        steps.add_argument(f"--skip-{name}", action="store_true", help=f"skip the step {name}")
    steps.add_argument(
        "--redo-small-eval", action="store_true", help="run the small evaluation even if the result is cached"
    )
    steps.add_argument(
        "--redo-full-eval", action="store_true", help="run the full evaluation even if the result is cached"
    )
    steps.add_argument(
        "--force-full-eval", action="store_true", help="run the full evaluation even if the small gates fail"
    )
    devices = ["auto", "cpu", "cuda", "gpu", "tpu"]
    steps.add_argument(
        "--eval-device",
        choices=devices,
        default="auto",
        help="device of the evaluations (default: the one that JAX selects)",
    )
    gates = parser.add_argument_group("gates (also keys of `gates` in the configuration)")
    gates.add_argument(
        "--min-small-delta",
        type=float,
        metavar="D",
        help="minimum improvement of --improvement-metric over the baseline run in the small evaluation; "
        "below it, there is no full evaluation",
    )
    gates.add_argument(
        "--min-full-delta", type=float, metavar="D", help="like --min-small-delta, in the full evaluation"
    )
    gates.add_argument(
        "--improvement-metric", type=_canonical_metric, metavar="NAME", help="metric that has to improve"
    )
    gates.add_argument(
        "--metric-direction",
        choices=["lower", "higher"],
        help="whether lower or higher values of --improvement-metric are better",
    )
    gates.add_argument(
        "--gate-ratio",
        action="append",
        default=[],
        type=runner.name_and_number,
        metavar="KEY=FACTOR",
        help="allow the metric KEY to be at most FACTOR times its value for the run to beat",
    )
    gates.add_argument(
        "--clear-default-ratio-gates", action="store_true", help="apply only the ratio gates from --gate-ratio"
    )
    gates.add_argument(
        "--on-missing-gate",
        choices=["fail", "warn"],
        help="result of a ratio gate if the new run lacks its metric, and of the gate `unseen` if it is not known how "
        "many of the evaluated trajectories were trained on",
    )
    gates.add_argument(
        "--baseline-label",
        action="append",
        default=[],
        metavar="LABEL",
        help="label of the run to beat; repeat for alternatives, best first (default: --champion-label, then baseline)",
    )
    gates.add_argument("--baseline-run-id", metavar="ID", help="id of a run to beat, in addition to the champion")
    gates.add_argument(
        "--promote-demoted", action="store_true", help="allow the promotion of a checkpoint that was demoted earlier"
    )
    board = parser.add_argument_group("leaderboard")
    board.add_argument("--champion-label", default="champion", help="label of a promoted run (default: %(default)s)")
    board.add_argument(
        "--leaderboard-csv",
        type=Path,
        default=Path("reports/leaderboard.csv"),
        metavar="F",
        help="leaderboard file (default: %(default)s)",
    )
    board.add_argument(
        "--leaderboard-html", type=Path, metavar="F", help="HTML page of the leaderboard (default: beside the CSV file)"
    )
    return parser


def request_from_arguments(args: argparse.Namespace) -> Request:
    """Return the parsed arguments as a pipeline request. Raise ConfigError if options exclude each other."""
    from ups_jax.pipeline.request import Request
    from ups_jax.pipeline.scores import canonical_metric_name

    if args.skip_full_eval and args.force_full_eval:
        raise ConfigError("--skip-full-eval and --force-full-eval exclude each other; remove one of them")
    if args.skip_training and args.force_train:
        raise ConfigError("--skip-training and --force-train exclude each other; remove one of them")
    overrides = [*args.config_override, *args.overrides]
    overrides += [
        f"{key}={value}" for option, key in _OPTION_KEYS.items() if (value := getattr(args, option)) is not None
    ]
    return runner.dataclass_from_arguments(
        Request,
        args,
        overrides=tuple(overrides),
        gate_ratios={canonical_metric_name(name): factor for name, factor in args.gate_ratio},
        train_extra_args=tuple(args.train_extra_arg),
        baseline_labels=tuple(args.baseline_label) or (args.champion_label, "baseline"),
        tags=dict(args.tag),
    )


def print_pipeline_plan(request: Request, console: Console) -> None:
    """Print the steps of a pipeline without running them. Raise ConfigError if its configurations have problems."""
    from ups_jax.pipeline.context import find_unfinished_run
    from ups_jax.pipeline.request import resolve_configs
    from ups_jax.pipeline.validation import check_config

    resolved = resolve_configs(request)
    for path in {*request.config_files.values()}:
        checked = check_config(path, request.train_stage, request.overrides)
        if checked.problems:
            raise ConfigError("; ".join(checked.problems))
    name = request.run_id or find_unfinished_run(request.runs_root, request.digest(resolved))
    lines = [f"run             {request.runs_root / (name or 'run_TIME')}" + (" (resumed)" if name else "")]
    for step, option, description in _STEPS:
        lines.append(f"{step:<16}{'skipped' if getattr(request, f'skip_{option}') else description}")
    for line in lines:
        print_line(console, line)


def _canonical_metric(text: str) -> str:
    """Return the canonical name of the metric that a command-line argument names."""
    from ups_jax.pipeline.scores import canonical_metric_name

    return canonical_metric_name(text)


def _key_and_value(text: str) -> tuple[str, str]:
    """Return the key and the value of a command-line argument `KEY=VALUE`."""
    name, separator, value = text.partition("=")
    if not separator or not name:
        raise argparse.ArgumentTypeError(f"{text!r} is not KEY=VALUE")
    return name, value


def _run_id(text: str) -> str:
    """Return the argument of --run-id; raise an error if no folder in --runs-root can have this name."""
    if not text or "/" in text or text.startswith("."):
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a valid folder name; give a name without / and without a leading dot"
        )
    return text
