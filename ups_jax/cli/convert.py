"""Convert data to ArrayRecord shards, from which training reads faster on slow disks, or to HDF5.

The name of the output selects the format: FILE.hdf5 is written as HDF5, any other name as a folder of shards. To resume
an interrupted conversion, run the same command again.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

from ups_jax.cli import runner
from ups_jax.core.errors import ConfigError


def main(argv: list[str] | None = None) -> int:
    """Run `ups-jax convert` with the given arguments and return its exit code."""
    parser = runner.make_parser(__doc__, name="convert")
    parser.add_argument(
        "source", type=Path, help="input: data file, folder with subfolders train and test, or folder of shards"
    )
    parser.add_argument("out", type=Path, nargs="?", help="output: folder for the shards, or .hdf5 file")
    parser.add_argument(
        "--channels", nargs="+", metavar="NAME", help="channels to convert, in this order (default: all)"
    )
    parser.add_argument(
        "--record-kib",
        type=runner.positive_int,
        default=256,
        help="maximum size in KiB of a record, the unit of reading (default: %(default)s)",
    )
    parser.add_argument(
        "--shard-mib",
        type=runner.positive_int,
        default=512,
        help="approximate size of a shard file in MiB (default: %(default)s)",
    )
    parser.add_argument(
        "--zstd", type=int, choices=range(1, 20), metavar="LEVEL", help="compress the records at this Zstandard level"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace existing output")
    parser.add_argument("--verify", action="store_true", help="only verify the checksums of the shards in SOURCE")
    return runner.run_command(parser, convert, argv)


def convert(args: argparse.Namespace) -> None:
    """Convert SOURCE, a file or every file of a folder, to OUT; with --verify only verify the shards in SOURCE."""
    from rich.console import Console

    from ups_jax.data.sources.shards import is_shard_folder, read_manifest, verify_shards

    if args.verify != (args.out is None):
        raise ConfigError("give SOURCE and OUT, or SOURCE with --verify and no OUT")
    if args.verify:
        manifest = read_manifest(args.source)
        verify_shards(args.source, manifest)
        print(f"{args.source}: {len(manifest.shards)} shards match their checksums")
        return
    with Console(stderr=True).status("") as status:
        if args.source.is_dir() and not is_shard_folder(args.source):
            from ups_jax.data.files import files_in_folder

            for role, files in files_in_folder(args.source).items():
                for file in files:
                    convert_source(args, file, args.out / role / file.stem, status.update)
        else:
            convert_source(args, args.source, args.out, status.update)


def convert_source(args: argparse.Namespace, source: Path, out: Path, report: Callable[[str], None]) -> None:
    """Convert one data source to HDF5 or to shards and print the output path."""
    from ups_jax.data.shards import hdf5_writer, writer

    channels = None if args.channels is None else tuple(args.channels)
    if out.suffix in (".hdf5", ".h5"):
        layout = hdf5_writer.write_hdf5(source, out, channels, overwrite=args.overwrite, report=report)
        print(f"{out} ({layout})")
        return
    sizes = writer.ShardSizes(record_kib=args.record_kib, shard_mib=args.shard_mib, compression_level=args.zstd or 0)
    written = writer.convert_to_shards(source, out, sizes, channels, overwrite=args.overwrite, report=report)
    print(out if written else f"{out} (already exists)")
