"""Where the numbers of a run go: one `Writer` protocol, JSONL as the truth, Weights & Biases beside it.

A failing disk stops training (`StorageError`); a failing wandb never does. Only process 0 of a run writes.
"""

from __future__ import annotations

import contextlib
import json
import math
import netrc
import os
import queue
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable
from urllib.parse import urlsplit

from ups_jax.config import WandbConfig
from ups_jax.errors import DataError, StorageError

# Records that wait for a slow wandb; more of them means that it hangs.
_WAITING_RECORDS = 10_000


@runtime_checkable
class Writer(Protocol):
    """Takes the numbers of a run."""

    def scalars(self, step: int, values: Mapping[str, float], stage: str) -> None:
        """One record: the metrics after `step` completed steps of `stage`, `epoch` among them."""

    def summary(self, values: Mapping[str, Any]) -> None:
        """Final numbers of the run; a later value of the same name replaces an earlier one."""

    def image(self, name: str, path: Path) -> None:
        """A picture of the run."""

    def close(self) -> None:
        """Write what is still waiting; nothing may follow."""


class JsonlWriter:
    """Appends one line a record to `path`; steps of a stage are strictly increasing, also after a resume.

    Summaries and images have files of their own in a run directory and are left out. Raises `StorageError` where the
    file cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with _storage(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
            self._replace(read_jsonl(path))

    def scalars(self, step: int, values: Mapping[str, float], stage: str) -> None:
        """Append and flush one record; a non-finite value becomes null. Raises `ValueError` at a repeated step."""
        if step <= self._last.get(stage, -1):
            raise ValueError(f"{self.path}: step {step} of stage {stage} follows step {self._last[stage]}")
        plain = {name: _finite(float(value)) for name, value in values.items()}
        with _storage(self.path):
            self._file.write(json.dumps({"stage": stage, "step": step, **plain}, allow_nan=False) + "\n")
            self._file.flush()
        self._last[stage] = step

    def truncate(self, stage: str, step: int) -> None:
        """Drop the records of `stage` after `step`, the step that a resume starts from. Atomic."""
        with _storage(self.path):
            self._file.close()
            self._replace(
                [record for record in read_jsonl(self.path) if record["stage"] != stage or record["step"] <= step]
            )

    def summary(self, values: Mapping[str, Any]) -> None:
        """Nothing: the evaluation JSON has them."""

    def image(self, name: str, path: Path) -> None:
        """Nothing: the picture is a file of the run already."""

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _replace(self, records: Sequence[Mapping[str, Any]]) -> None:
        """Rewrite the file without the half line that a killed process leaves, and open it for more."""
        partial = self.path.with_name(f".{self.path.name}.{os.getpid()}")
        with partial.open("w", encoding="utf-8") as file:
            file.writelines(json.dumps(record) + "\n" for record in records)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(self.path)
        self._last = {record["stage"]: record["step"] for record in records}
        self._file = self.path.open("a", encoding="utf-8")


class WandbWriter:
    """One wandb run a started process, in the group of the run directory; off for good after its first problem.

    All of wandb happens in a thread of its own: a call here only queues, so that nothing wandb does (an exception, a
    hang, a dead network) reaches training. `close` waits at most about twice `patience` seconds; what was not sent
    stays in `directory`/wandb for `wandb sync`. The first problem is kept in `problem` and warned of once.
    """

    def __init__(
        self,
        config: WandbConfig,
        *,
        directory: Path,
        group: str,
        name: str,
        run_config: Mapping[str, Any],
        patience: float = 5.0,
    ) -> None:
        self.problem: str | None = None
        self.mode = wandb_mode(config.mode)
        self._patience = patience
        self._told = False
        self._stages: set[str] = set()
        self._jobs: queue.Queue[Callable[[Any], None] | None] = queue.Queue(_WAITING_RECORDS)
        self._arguments: dict[str, Any] = {
            "project": config.project,
            "entity": config.entity,
            "tags": config.tags,
            "name": name,
            "group": group,
            "dir": str(directory),
            "config": dict(run_config),
            "mode": self.mode,
            "reinit": "create_new",
        }
        self._thread = threading.Thread(target=self._work, name="wandb", daemon=True)
        if self.mode == "online" and not login_found():
            # wandb would ask for a key on the terminal and wait.
            self.problem = "no login was found; run `wandb login` or set WANDB_MODE=offline"
        elif self.mode != "disabled":
            self._thread.start()

    def scalars(self, step: int, values: Mapping[str, float], stage: str) -> None:
        """Queue one record under `stage/`, with `stage/step` as its axis."""
        record = {f"{stage}/{name}": float(value) for name, value in values.items()} | {f"{stage}/step": step}

        def log(run: Any) -> None:
            if stage not in self._stages:
                run.define_metric(f"{stage}/step")
                run.define_metric(f"{stage}/*", step_metric=f"{stage}/step")
                self._stages.add(stage)
            # Never with step=: wandb drops records whose step does not grow, as after a resume.
            run.log(record)

        self._submit(log)

    def summary(self, values: Mapping[str, Any]) -> None:
        """Queue numbers of the run's overview."""
        self._submit(lambda run: run.summary.update(dict(values)))

    def image(self, name: str, path: Path) -> None:
        """Queue a picture file."""

        def log(run: Any) -> None:
            import wandb

            run.log({name: wandb.Image(str(path))})

        self._submit(log)

    def close(self) -> None:
        """Finish the run, or give it up when that takes too long."""
        self._submit(None)
        if self._thread.ident is not None:
            self._thread.join(2 * self._patience)
            if self._thread.is_alive():
                self.problem = self.problem or "it did not finish in time; `wandb sync` sends the rest"
        self._tell()

    def _submit(self, job: Callable[[Any], None] | None) -> None:
        if self._thread.is_alive() and self.problem is None:
            try:
                self._jobs.put_nowait(job)
            except queue.Full:
                self.problem = f"it hangs: {_WAITING_RECORDS} records are waiting"
        self._tell()

    def _tell(self) -> None:
        if self.problem is not None and not self._told:
            self._told = True
            warnings.warn(
                f"wandb is off for the rest of this run: {self.problem} (metrics.jsonl has it all)", stacklevel=3
            )

    def _work(self) -> None:
        try:
            # Here, because importing it takes a second and may fail like everything else of it.
            import wandb

            settings = wandb.Settings(
                silent=True, console="off", init_timeout=2 * self._patience, finish_timeout=self._patience
            )
            # Of the process too: what is said before a run exists ignores the settings of the run.
            wandb.setup(wandb.Settings(silent=True))
            run = wandb.init(**self._arguments, settings=settings)
            while (job := self._jobs.get()) is not None:
                job(run)
            run.finish()
        except (Exception, SystemExit) as error:
            self.problem = f"{type(error).__name__}: {' '.join(str(error).split())}"


