"""Start and end of a process's W&B run: login, id, group, and the file through which several processes share one run.

The run falls back to offline mode if W&B does not answer.
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
# Environment variable with the path of the context file; the pipeline sets it for every process that it starts.
CONTEXT_VARIABLE = "WANDB_CONTEXT_FILE"


@dataclass(frozen=True, kw_only=True)
class RunSpec:
    """The W&B run that a process starts or joins.

    Online, a process with `join` resumes the shared run by its id. W&B cannot resume an offline run, so offline every
    process starts another run in the shared group. A new run gets a random id. It overrides WANDB_RUN_ID and
    WANDB_RESUME, which would merge all starts into one run; in a sweep, W&B sets the id.

    Attributes:
        config: W&B settings of the configuration.
        directory: Folder that gets the `wandb` folder.
        group: Group of a new run.
        name: Name of a new run.
        run_config: Configuration to log with a new run.
        context_file: File that shares a run between processes, or None.
        shared_run: The run that `context_file` describes, or None if there is none yet.
        join: Whether this process may join the shared run.
    """

    config: WandbConfig
    directory: Path
    group: str
    name: str
    run_config: Mapping[str, Any]
    context_file: Path | None
    shared_run: RunContext | None
    join: bool

    def joins(self, mode: str) -> bool:
        """Return whether this process joins the shared run."""
        return self.shared_run is not None and self.join and mode == self.shared_run.mode == "online"

    def writes_context(self, mode: str) -> bool:
        """Return whether later processes should join this process's run.

        An offline run never replaces an online one in the context file.
        """
        if self.context_file is None or self.joins(mode):
            return False
        return self.shared_run is None or mode == "online" or (not self.join and self.shared_run.mode != "online")

    def arguments(self, mode: str) -> dict[str, Any]:
        """Return the arguments of `wandb.init`."""
        shared = self.shared_run
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
        new_run = {"name": self.name, "tags": self.config.tags, "config": dict(self.run_config)}
        return arguments | new_run | {"id": secrets.token_hex(8), "resume": "never"}

    def to_context(self, run: Any, mode: str) -> RunContext:
        """Return the description of the started run that later processes join it by."""
        arguments, online = self.arguments(mode), mode == "online"
        return RunContext(
            run_id=run.id,
            project=arguments["project"],
            # Online, wandb fills in the default entity of the login.
            entity=(run.entity if online else None) or arguments["entity"],
            group=arguments["group"],
            mode=mode,
            url=run.url if online else None,
        )


def init_run(
    spec: RunSpec, mode: str, *, init_timeout: float, finish_timeout: float, warn: Callable[[str], None]
) -> tuple[Any, str]:
    """Start or join a W&B run and return it with its mode.

    If an online run cannot be started, an offline run is started instead.

    Args:
        spec: The run to start or join.
        mode: `online` or `offline`.
        init_timeout: Seconds to wait for the first answer of W&B.
        finish_timeout: Seconds to wait when the run is finished.
        warn: Called with a message if the run is offline instead of online, or if the context file cannot be written.
    """
    # Not at module level: the import takes a second, and a failing import must be handled like any other W&B error.
    import wandb

    settings = wandb.Settings(
        silent=True, console="off", init_timeout=init_timeout, finish_timeout=finish_timeout, finish_timeout_raises=True
    )
    # Also for the process: messages that wandb prints before a run exists ignore the settings of the run.
    wandb.setup(wandb.Settings(silent=True))
    try:
        run = wandb.init(**spec.arguments(mode), settings=settings)
    except (Exception, SystemExit) as error:
        if mode != "online":
            raise
        warn(
            f"cannot start an online run ({describe_error(error)}); the run is written to {spec.directory / 'wandb'}, "
            "upload it with `wandb sync`"
        )
        mode = "offline"
        run = wandb.init(**spec.arguments(mode), settings=settings)
    if spec.context_file is not None and spec.writes_context(mode):
        try:
            write_context(spec.context_file, spec.to_context(run, mode))
        except UserError as error:
            warn(f"later processes cannot join this run: {error}")
    return run, mode


def finish_run(run: Any, outcome: Outcome) -> None:
    """Finish a W&B run with the exit code of its outcome; wandb raises TimeoutError if it cannot send all data in time.

    Args:
        run: The run, as `wandb.init` returned it.
        outcome: How the run ended; W&B shows a stopped run as preempted.
    """
    if outcome == "stopped":
        # W&B shows a run as preempted if it is marked so and its exit code is not 0.
        run.mark_preempting()
    run.finish(exit_code=_EXIT_CODES[outcome])


def describe_error(error: BaseException) -> str:
    """Return the class and message of an error on one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def wandb_mode(configured: str) -> str:
    """Return `online`, `offline` or `disabled`: the environment variable WANDB_MODE, else the configured mode.

    Args:
        configured: The mode of the configuration; `auto` is online if a login exists and offline otherwise.
    """
    mode = os.environ.get("WANDB_MODE") or configured
    if mode == "auto":
        return "online" if has_login() else "offline"
    return mode


def has_login() -> bool:
    """Return whether wandb can log in without a prompt: by a key or token in the environment or a netrc entry."""
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
    """A W&B run that other processes can join, as stored in the context file.

    Attributes:
        run_id: W&B id of the run.
        project: W&B project.
        entity: W&B entity, or None for the default of the login.
        group: Group of the run.
        mode: `online` or `offline`, the mode of the process that started the run.
        url: Page of an online run, else None.
    """

    run_id: str
    project: str
    entity: str | None
    group: str
    mode: str
    url: str | None = None


_ADAPTER = TypeAdapter(RunContext)


def context_path() -> Path | None:
    """Return the context file that the environment variable WANDB_CONTEXT_FILE names, or None if it is not set."""
    name = os.environ.get(CONTEXT_VARIABLE)
    return Path(name) if name else None


@contextlib.contextmanager
def share_run(folder: Path) -> Iterator[None]:
    """Let all writers that are opened in a `with` block share one W&B run.

    Args:
        folder: Folder for the context file. It is not used if the environment already names a context file.
    """
    if context_path() is not None:
        yield
        return
    os.environ[CONTEXT_VARIABLE] = str(folder / "wandb-context.json")
    try:
        yield
    finally:
        del os.environ[CONTEXT_VARIABLE]


def read_context(path: Path) -> RunContext | None:
    """Return the run that a context file describes, or None if the file does not exist yet.

    Raises:
        ConfigError: If the file cannot be read or is not valid.
    """
    try:
        return _ADAPTER.validate_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValidationError) as error:
        reason = error.errors()[0]["msg"] if isinstance(error, ValidationError) else error.strerror
        raise ConfigError(
            f"{path}: is not a valid W&B context file ({reason}); delete it, or set {CONTEXT_VARIABLE} to another file"
        ) from None


def write_context(path: Path, context: RunContext) -> None:
    """Write the context file atomically, so that later processes can join the run.

    Raises:
        StorageError: If the file cannot be written.
    """
    write_atomically(path, json.dumps(asdict(context), indent=2) + "\n")
