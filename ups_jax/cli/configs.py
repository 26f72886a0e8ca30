"""List the configurations that come with ups_jax, whose names --config accepts, or print one of them."""

from __future__ import annotations

import argparse

from ups_jax.cli import runner


def main(argv: list[str] | None = None) -> int:
    """Run `ups-jax configs` with the given arguments and return its exit code."""
    parser = runner.make_parser(__doc__, name="configs")
    parser.add_argument(
        "name", nargs="?", help="print the configuration of this name, as a starting point for your own file"
    )
    return runner.run_command(parser, print_configs, argv)


def print_configs(args: argparse.Namespace) -> None:
    """Print the packaged configuration that `args.name` names, or a list of all with their summaries if it is None."""
    from ups_jax.config.packaged import packaged_config_summaries, packaged_file

    if args.name is not None:
        print(packaged_file(args.name).read_text(encoding="utf-8"), end="")
        return
    configs = packaged_config_summaries()
    width = max(map(len, configs))
    for name, summary in configs.items():
        print(f"{name:<{width}}  {summary}")
