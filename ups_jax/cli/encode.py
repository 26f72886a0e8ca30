"""Encode all trajectories as latents with the codec of a trained run, for later training with that codec frozen.

Without --config the data that the run was trained on are encoded. To resume an interrupted encoding, run the same
command again.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from ups_jax.cli import runner
from ups_jax.core.terminal import print_line

if TYPE_CHECKING:
    from rich.console import Console


def main(argv: list[str] | None = None) -> int:
    """Run `ups-jax encode` with the given arguments and return its exit code."""
    parser = runner.make_parser(__doc__, name="encode")
    parser.add_argument(
        "--run-dir", type=Path, required=True, metavar="RUN", help="run directory whose codec encodes the data"
    )
    parser.add_argument("--config", help="configuration of the later training (default: configuration of the run)")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="output folder")
    parser.add_argument(
        "--dtype",
        choices=["float32", "bfloat16", "float16"],
        default="float32",
        help="number format of the stored latents (default: %(default)s); 16-bit formats reduce their precision",
    )
    parser.add_argument(
        "--chunk",
        type=runner.positive_int,
        default=64,
        help="frames that the device encodes at once (default: %(default)s)",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace existing output")
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="key=value",
        help="overrides of the configuration; give the later training the same ones",
    )
    return runner.run_command(parser, encode, argv)


def encode(args: argparse.Namespace) -> None:
    """Encode the data with the codec of a run, write the latents to the output folder and print a summary."""
    from rich.console import Console

    from ups_jax import simulate
    from ups_jax.core.xla import enable_compilation_cache
    from ups_jax.data import open_mixture
    from ups_jax.data.latent_cache.manifest import read_manifest
    from ups_jax.runs.best_weights import best_weights
    from ups_jax.runs.directory import RunDirectory
    from ups_jax.runs.training_set import check_unseen, read_training_set
    from ups_jax.trainer.encode_latents import encode_dataset, encoding_config

    enable_compilation_cache()
    weights = best_weights(args.run_dir, "operator")
    cfg = encoding_config(weights, args.config, args.overrides)
    simulate.generate_missing(cfg)
    data, run = open_mixture(cfg), RunDirectory(args.run_dir)
    (dataset,) = data.datasets
    console, options = Console(), {"chunk": args.chunk, "overwrite": args.overwrite}
    for note in check_unseen(read_training_set(run, weights.fingerprint, data), data, run, "--run-dir"):
        print_line(console, f"note        {note}")
    report = progress_printer(dataset.source.trajectories, dataset.source.frames, console)
    written = encode_dataset(weights, cfg, dataset, args.out, args.dtype, report=report, **options)
    manifest = read_manifest(args.out)
    size = f"{manifest.bytes / 2**20:.3g} MiB" + ("" if written else " (already exists)")
    shape = f"{manifest.trajectories} trajectories of {manifest.frames} latent frames"
    print_line(console, f"{args.out}: {shape}, {manifest.key.dtype}, {size}")


def progress_printer(
    trajectories: int, frames_per_trajectory: int, console: Console, seconds: float = 5.0
) -> Callable[[int], None]:
    """Return a function that takes the number of encoded trajectories and prints it with the frame rate.

    The first and the last call print a line; calls between them print at most one line in `seconds` seconds.
    """
    # Trajectories before `first_done` were encoded by an interrupted command and do not count for the rate.
    started, first_done, last_printed = time.monotonic(), -1, 0.0

    def print_progress(done: int) -> None:
        nonlocal first_done, last_printed
        now, first_done = time.monotonic(), done if first_done < 0 else first_done
        if done < trajectories and now - last_printed < seconds:
            return
        last_printed, rate = now, (done - first_done) * frames_per_trajectory / max(now - started, 1e-9)
        console.print(f"encoded     {done} of {trajectories} trajectories, {rate:.0f} frames/s", highlight=False)

    return print_progress
