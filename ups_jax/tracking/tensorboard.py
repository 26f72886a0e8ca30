"""Event files that TensorBoard reads, written by tensorboardX (the extra `tensorboard`)."""

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
from ups_jax.tracking.writer import Cell, Outcome, Writer, flat

# A flush waits for the disk, which a step need not.
_FLUSH_SECONDS = 10.0
# The folder of what belongs to no stage.
_RESULTS = "results"
_PNG = b"\x89PNG\r\n\x1a\n"


def check_tensorboard() -> None:
    """ConfigError where tensorboardX is not installed."""
    if importlib.util.find_spec("tensorboardX") is None:
        raise ConfigError(
            "key `logging.tensorboard`: needs tensorboardX; pip install 'ups_jax[tensorboard]', or set it to false"
        )


class TensorboardWriter(Writer):
    """One folder of event files a stage below `directory`, so that TensorBoard lays the stages' curves over each other.

    `restarts` are the steps that stages are restored at: TensorBoard then drops what it has after them, and the curve
    is one. Numbers that are not finite are left out. Tables become text; tags, files and alerts have no place there.
    Raises ConfigError without tensorboardX, `StorageError` where the disk refuses.
    """

    def __init__(self, directory: Path, restarts: Mapping[str, int] | None = None) -> None:
        check_tensorboard()
        self.directory = directory
        self._restarts = dict(restarts or {})
        self._files: dict[str, Any] = {}
        self._flushed = time.monotonic()

    def scalars(self, step: int, values: Mapping[str, float], stage: str) -> None:
        """One point a metric, under the metric's own name."""
        self._numbers(stage, values, step)
        if time.monotonic() - self._flushed > _FLUSH_SECONDS:
            self._flush()

    def summary(self, values: Mapping[str, Any]) -> None:
        """One point at step 0 for every name that has a number."""
        numbers = {name: value for name, value in flat(values).items() if isinstance(value, int | float)}
        self._numbers(_RESULTS, numbers, 0)
        self._flush()

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Cell]]) -> None:
        """A Markdown table."""
        from tensorboardX.summary import text

        lines = [columns, ["---"] * len(columns), *rows]
        markdown = "\n".join("|" + "|".join("" if cell is None else str(cell) for cell in line) + "|" for line in lines)
        self._add(_RESULTS, text(name, markdown), 0)
        self._flush()

    def image(self, name: str, path: Path) -> None:
        """A PNG file, as it is; ValueError where it is none."""
        from tensorboardX.proto.summary_pb2 import Summary

        data = path.read_bytes()
        if not data.startswith(_PNG):
            raise ValueError(f"{path}: is not a PNG file")
        # The first chunk of a PNG begins with its size.
        width, height = struct.unpack(">II", data[16:24])
        picture = Summary.Image(encoded_image_string=data, width=width, height=height, colorspace=4)
        self._add(_RESULTS, Summary(value=[Summary.Value(tag=name, image=picture)]), 0)
        self._flush()

    def close(self, outcome: Outcome = "finished") -> None:
        """Write what waits and close the files."""
        self._flush()
        for file in self._files.values():
            file.close()
        self._files = {}

    def _numbers(self, folder: str, values: Mapping[str, float], step: int) -> None:
        from tensorboardX.proto.summary_pb2 import Summary

        known = {name: float(value) for name, value in values.items() if math.isfinite(value)}
        points = [Summary.Value(tag=name, simple_value=value) for name, value in known.items()]
        self._add(folder, Summary(value=points), step)

    def _add(self, folder: str, summary: Any, step: int) -> None:
        from tensorboardX.proto.event_pb2 import Event

        try:
            if folder not in self._files:
                self._files[folder] = self._open(folder)
            self._files[folder].write_event(Event(wall_time=time.time(), step=step, summary=summary))
        except OSError as error:
            raise storage_error(self.directory / folder, error) from None

    def _open(self, folder: str) -> Any:
        # Its SummaryWriter hands events to a thread through a queue that blocks for ever once that thread has failed.
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import Event, SessionLog

        path = self.directory / folder
        path.mkdir(parents=True, exist_ok=True)
        # TensorBoard reads the files of a folder in the order of their names, which begin with a whole second.
        file = EventsWriter(str(path / "events"), f".{time.time_ns()}")
        step = self._restarts.get(folder)
        if step is not None:
            restart = SessionLog(status=SessionLog.START)
            file.write_event(Event(wall_time=time.time(), step=step + 1, session_log=restart))
        return file

    def _flush(self) -> None:
        self._flushed = time.monotonic()
        for folder, file in self._files.items():
            try:
                file.flush()
            except OSError as error:
                raise storage_error(self.directory / folder, error) from None
