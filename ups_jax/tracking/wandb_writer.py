"""A writer for Weights & Biases (W&B) that does its work in a separate thread."""

from __future__ import annotations

import contextlib
import math
import queue
import threading
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ups_jax.config import WandbConfig
from ups_jax.core.errors import ConfigError
from ups_jax.core.files import folder_size
from ups_jax.tracking.wandb_run import (
    RunContext,
    RunSpec,
    describe_error,
    finish_run,
    has_wandb_login,
    read_context,
    start_run,
    wandb_mode,
)
from ups_jax.tracking.writer import Cell, Level, Outcome, Writer, flatten_sections

# After this number of consecutive failures, W&B is switched off for the rest of the run.
_MAX_CONSECUTIVE_FAILURES = 5
# The lowest upload rate that `close` allows for.
_BYTES_PER_SECOND = 1e6


class WandbWriter(Writer):
    """Writes to one W&B run per process; a failure of W&B never raises an error.

    The logging methods only queue an operation for a separate thread. If W&B does not answer in time or rejects
    the run, the run is written offline. A failed operation is skipped; after five consecutive failures, or when the
    queue is full, nothing more is sent and `problem` contains the reason. Each of these events emits a warning, but of
    the failures of one method only the first does.

    `close` waits for about twice `finish_timeout`, up to `init_timeout` longer if the run has not started, and online
    one second longer per megabyte of artifacts. Data that was not sent stays in `directory`/wandb for `wandb sync`. W&B
    shows a failed run as failed, and a stopped run as preempted.

    Args:
        config: W&B settings of the configuration.
        directory: Folder in which wandb creates its folder `wandb`.
        group: Group of a new run.
        name: Name of a new run.
        run_config: Configuration to log.
        context_file: File that describes the W&B run that the processes of a pipeline share. If it is damaged, the
            writer warns and starts a new run.
        join: Whether to join the shared run. Use False after a resume: the shared run already contains the repeated
            steps, so the writer starts a new run, which later processes join.
        finish_timeout: Seconds to wait for the end of the run.
        init_timeout: Seconds to wait for the first answer of W&B.
        max_upload_seconds: Maximum time that `close` waits additionally for artifacts.
        max_queued: Number of queued operations at which the writer stops sending.
    """

    def __init__(
        self,
        config: WandbConfig,
        *,
        directory: Path,
        group: str,
        name: str,
        run_config: Mapping[str, Any],
        context_file: Path | None = None,
        join: bool = True,
        finish_timeout: float = 15.0,
        init_timeout: float = 90.0,
        max_upload_seconds: float = 300.0,
        max_queued: int = 10_000,
    ) -> None:
        self.problem: str | None = None
        self.mode = wandb_mode(config.mode)
        self._finish_timeout = finish_timeout
        self._init_timeout = init_timeout
        self._max_upload_seconds = max_upload_seconds
        self._warnings: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._failed_methods: set[str] = set()
        self._stages: set[str] = set()
        self._artifacts: list[Path] = []
        self._uploads: list[Any] = []
        self._outcome: Outcome = "finished"
        self._operations: queue.Queue[tuple[str, Callable[[Any], None]] | None] = queue.Queue(max_queued)
        shared_run: RunContext | None = None
        try:
            shared_run = None if context_file is None else read_context(context_file)
        except ConfigError as error:
            context_file = None
            self._warnings.put(f"this run is not shared with other processes: {error}")
        self._spec = RunSpec(
            config=config,
            directory=directory,
            group=group,
            name=name,
            run_config=run_config,
            context_file=context_file,
            shared_run=shared_run,
            join=join,
        )
        self._is_started = threading.Event()
        self._creation_time = time.monotonic()
        self._thread = threading.Thread(target=self._process_operations, name="wandb", daemon=True)
        if self.mode == "online" and not has_wandb_login():
            # Otherwise wandb prompts for a key on the terminal and blocks.
            self._give_up("no login was found; run `wandb login` or set WANDB_MODE=offline")
        elif self.mode != "disabled":
            self._thread.start()
        if self._spec.joins_shared_run(self.mode):
            self.config(run_config)
            self.tags(config.tags)

    def scalars(self, step: int, values: Mapping[str, float], stage: str) -> None:
        """Queue metrics under `training/STAGE/`, for plots over `training/STAGE/step`."""
        prefix = f"training/{stage}"
        record = {f"{prefix}/{name}": float(value) for name, value in values.items()} | {f"{prefix}/step": step}

        def log(run: Any) -> None:
            if stage not in self._stages:
                run.define_metric(f"{prefix}/step")
                run.define_metric(f"{prefix}/*", step_metric=f"{prefix}/step")
                self._stages.add(stage)
            # Without `step=`: wandb drops records whose step does not increase, as after a resume.
            run.log(record)

        self._queue_operation("scalars", log)

    def summary(self, values: Mapping[str, Any]) -> None:
        """Queue values for the summary of the run."""
        self._queue_operation("summary", lambda run: run.summary.update(flatten_sections(values)))

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Cell]]) -> None:
        """Queue a table."""

        def log(run: Any) -> None:
            import wandb

            run.log({name: wandb.Table(columns=list(columns), data=[list(row) for row in rows])})

        self._queue_operation("table", log)

    def image(self, name: str, path: Path) -> None:
        """Queue an image file."""

        def log(run: Any) -> None:
            import wandb

            run.log({name: wandb.Image(str(path))})

        self._queue_operation("image", log)

    def file(self, path: Path) -> None:
        """Queue the upload of a file. Offline, wandb only links the file; `wandb sync` uploads its content later."""
        absolute_path = path.resolve()
        self._queue_operation(
            "file", lambda run: run.save(str(absolute_path), base_path=str(absolute_path.parent), policy="now")
        )

    def artifact(self, path: Path, name: str, *, kind: str, labels: Sequence[str], metadata: Mapping[str, Any]) -> None:
        """Queue a folder as a new version of the artifact `name`. It is not copied: keep it until it is sent."""

        def log(run: Any) -> None:
            import wandb

            artifact = wandb.Artifact(name, type=kind, metadata=dict(metadata))
            artifact.add_dir(str(path), policy="immutable")
            # The upload continues in the background; `_finish` waits for it.
            self._uploads.append(run.log_artifact(artifact, aliases=list(labels)))

        self._artifacts.append(path)
        self._queue_operation("artifact", log)

    def config(self, values: Mapping[str, Any]) -> None:
        """Queue values for the configuration of the run; they replace values of the same name."""
        self._queue_operation("config", lambda run: run.config.update(dict(values), allow_val_change=True))

    def tags(self, names: Sequence[str]) -> None:
        """Queue additional tags for the run."""

        def add(run: Any) -> None:
            run.tags = tuple(dict.fromkeys((*(run.tags or ()), *names)))

        self._queue_operation("tags", add)

    def alert(self, title: str, text: str, level: Level = "INFO") -> None:
        """Queue a notification."""
        self._queue_operation("alert", lambda run: run.alert(title, text, level=level))

    def close(self, outcome: Outcome = "finished") -> None:
        """Send all queued operations and finish the run, or give up after the time limit."""
        self._outcome = outcome
        if self._thread.is_alive():
            with contextlib.suppress(queue.Full):
                self._operations.put_nowait(None)
            self._wait_for_thread()
            if self._thread.is_alive():
                self._give_up("it did not finish in time; upload the rest with `wandb sync`")
        self._emit_warnings()

    def has_delivered(self, *method_names: str) -> bool:
        """Return whether the W&B run has started, has ended and accepted every call of the methods with these names.

        Offline, the run accepts a call by writing to the folder that `wandb sync` uploads.
        """
        return self._is_started.is_set() and self.problem is None and self._failed_methods.isdisjoint(method_names)

    def _wait_for_thread(self) -> None:
        """Wait until the thread ends or reaches the time limit of `close`."""
        wait_start = last_warning = time.monotonic()
        while self._thread.is_alive():
            now = time.monotonic()
            # More than `init_timeout`, because importing wandb and starting an offline run take time too.
            remaining = self._creation_time + self._init_timeout + 2 * self._finish_timeout - now
            if self.mode == "online" and not self._is_started.is_set() and remaining > 0:
                if now - last_warning > self._finish_timeout:
                    last_warning = math.inf
                    self._warnings.put(f"no answer from W&B yet; waiting up to {remaining:.0f} seconds more")
                    self._emit_warnings()
                wait_start = now
            elif now - wait_start > 2 * self._finish_timeout + self._upload_seconds():
                return
            self._thread.join(0.05)

    def _queue_operation(self, method: str, operation: Callable[[Any], None]) -> None:
        """Queue a function of the W&B run, for a method of this class, unless W&B is switched off."""
        if self._thread.is_alive() and self.problem is None:
            try:
                self._operations.put_nowait((method, operation))
            except queue.Full:
                self._give_up(f"it hangs: {self._operations.maxsize} operations are queued")
        self._emit_warnings()

    def _emit_warnings(self) -> None:
        """Emit the warnings that the separate thread collected."""
        while not self._warnings.empty():
            warnings.warn(f"wandb: {self._warnings.get()} (the run directory has all data)", stacklevel=3)

    def _give_up(self, reason: str) -> None:
        """Send nothing more for the rest of the run, and collect a warning with the reason."""
        if self.problem is None:
            self.problem = reason
            self._warnings.put(f"disabled for the rest of this run: {reason}")

    def _upload_seconds(self) -> float:
        """Return the seconds that the uploads of all artifacts may take; zero offline."""
        if self.mode != "online":
            return 0.0
        return min(sum(map(folder_size, self._artifacts)) / _BYTES_PER_SECOND, self._max_upload_seconds)

    def _process_operations(self) -> None:
        """Start the run, execute the queued operations and finish the run. The separate thread executes this method."""
        try:
            run, self.mode = start_run(
                self._spec,
                self.mode,
                init_timeout=self._init_timeout,
                finish_timeout=self._finish_timeout,
                warn=self._warnings.put,
            )
        except (Exception, SystemExit) as error:
            self._give_up(describe_error(error))
            return
        self._is_started.set()
        failures = 0
        while (entry := self._operations.get()) is not None:
            if self.problem is not None:
                continue
            method, operation = entry
            try:
                operation(run)
                failures = 0
            except (Exception, SystemExit) as error:
                failures += 1
                self._record_failure(method, error)
                if failures == _MAX_CONSECUTIVE_FAILURES:
                    self._give_up(f"{failures} operations in a row failed, the last one with {describe_error(error)}")
        try:
            self._finish(run)
        except (Exception, SystemExit) as error:
            self._give_up(
                f"finishing the run failed with {describe_error(error)}; upload the missing data with `wandb sync`"
            )

    def _finish(self, run: Any) -> None:
        """Wait for the uploads of the artifacts, then finish the run."""
        deadline = time.monotonic() + self._finish_timeout + self._upload_seconds()
        for upload in self._uploads if self.mode == "online" and self.problem is None else ():
            try:
                upload.wait(timeout=max(1, math.ceil(deadline - time.monotonic())))
            except Exception as error:
                self._record_failure("artifact", error)
        finish_run(run, self._outcome)

    def _record_failure(self, method: str, error: BaseException) -> None:
        """Collect a warning about a failed call of a method, unless an earlier call failed."""
        if method not in self._failed_methods:
            self._failed_methods.add(method)
            self._warnings.put(
                f"`{method}` failed and is skipped; further failures of `{method}` are not reported: "
                f"{describe_error(error)}"
            )
