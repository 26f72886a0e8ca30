"""Event files for TensorBoard, written with tensorboardX, which the extra `tensorboard` of ups_jax installs."""

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
            "key `logging.tensorboard`: needs tensorboardX; install it with `pip install 'ups_jax[tensorboard]'`, or "
            "set the key to false"
        )


class TensorboardWriter(Writer):
    """Writes event files to one folder per stage, so that TensorBoard overlays the curves of the stages.

    Non-finite values are skipped. Tables become Markdown text; tags, files and alerts are not written.

    Args:
        directory: Folder in which the folders of the stages are created.
        resume_steps: For each resumed stage, the step that it resumes from. TensorBoard discards later points, which an
            earlier process wrote, so that the curve is continuous.

    Raises:
        ConfigError: tensorboardX is not installed.
        StorageError: A file cannot be written.
    """

    def __init__(self, directory: Path, resume_steps: Mapping[str, int] | None = None) -> None:
        check_tensorboard()
        self.directory = directory
        self._resume_steps = dict(resume_steps or {})
        self._files: dict[str, Any] = {}
        self._flushed = time.monotonic()

    def scalars(self, step: int, values: Mapping[str, float], stage: str) -> None:
        """Add a point at `step` to the curve of each metric of the stage."""
        self._add_points(stage, values, step)
        if time.monotonic() - self._flushed > _FLUSH_SECONDS:
            self._flush()

    def summary(self, values: Mapping[str, Any]) -> None:
        """Write each number in `values` as a curve with one point at step 0; other values are skipped."""
        numbers = {name: value for name, value in flatten_sections(values).items() if isinstance(value, int | float)}
        self._add_points(_RESULTS, numbers, 0)
        self._flush()

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Cell]]) -> None:
        """Write the table as Markdown text."""
        from tensorboardX.summary import text

        lines = [columns, ["---"] * len(columns), *rows]
        markdown = "\n".join("|" + "|".join("" if cell is None else str(cell) for cell in line) + "|" for line in lines)
        self._add_event(_RESULTS, text(name, markdown), 0)
        self._flush()

    def image(self, name: str, path: Path) -> None:
        """Write an image from a PNG file without encoding it again.

        Raises:
            ValueError: The file is not a PNG file.
        """
        from tensorboardX.proto.summary_pb2 import Summary

        data = path.read_bytes()
        if not data.startswith(_PNG):
            raise ValueError(f"{path}: is not a PNG file")
        # The first chunk of a PNG file begins with width and height.
        width, height = struct.unpack(">II", data[16:24])
        picture = Summary.Image(encoded_image_string=data, width=width, height=height, colorspace=4)
        self._add_event(_RESULTS, Summary(value=[Summary.Value(tag=name, image=picture)]), 0)
        self._flush()

    def close(self, outcome: Outcome = "finished") -> None:
        """Flush and close all files."""
        self._flush()
        for file in self._files.values():
            file.close()
        self._files = {}

    def _add_points(self, folder: str, values: Mapping[str, float], step: int) -> None:
        """Add a point at `step` to the curve of each finite value, in the event file of a folder."""
        from tensorboardX.proto.summary_pb2 import Summary

        finite = {name: float(value) for name, value in values.items() if math.isfinite(value)}
        points = [Summary.Value(tag=name, simple_value=value) for name, value in finite.items()]
        self._add_event(folder, Summary(value=points), step)

    def _add_event(self, folder: str, summary: Any, step: int) -> None:
        """Append an event with this summary to the event file of a folder, which is opened at first use."""
        from tensorboardX.proto.event_pb2 import Event

        try:
            if folder not in self._files:
                self._files[folder] = self._open_event_file(folder)
            self._files[folder].write_event(Event(wall_time=time.time(), step=step, summary=summary))
        except OSError as error:
            raise storage_error(self.directory / folder, error) from None

    def _open_event_file(self, folder: str) -> Any:
        """Open a new event file in a folder; if its stage resumes, first write an event that discards later points."""
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
        """Write the buffered events of all event files to disk."""
        self._flushed = time.monotonic()
        for folder, file in self._files.items():
            try:
                file.flush()
            except OSError as error:
                raise storage_error(self.directory / folder, error) from None