class Tee:
    """Hands everything to several writers in order."""

    def __init__(self, writers: Sequence[Writer]) -> None:
        self.writers = tuple(writers)

    def scalars(self, step: int, values: Mapping[str, float], stage: str) -> None:
        """See `Writer`."""
        for writer in self.writers:
            writer.scalars(step, values, stage)

    def summary(self, values: Mapping[str, Any]) -> None:
        """See `Writer`."""
        for writer in self.writers:
            writer.summary(values)

    def image(self, name: str, path: Path) -> None:
        """See `Writer`."""
        for writer in self.writers:
            writer.image(name, path)

    def close(self) -> None:
        """Close every writer, also after one of them raised."""
        with contextlib.ExitStack() as stack:
            for writer in reversed(self.writers):
                stack.callback(writer.close)


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """The records of a metrics file without a torn last line. Raises `DataError` at a damaged line before it."""
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    records = []
    for number, line in enumerate(lines, 1):
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            if number < len(lines):
                raise DataError(f"{path}: line {number} is not JSON; delete that line") from None
    return records


def wandb_mode(configured: str) -> str:
    """online, offline or disabled: the environment's WANDB_MODE, else the configured mode, `auto` resolved."""
    mode = os.environ.get("WANDB_MODE") or configured
    if mode == "auto":
        return "online" if login_found() else "offline"
    return mode


def login_found() -> bool:
    """Whether wandb can log in without asking: a key or token in the environment, or an entry in the netrc file."""
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    host = urlsplit(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).netloc
    try:
        entries = netrc.netrc(os.environ.get("NETRC") or Path.home() / ".netrc")
    except (OSError, netrc.NetrcParseError):
        return False
    return entries.authenticators(host) is not None


@contextlib.contextmanager
def _storage(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StorageError(f"{path}: cannot be written ({error.strerror}); free space or give another folder") from None


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
