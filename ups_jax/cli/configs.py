"""List the packaged configurations, whose names --config accepts, or print one of them."""

from __future__ import annotations

import argparse

from ups_jax.cli import runner


def main(argv: list[str] | None = None) -> int:
    """Run `ups-jax configs` with the given arguments and return its exit code."""
    parser = runner.parser(__doc__, name="configs")
    parser.add_argument("name", nargs="?", help="print this configuration, as a starting point for your own file")
    return runner.run(parser, list_configs, argv)


def list_configs(args: argparse.Namespace) -> None:
    """Print the names of the packaged configurations with a summary of each, or the text of one of them."""
    from ups_jax.config.packaged import packaged_config_summaries, packaged_file

    if args.name is not None:
        print(packaged_file(args.name).read_text(encoding="utf-8"), end="")
        return
    configs = packaged_config_summaries()
    width = max(map(len, configs))
    for name, summary in configs.items():
        print(f"{name:<{width}}  {summary}")
