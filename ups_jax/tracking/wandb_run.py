"""How a process begins and ends its wandb run: under which id, in whose group, offline where W&B does not answer."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ups_jax.config import WandbConfig
from ups_jax.errors import Stopped, UserError
from ups_jax.tracking.context import RunContext, write_context
from ups_jax.tracking.writer import Outcome

_EXIT_CODES: Mapping[Outcome, int] = {"finished": 0, "stopped": Stopped.exit_code, "failed": 1}


@dataclass(frozen=True, kw_only=True)
class Beginning:
    """What a process asks wandb for, in a mode that may turn from online to offline.

    `shared` is the run of the pipeline, read from the file `context`. Online, whoever may (`join`) goes on with it by
    its id; wandb cannot go on with an offline run, so that offline each process is one more run of the shared group.
    Every other run has an id of its own that no other start has: WANDB_RUN_ID and WANDB_RESUME, which would make all
    starts one run, are overruled (inside of a sweep it is W&B that gives the id). Who does not join leads: its run is
    written to `context` for those who come later, but an offline one never in place of an online one.
    """

    config: WandbConfig
    directory: Path
    group: str
    name: str
    run_config: Mapping[str, Any]
    context: Path | None
    shared: RunContext | None
    join: bool

    def joins(self, mode: str) -> bool:
        """Whether this process goes on with the shared run."""
        return self.shared is not None and self.join and mode == self.shared.mode == "online"

    def leads(self, mode: str) -> bool:
        """Whether later processes should find this run."""
        if self.context is None or self.joins(mode):
            return False
        return self.shared is None or mode == "online" or (not self.join and self.shared.mode != "online")

    def arguments(self, mode: str) -> dict[str, Any]:
        """The arguments of `wandb.init`."""
        shared = self.shared
        arguments = {
            "project": self.config.project if shared is None else shared.project,
            "entity": self.config.entity if shared is None else shared.entity,
            "group": self.group if shared is None else shared.group,
            "dir": str(self.directory),
            "mode": mode,
            "reinit": "create_new",
        }
        if shared is not None and self.joins(mode):
            return arguments | {"id": shared.run_id, "resume": "allow"}
        own = {"name": self.name, "tags": self.config.tags, "config": dict(self.run_config)}
        return arguments | own | {"id": secrets.token_hex(8), "resume": "never"}

    def announced(self, run: Any, mode: str) -> RunContext:
        """The begun run, for those who come later."""
        arguments, online = self.arguments(mode), mode == "online"
        return RunContext(
            run_id=run.id,
            project=arguments["project"],
            # Online wandb fills in the default entity of the login.
            entity=(run.entity if online else None) or arguments["entity"],
            group=arguments["group"],
            mode=mode,
            url=run.url if online else None,
        )


def begin(
    beginning: Beginning, mode: str, *, answer_within: float, finish_within: float, tell: Callable[[str], None]
) -> tuple[Any, str]:
    """The run and the mode that it is in: offline also where an online one could not be had, which `tell` is told.

    W&B has `answer_within` seconds for its first answer; `finish_within` bounds what the run's end waits for.
    """
    # Here, because importing it takes a second and may fail like everything else of it.
    import wandb

    settings = wandb.Settings(
        silent=True,
        console="off",
        init_timeout=answer_within,
        finish_timeout=finish_within,
        finish_timeout_raises=True,
    )
    # Of the process too: what is said before a run exists ignores the settings of the run.
    wandb.setup(wandb.Settings(silent=True))
    try:
        run = wandb.init(**beginning.arguments(mode), settings=settings)
    except (Exception, SystemExit) as error:
        if mode != "online":
            raise
        tell(
            f"no online run could be had ({described(error)}); it is kept in {beginning.directory / 'wandb'}, "
            "for `wandb sync`"
        )
        mode = "offline"
        run = wandb.init(**beginning.arguments(mode), settings=settings)
    if beginning.context is not None and beginning.leads(mode):
        try:
            write_context(beginning.context, beginning.announced(run, mode))
        except UserError as error:
            tell(f"later processes cannot join this run: {error}")
    return run, mode


def end(run: Any, outcome: Outcome) -> None:
    """Finish the run; TimeoutError where what is left of it could not be sent in time."""
    if outcome == "stopped":
        # W&B shows a run as preempted that is marked so and exits with another code than 0.
        run.mark_preempting()
    run.finish(exit_code=_EXIT_CODES[outcome])


def described(error: BaseException) -> str:
    """An error in one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"
