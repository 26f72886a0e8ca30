"""Event files for TensorBoard, written with tensorboardX (the extra `tensorboard`)."""

from __future__ import annotations

import importlib.util
import math
import struct
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ups_jax.core.errors import ConfigError
from ups_jax.core.files import storage_error
from ups_jax.tracking.writer import Cell, Outcome, Writer, flatten_sections

# A flush blocks until the disk has written; once in ten seconds this does not slow training down.
_FLUSH_SECONDS = 10.0
# The folder of values that belong to no stage.
_RESULTS = "results"
_PNG = b"\x89PNG\r\n\x1a\n"


def check_tensorboard() -> None:
    """Raise `ConfigError` if tensorboardX is not installed."""
    if importlib.util.find_spec("tensorboardX") is None:
        raise ConfigError(
            "key `logging.tensorboard`: needs tensorboardX; pip install 'ups_jax[tensorboard]', or set it to false"
        )


class TensorboardWriter(Writer):
    """Writes event files to one folder per stage, so that TensorBoard overlays the curves of the stages.

    Non-finite values are skipped. Tables become Markdown text; tags, files and alerts are not written.

    Args:
        directory: The folder that contains the folders of the stages.
        resume_steps: The step that each resumed stage is restored at. TensorBoard discards the later points that an
            earlier process wrote, so that the curve is continuous.

    Raises:
        ConfigError: If tensorboardX is not installed.
        StorageError: If a file cannot be written.
    """

    def __init__(self, directory: Path, resume_steps: Mapping[str, int] | None = None) -> None:
        check_tensorboard()
        self.directory = directory
        self._resume_steps = dict(resume_steps or {})
        self._files: dict[str, Any] = {}
        self._flushed = time.monotonic()

    def scalars(self, step: int, values: Mapping[str, float], stage: str) -> None:
        """Add one point to the curve of each metric of the stage."""
        self._add_points(stage, values, step)
        if time.monotonic() - self._flushed > _FLUSH_SECONDS:
            self._flush()

    def summary(self, values: Mapping[str, Any]) -> None:
        """Write each numeric value as one point at step 0."""
        numbers = {name: value for name, value in flatten_sections(values).items() if isinstance(value, int | float)}
        self._add_points(_RESULTS, numbers, 0)
        self._flush()

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Cell]]) -> None:
        """Write the table as Markdown text."""
        from tensorboardX.summary import text

        lines = [columns, ["---"] * len(columns), *rows]
        markdown = "\n".join("|" + "|".join("" if cell is None else str(cell) for cell in line) + "|" for line in lines)
        self._add(_RESULTS, text(name, markdown), 0)
        self._flush()

    def image(self, name: str, path: Path) -> None:
        """Write a PNG file without re-encoding it.

        Raises:
            ValueError: If the file is not a PNG file.
        """
        from tensorboardX.proto.summary_pb2 import Summary

        data = path.read_bytes()
        if not data.startswith(_PNG):
            raise ValueError(f"{path}: is not a PNG file")
        # The first chunk of a PNG file begins with width and height.
        width, height = struct.unpack(">II", data[16:24])
        picture = Summary.Image(encoded_image_string=data, width=width, height=height, colorspace=4)
        self._add(_RESULTS, Summary(value=[Summary.Value(tag=name, image=picture)]), 0)
        self._flush()

    def close(self, outcome: Outcome = "finished") -> None:
        """Flush and close all files."""
        self._flush()
        for file in self._files.values():
            file.close()
        self._files = {}

    def _add_points(self, folder: str, values: Mapping[str, float], step: int) -> None:
        """Write one point for each finite value."""
        from tensorboardX.proto.summary_pb2 import Summary

        finite = {name: float(value) for name, value in values.items() if math.isfinite(value)}
        points = [Summary.Value(tag=name, simple_value=value) for name, value in finite.items()]
        self._add(folder, Summary(value=points), step)

    def _add(self, folder: str, summary: Any, step: int) -> None:
        """Append an event to the file of a folder, which is opened at first use."""
        from tensorboardX.proto.event_pb2 import Event

        try:
            if folder not in self._files:
                self._files[folder] = self._open(folder)
            self._files[folder].write_event(Event(wall_time=time.time(), step=step, summary=summary))
        except OSError as error:
            raise storage_error(self.directory / folder, error) from None

    def _open(self, folder: str) -> Any:
        """Open a new event file; for a resumed stage its first event discards the later points of older files."""
        # Not tensorboardX's SummaryWriter: its queue blocks forever once its writer thread has failed.
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import Event, SessionLog

        path = self.directory / folder
        path.mkdir(parents=True, exist_ok=True)
        # TensorBoard reads the files of a folder in the order of their names, which begin with the time in seconds;
        # the suffix in nanoseconds orders files of the same second.
        file = EventsWriter(str(path / "events"), f".{time.time_ns()}")
        step = self._resume_steps.get(folder)
        if step is not None:
            restart = SessionLog(status=SessionLog.START)
            file.write_event(Event(wall_time=time.time(), step=step + 1, session_log=restart))
        return file

    def _flush(self) -> None:
        """Write buffered events of all files to disk."""
        self._flushed = time.monotonic()
        for folder, file in self._files.items():
            try:
                file.flush()
            except OSError as error:
                raise storage_error(self.directory / folder, error) from None
