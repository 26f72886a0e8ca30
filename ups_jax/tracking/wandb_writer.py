"""Weights & Biases beside the JSONL, in a thread of its own."""

from __future__ import annotations

import math
import queue
import threading
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ups_jax.config import WandbConfig
from ups_jax.tracking.context import RunContext, read_context, write_context
from ups_jax.tracking.wandb_login import login_found, wandb_mode
from ups_jax.tracking.writer import Cell, Level, Writer, flat

# Records that wait for a slow wandb; more of them means that it hangs.
_WAITING_RECORDS = 10_000
# The slowest upload that is waited for when a run ends.
_BYTES_PER_SECOND = 1e6


class WandbWriter(Writer):
    """One wandb run a started process, in the group of the run directory; off for good after its first problem.

    All of wandb happens in a thread of its own: a call here only queues, so that nothing wandb does (an exception, a
    hang, a dead network) reaches training. `close` waits at most about twice `patience` seconds, and a second for every
    megabyte of an artifact that goes online; what was not sent stays in `directory`/wandb for `wandb sync`. The first
    problem is kept in `problem` and warned of once.

    `context` is the file of a run that the processes of a pipeline share (`RunContext`): online, who finds one there
    joins it by its id; wandb cannot go on with an offline run, so that offline each process is one more run of the
    context's group. With `join=False`, as after a resume, whose steps the old run has seen, the process begins a run
    and is itself the one that later processes join. ConfigError where the file is damaged.
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
        patience: float = 5.0,
    ) -> None:
        self.problem: str | None = None
        self.mode = wandb_mode(config.mode)
        self._patience = patience
        self._allowance = 0.0
        self._told = False
        self._stages: set[str] = set()
        self._jobs: queue.Queue[Callable[[Any], None] | None] = queue.Queue(_WAITING_RECORDS)
        shared = None if context is None else read_context(context)
        online = self.mode == "online"
        self._joins = shared is not None and join and online and shared.mode == "online"
        # An offline process leaves the run of others to those who can join it.
        leads = not self._joins and (shared is None or online or (not join and shared.mode != "online"))
        self._announce = context if leads else None
        self._arguments: dict[str, Any] = {
            "project": config.project if shared is None else shared.project,
            "entity": config.entity if shared is None else shared.entity,
            "group": group if shared is None else shared.group,
            "dir": str(directory),
            "mode": self.mode,
            "reinit": "create_new",
        }
        if self._joins and shared is not None:
            self._arguments |= {"id": shared.run_id, "resume": "allow"}
        else:
            self._arguments |= {"name": name, "tags": config.tags, "config": dict(run_config)}
        self._thread = threading.Thread(target=self._work, name="wandb", daemon=True)
        if online and not login_found():
            # wandb would ask for a key on the terminal and wait.
            self.problem = "no login was found; run `wandb login` or set WANDB_MODE=offline"
        elif self.mode != "disabled":
            self._thread.start()
        if self._joins:
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

        self._submit(log)

    def summary(self, values: Mapping[str, Any]) -> None:
        """Queue numbers of the run's overview."""
        self._submit(lambda run: run.summary.update(flat(values)))

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Cell]]) -> None:
        """Queue a table."""

        def log(run: Any) -> None:
            import wandb

            run.log({name: wandb.Table(columns=list(columns), data=[list(row) for row in rows])})

        self._submit(log)

    def image(self, name: str, path: Path) -> None:
        """Queue a picture file."""

        def log(run: Any) -> None:
            import wandb

            run.log({name: wandb.Image(str(path))})

        self._submit(log)

    def file(self, path: Path) -> None:
        """Queue the upload of a file; offline it is linked, and sent as it is when `wandb sync` runs."""
        whole = path.resolve()
        self._submit(lambda run: run.save(str(whole), base_path=str(whole.parent), policy="now"))

    def artifact(self, path: Path, name: str, *, kind: str, labels: Sequence[str], about: Mapping[str, Any]) -> None:
        """Queue a folder as a version of the artifact `name`; it is not copied, and must stay until it was sent."""

        def log(run: Any) -> None:
            import wandb

            artifact = wandb.Artifact(name, type=kind, metadata=dict(about))
            artifact.add_dir(str(path), policy="immutable")
            logged = run.log_artifact(artifact, aliases=list(labels))
            if self.mode == "online":
                size = sum(item.stat().st_size for item in path.rglob("*") if item.is_file())
                allowed = math.ceil(self._patience + size / _BYTES_PER_SECOND)
                self._allowance += allowed
                logged.wait(timeout=allowed)

        self._submit(log)

    def config(self, values: Mapping[str, Any]) -> None:
        """Queue settings; one of the same name is replaced."""
        self._submit(lambda run: run.config.update(dict(values), allow_val_change=True))

    def tags(self, names: Sequence[str]) -> None:
        """Queue tags beside those that the run has."""

        def add(run: Any) -> None:
            run.tags = tuple(dict.fromkeys((*(run.tags or ()), *names)))

        self._submit(add)

    def alert(self, title: str, text: str, level: Level = "INFO") -> None:
        """Queue a notification."""
        self._submit(lambda run: run.alert(title, text, level=level))

    def close(self) -> None:
        """Finish the run, or give it up when that takes too long."""
        self._submit(None)
        if self._thread.ident is not None:
            begin = time.monotonic()
            # The thread grants itself more time while it uploads.
            while self._thread.is_alive() and time.monotonic() - begin < 2 * self._patience + self._allowance:
                self._thread.join(0.05)
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
            if self._announce is not None:
                write_context(self._announce, self._context(run))
            while (job := self._jobs.get()) is not None:
                job(run)
            run.finish()
        except (Exception, SystemExit) as error:
            self.problem = f"{type(error).__name__}: {' '.join(str(error).split())}"

    def _context(self, run: Any) -> RunContext:
        online = self.mode == "online"
        return RunContext(
            run_id=run.id,
            project=self._arguments["project"],
            # Online wandb fills in the default entity of the login.
            entity=(run.entity if online else None) or self._arguments["entity"],
            group=self._arguments["group"],
            mode=self.mode,
            url=run.url if online else None,
        )
