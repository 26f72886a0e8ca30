"""Where data files lie: a task's own file, or the embedded generator's under `data.root`."""

from __future__ import annotations

from pathlib import Path

from ups_jax.config import DataConfig, FilePair, TaskConfig


def data_path(data: DataConfig, task: TaskConfig) -> Path:
    """The task's (training) file: its `path`, else the file of its preset, which may not have been written yet."""
    if isinstance(task.path, FilePair):
        return Path(task.path.train)
    if task.path is not None:
        return Path(task.path)
    return embedded_file(data.root, task.name, task.preset)


def embedded_file(root: str | Path, task: str, preset: str) -> Path:
    """The file that the embedded generator writes for a preset of a task."""
    return Path(root) / f"{task}_{preset}.hdf5"
