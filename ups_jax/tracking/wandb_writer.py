"""Weights & Biases beside the JSONL, in a thread of its own."""

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
    Beginning,
    RunContext,
    begin,
    described,
    end,
    login_found,
    read_context,
    wandb_mode,
)
from ups_jax.tracking.writer import Cell, Level, Outcome, Writer, flat

# As many operations that fail in a row mean that none will succeed.
_FAILURES_IN_A_ROW = 5
# The slowest upload that is waited for when a run ends.
_BYTES_PER_SECOND = 1e6


class WandbWriter(Writer):
    """One wandb run a started process, in the group of the run directory (see `Beginning`).

    All of wandb happens in a thread of its own: a call here only queues, so that nothing wandb does (an exception, a
    hang, a dead network) reaches training. Where W&B gives no answer within `answer_within` seconds, or refuses, the
    run is written offline. An operation that fails is left out; after five in a row nothing more is sent, and `problem`
    says why. Each of these is one warning, an operation that fails the first one of its kind.

    `close` waits at most about twice `patience` seconds, and longer for two things that are under way by then: the
    first answer, as long again, and artifacts that go online, a second a megabyte and `longest_upload` seconds at most.
    More than `max_waiting` queued records mean a hang. What was not sent stays in `directory`/wandb for `wandb sync`. A
    run that failed is failed there too, one that a signal stopped is preempted.

    `context` is the file of a run that the processes of a pipeline share; where it is damaged, this process shares
    nothing and says so. With `join=False`, as after a resume, whose steps the old run has seen, the process begins a
    run and is itself the one that later processes join.
    """

    def __init__(
        self,
        config: WandbConfig,
        *,
        directory: Path,
        group: str,
        name: str,
        run_config: Mapping[str, Any],
        context: Path | None = None,
        join: bool = True,
        patience: float = 15.0,
        answer_within: float = 90.0,
        longest_upload: float = 300.0,
        max_waiting: int = 10_000,
    ) -> None:
        self.problem: str | None = None
        self.mode = wandb_mode(config.mode)
        self._patience = patience
        self._answer_within = answer_within
        self._longest_upload = longest_upload
        self._notes: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._failed_kinds: set[str] = set()
        self._stages: set[str] = set()
        self._artifacts: list[Path] = []
        self._uploads: list[Any] = []
        self._outcome: Outcome = "finished"
        self._jobs: queue.Queue[tuple[str, Callable[[Any], None]] | None] = queue.Queue(max_waiting)
        shared: RunContext | None = None
        try:
            shared = None if context is None else read_context(context)
        except ConfigError as error:
            context = None
            self._notes.put(f"this run is shared with no other process: {error}")
        self._beginning = Beginning(
            config=config,
            directory=directory,
            group=group,
            name=name,
            run_config=run_config,
            context=context,
            shared=shared,
            join=join,
        )
        self._begun = threading.Event()
        self._asked = time.monotonic()
        self._thread = threading.Thread(target=self._work, name="wandb", daemon=True)
        if self.mode == "online" and not login_found():
            # wandb would ask for a key on the terminal and wait.
            self._give_up("no login was found; run `wandb login` or set WANDB_MODE=offline")
        elif self.mode != "disabled":
            self._thread.start()
        if self._beginning.joins(self.mode):
            self.config(run_config)
            self.tags(config.tags)

    def scalars(self, step: int, values: Mapping[str, float], stage: str) -> None:
        """Queue one record under `training/stage/`, with `training/stage/step` as its axis."""
        prefix = f"training/{stage}"
        record = {f"{prefix}/{name}": float(value) for name, value in values.items()} | {f"{prefix}/step": step}

        def log(run: Any) -> None:
            if stage not in self._stages:
                run.define_metric(f"{prefix}/step")
                run.define_metric(f"{prefix}/*", step_metric=f"{prefix}/step")
                self._stages.add(stage)
            # Never with step=: wandb drops records whose step does not grow, as after a resume.
            run.log(record)

        self._submit("scalars", log)

    def summary(self, values: Mapping[str, Any]) -> None:
        """Queue numbers of the run's overview."""
        self._submit("summary", lambda run: run.summary.update(flat(values)))

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Cell]]) -> None:
        """Queue a table."""

        def log(run: Any) -> None:
            import wandb

            run.log({name: wandb.Table(columns=list(columns), data=[list(row) for row in rows])})

        self._submit("table", log)

    def image(self, name: str, path: Path) -> None:
        """Queue a picture file."""

        def log(run: Any) -> None:
            import wandb

            run.log({name: wandb.Image(str(path))})

        self._submit("image", log)

    def file(self, path: Path) -> None:
        """Queue the upload of a file; offline it is linked, and sent as it is when `wandb sync` runs."""
        whole = path.resolve()
        self._submit("file", lambda run: run.save(str(whole), base_path=str(whole.parent), policy="now"))

    def artifact(self, path: Path, name: str, *, kind: str, labels: Sequence[str], about: Mapping[str, Any]) -> None:
        """Queue a folder as a version of the artifact `name`; it is not copied, and must stay until it was sent."""

        def log(run: Any) -> None:
            import wandb

            artifact = wandb.Artifact(name, type=kind, metadata=dict(about))
            artifact.add_dir(str(path), policy="immutable")
            # It goes on by itself; the end of the run waits for it.
            self._uploads.append(run.log_artifact(artifact, aliases=list(labels)))

        self._artifacts.append(path)
        self._submit("artifact", log)

    def config(self, values: Mapping[str, Any]) -> None:
        """Queue settings; one of the same name is replaced."""
        self._submit("config", lambda run: run.config.update(dict(values), allow_val_change=True))

    def tags(self, names: Sequence[str]) -> None:
        """Queue tags beside those that the run has."""

        def add(run: Any) -> None:
            run.tags = tuple(dict.fromkeys((*(run.tags or ()), *names)))

        self._submit("tags", add)

    def alert(self, title: str, text: str, level: Level = "INFO") -> None:
        """Queue a notification."""
        self._submit("alert", lambda run: run.alert(title, text, level=level))

    def close(self, outcome: Outcome = "finished") -> None:
        """Finish the run, or give it up when that takes too long."""
        self._outcome = outcome
        if self._thread.is_alive():
            with contextlib.suppress(queue.Full):
                self._jobs.put_nowait(None)
            self._wait()
            if self._thread.is_alive():
                self._give_up("it did not finish in time; `wandb sync` sends the rest")
        self._tell()

    def delivered(self, *kinds: str) -> bool:
        """Whether a run began and ended, and nothing of these kinds was left out; offline it waits for `wandb sync`."""
        return self._begun.is_set() and self.problem is None and self._failed_kinds.isdisjoint(kinds)

    def _wait(self) -> None:
        """Until the thread has ended, or its time is over, which begins with the run."""
        begin = told = time.monotonic()
        while self._thread.is_alive():
            now = time.monotonic()
            # Also an import of wandb and an offline run take their time.
            answer = self._asked + self._answer_within + 2 * self._patience - now
            if self.mode == "online" and not self._begun.is_set() and answer > 0:
                if now - told > self._patience:
                    told = math.inf
                    self._notes.put(f"no answer of W&B yet; waiting for it up to {answer:.0f} seconds more")
                    self._tell()
                begin = now
            elif now - begin > 2 * self._patience + self._upload_seconds():
                return
            self._thread.join(0.05)

    def _submit(self, kind: str, job: Callable[[Any], None]) -> None:
        if self._thread.is_alive() and self.problem is None:
            try:
                self._jobs.put_nowait((kind, job))
            except queue.Full:
                self._give_up(f"it hangs: {self._jobs.maxsize} records are waiting")
        self._tell()

    def _tell(self) -> None:
        """Warn of what has happened, in the thread of the caller."""
        while not self._notes.empty():
            warnings.warn(f"wandb: {self._notes.get()} (the run directory has it all)", stacklevel=3)

    def _give_up(self, reason: str) -> None:
        if self.problem is None:
            self.problem = reason
            self._notes.put(f"off for the rest of this run: {reason}")

    def _upload_seconds(self) -> float:
        """What the artifacts may take that are queued or on their way; offline they only lie there."""
        if self.mode != "online":
            return 0.0
        return min(sum(map(folder_size, self._artifacts)) / _BYTES_PER_SECOND, self._longest_upload)

    def _work(self) -> None:
        try:
            run, self.mode = begin(
                self._beginning,
                self.mode,
                answer_within=self._answer_within,
                finish_within=self._patience,
                tell=self._notes.put,
            )
        except (Exception, SystemExit) as error:
            self._give_up(described(error))
            return
        self._begun.set()
        failures = 0
        while (entry := self._jobs.get()) is not None:
            if self.problem is not None:
                continue
            kind, job = entry
            try:
                job(run)
                failures = 0
            except (Exception, SystemExit) as error:
                failures += 1
                self._left_out(kind, error)
                if failures == _FAILURES_IN_A_ROW:
                    self._give_up(f"{failures} operations in a row failed, the last one with {described(error)}")
        try:
            self._finish(run)
        except (Exception, SystemExit) as error:
            self._give_up(f"its end failed with {described(error)}; `wandb sync` sends what is missing")

    def _finish(self, run: Any) -> None:
        until = time.monotonic() + self._patience + self._upload_seconds()
        for upload in self._uploads if self.mode == "online" and self.problem is None else ():
            try:
                upload.wait(timeout=max(1, math.ceil(until - time.monotonic())))
            except Exception as error:
                self._left_out("artifact", error)
        end(run, self._outcome)

    def _left_out(self, kind: str, error: BaseException) -> None:
        if kind not in self._failed_kinds:
            self._failed_kinds.add(kind)
            self._notes.put(f"`{kind}` failed and is left out, told this once: {described(error)}")
