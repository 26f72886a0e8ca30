"""Convert data: any file to ArrayRecord shards for training from slow disks, and shards (or any file) to HDF5.

What becomes of it is told by the second name: FILE.hdf5 is written as HDF5, any other is a folder of shards. The same
command goes on where an interrupted one stopped.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

from ups_jax.cli import runner
from ups_jax.core.errors import ConfigError


def main(argv: list[str] | None = None) -> int:
    parser = runner.parser(__doc__, name="convert")
    parser.add_argument("source", type=Path, help="data file, folder with train and test, or folder of shards")
    parser.add_argument("out", type=Path, nargs="?", help="folder of shards to write, or a .hdf5 file")
    parser.add_argument("--channels", nargs="+", metavar="NAME", help="of a file with named channels, in this order")
    parser.add_argument(
        "--record-kib", type=runner.positive, default=256, help="most of a record, which is what a window reads at once"
    )
    parser.add_argument("--shard-mib", type=runner.positive, default=512, help="about the size of a shard's file")
    parser.add_argument("--zstd", type=int, choices=range(1, 20), metavar="LEVEL", help="compress the records")
    parser.add_argument("--overwrite", action="store_true", help="replace what is there")
    parser.add_argument("--verify", action="store_true", help="check every byte of the shards in SOURCE, write nothing")
    return runner.run(parser, convert, argv)


def convert(args: argparse.Namespace) -> None:
    from rich.console import Console

    from ups_jax.data.sources.shards import is_converted, read_manifest, verify

    if args.verify != (args.out is None):
        raise ConfigError("give SOURCE and OUT, or --verify and SOURCE alone")
    if args.verify:
        manifest = read_manifest(args.source)
        verify(args.source, manifest)
        print(f"{args.source}: {len(manifest.shards)} shards are as they were written")
        return
    with Console(stderr=True).status("") as status:
        if args.source.is_dir() and not is_converted(args.source):
            from ups_jax.data.files import files_in_folder

            for role, files in files_in_folder(args.source).items():
                for file in files:
                    write(args, file, args.out / role / file.stem, status.update)
        else:
            write(args, args.source, args.out, status.update)


def write(args: argparse.Namespace, source: Path, out: Path, report: Callable[[str], None]) -> None:
    from ups_jax.data.shards import hdf5_writer, writer

    channels = None if args.channels is None else tuple(args.channels)
    if out.suffix in (".hdf5", ".h5"):
        layout = hdf5_writer.write_hdf5(source, out, channels, overwrite=args.overwrite, report=report)
        print(f"{out} ({layout})")
        return
    sizes = writer.Sizes(record_kib=args.record_kib, shard_mib=args.shard_mib, level=args.zstd or 0)
    written = writer.convert(source, out, sizes, channels, overwrite=args.overwrite, report=report)
    print(out if written else f"{out} (was there already)")
