"""Encode every trajectory of the data by the codec of a trained run, for training on latents with that codec held.

Without --config the data are the run's own. The same command goes on where an interrupted one stopped.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from ups_jax.cli import runner
from ups_jax.core.terminal import say

if TYPE_CHECKING:
    from rich.console import Console


def main(argv: list[str] | None = None) -> int:
    parser = runner.parser(__doc__, name="encode")
    parser.add_argument("--run-dir", type=Path, required=True, metavar="RUN", help="the run whose codec encodes")
    parser.add_argument("--config", help="the configuration of the training to come (default: the run's)")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to write")
    parser.add_argument(
        "--dtype",
        choices=["float32", "bfloat16", "float16"],
        default="float32",
        help="how the latents are stored (default: %(default)s; the fields that they carry are rounded by the others)",
    )
    parser.add_argument(
        "--chunk", type=runner.positive, default=64, help="frames at a time on the device (%(default)s)"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace what is there")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="overrides, as the training will have them")
    return runner.run(parser, encode, argv)


def encode(args: argparse.Namespace) -> None:
    from rich.console import Console

    from ups_jax import simulate
    from ups_jax.core.xla import enable_compilation_cache
    from ups_jax.data import open_mixture
    from ups_jax.data.latent_cache.manifest import read_manifest
    from ups_jax.runs.best_weights import best_weights
    from ups_jax.trainer.encode_latents import encode_dataset, encoding_config

    enable_compilation_cache()
    weights = best_weights(args.run_dir, "operator")
    cfg = encoding_config(weights, args.config, args.overrides)
    simulate.prepare(cfg)
    (dataset,) = open_mixture(cfg).datasets
    console, options = Console(), {"chunk": args.chunk, "overwrite": args.overwrite}
    report = progress(dataset.source.trajectories, dataset.source.frames, console)
    written = encode_dataset(weights, cfg, dataset, args.out, args.dtype, report=report, **options)
    found = read_manifest(args.out)
    size = f"{found.bytes / 2**20:.3g} MiB" + ("" if written else " (was there already)")
    say(console, f"{args.out}: {found.trajectories} trajectories of {found.frames} latents, {found.key.dtype}, {size}")


def progress(trajectories: int, frames: int, console: Console, seconds: float = 5.0) -> Callable[[int], None]:
    """What prints a line for the first trajectories that are done, every few seconds, and for the last."""
    started, first, told = time.monotonic(), -1, 0.0

    def report(done: int) -> None:
        nonlocal first, told
        now, first = time.monotonic(), done if first < 0 else first
        if done < trajectories and now - told < seconds:
            return
        told, rate = now, (done - first) * frames / max(now - started, 1e-9)
        console.print(f"encoded     {done} of {trajectories} trajectories, {rate:.0f} frames/s", highlight=False)

    return report
