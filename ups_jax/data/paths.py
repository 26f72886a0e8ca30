"""Where data files lie: a task's own file, or the embedded generator's under `data.root`."""

from __future__ import annotations

from pathlib import Path

from ups_jax.config import DataConfig, FilePair, TaskConfig
from ups_jax.data.shards.manifest import is_converted
from ups_jax.data.sources.layouts import is_whole
from ups_jax.errors import DataError

_FOLDERS = {"train": ("train",), "val": ("valid", "val", "validation"), "test": ("test",)}
_SUFFIXES = (".hdf5", ".h5", ".yaml", ".yml")


def data_path(data: DataConfig, task: TaskConfig) -> Path:
    """The task's (first training) file: its `path`, else the file of its preset, which may not have been written."""
    return next(iter(data_files(data, task).values()))[0]


def data_files(data: DataConfig, task: TaskConfig) -> dict[str, tuple[Path, ...]]:
    """The task's files: `all`, or those of `train`, `val` (where it has its own) and `test`, in this order.

    Raises `DataError` for a folder that does not hold them.
    """
    if isinstance(task.path, FilePair):
        given = {"train": task.path.train, "val": task.path.val, "test": task.path.test}
        return {
            role: (Path(paths),) if isinstance(paths, str) else tuple(map(Path, paths))
            for role, paths in given.items()
            if paths
        }
    if task.path is None:
        return {"all": (embedded_file(data.root, task.name, task.preset),)}
    if isinstance(task.path, tuple):
        return {"all": tuple(map(Path, task.path))}
    path = Path(task.path)
    return files_in_folder(path) if path.is_dir() and not is_whole(path) else {"all": (path,)}


def files_in_folder(path: Path) -> dict[str, tuple[Path, ...]]:
    """The data files of a folder with `train`, `test` and perhaps `valid`, as The Well has it. Raises `DataError`."""
    root = path / "data" if (path / "data" / "train").is_dir() else path
    found: dict[str, tuple[Path, ...]] = {}
    for role, names in _FOLDERS.items():
        inside = sorted(file for name in names for file in (root / name).glob("*"))
        files = [file for file in inside if file.suffix in _SUFFIXES or is_converted(file)]
        if files:
            found[role] = tuple(files)
        elif role != "val":
            raise DataError(f"{path}: has no data files in a folder `{names[0]}`; give such a folder, or a file")
    return found


def embedded_file(root: str | Path, task: str, preset: str) -> Path:
    """The file that the embedded generator writes for a preset of a task."""
    return Path(root) / f"{task}_{preset}.hdf5"
