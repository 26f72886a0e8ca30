"""How a process begins and ends its W&B run: login, id, group, and the file by which several processes share one run.

A run is offline where W&B does not answer.
"""

from __future__ import annotations

import contextlib
import json
import netrc
import os
import secrets
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from pydantic import TypeAdapter, ValidationError

from ups_jax.config import WandbConfig
from ups_jax.core.errors import ConfigError, Stopped, UserError
from ups_jax.core.files import write_atomically
from ups_jax.tracking.writer import Outcome

_EXIT_CODES: Mapping[Outcome, int] = {"finished": 0, "stopped": Stopped.exit_code, "failed": 1}
# Names the file; the pipeline sets it for every process that it starts.
VARIABLE = "WANDB_CONTEXT_FILE"


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
        silent=True, console="off", init_timeout=answer_within, finish_timeout=finish_within, finish_timeout_raises=True
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


@dataclass(frozen=True, kw_only=True)
class RunContext:
    """A W&B run that others may join; `mode` is that of the process which began it, `url` is known online only."""

    run_id: str
    project: str
    entity: str | None
    group: str
    mode: str
    url: str | None = None


_ADAPTER = TypeAdapter(RunContext)


def context_path() -> Path | None:
    """The file that the environment names, None where it names none."""
    name = os.environ.get(VARIABLE)
    return Path(name) if name else None


@contextlib.contextmanager
def shared_in(folder: Path) -> Iterator[None]:
    """What is begun inside is one W&B run, by a file in `folder` where the environment names none."""
    if context_path() is not None:
        yield
        return
    os.environ[VARIABLE] = str(folder / "wandb-context.json")
    try:
        yield
    finally:
        del os.environ[VARIABLE]


def read_context(path: Path) -> RunContext | None:
    """The run that the file names, None where no process has begun one. ConfigError where it cannot be understood."""
    try:
        return _ADAPTER.validate_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValidationError) as error:
        reason = error.errors()[0]["msg"] if isinstance(error, ValidationError) else error.strerror
        raise ConfigError(
            f"{path}: is not the context of a W&B run ({reason}); delete it, or set {VARIABLE} to another file"
        ) from None


def write_context(path: Path, context: RunContext) -> None:
    """Tell the processes that come later; atomic. Raises `StorageError`."""
    write_atomically(path, json.dumps(asdict(context), indent=2) + "\n")
