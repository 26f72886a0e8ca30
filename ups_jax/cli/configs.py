"""List the packaged configurations, which --config takes by name, or print one of them."""

from __future__ import annotations

import argparse

from ups_jax.cli import runner


def main(argv: list[str] | None = None) -> int:
    parser = runner.parser(__doc__, name="configs")
    parser.add_argument("name", nargs="?", help="print this configuration, to be changed and given as a file")
    return runner.run(parser, list_configs, argv)


def list_configs(args: argparse.Namespace) -> None:
    from ups_jax.config.packaged import packaged_configs, packaged_file

    if args.name is not None:
        print(packaged_file(args.name).read_text(encoding="utf-8"), end="")
        return
    configs = packaged_configs()
    width = max(map(len, configs))
    for name, about in configs.items():
        print(f"{name:<{width}}  {about}")
