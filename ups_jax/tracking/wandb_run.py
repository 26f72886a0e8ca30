"""Start and end of the W&B run of a process, which is offline if W&B does not answer.

The processes of a pipeline share one W&B run: the first one describes it in a JSON file, the context file, from which
the others read how to join it.
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
from typing import Any, NamedTuple
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

    Online, a process joins the shared run by its id. W&B cannot resume an offline run; therefore offline each process
    starts a new run in the group of the shared run. A new run gets a random id, in place of WANDB_RUN_ID and
    WANDB_RESUME, with which all processes would write to one run; in a sweep, W&B sets the id.

    Attributes:
        config: W&B settings of the configuration.
        directory: Folder in which wandb creates its folder `wandb`.
        group: Group of a new run, unless there is a shared run.
        name: Name of a new run.
        run_config: Configuration to log with a new run.
        context_file: File that describes the shared run, or None if processes share no run.
        shared_run: The run that `context_file` describes, or None if the file does not exist yet.
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

    def joins_shared_run(self, mode: str) -> bool:
        """Return whether this process joins the shared run in this mode (`online` or `offline`)."""
        return self.shared_run is not None and self.join and mode == self.shared_run.mode == "online"

    def writes_context(self, mode: str) -> bool:
        """Return whether the context file shall describe the run of this process, so that later processes join the run.

        An offline run never replaces an online one in this file.
        """
        if self.context_file is None or self.joins_shared_run(mode):
            return False
        return self.shared_run is None or mode == "online" or (not self.join and self.shared_run.mode != "online")

    def init_arguments(self, mode: str) -> dict[str, Any]:
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
        if shared is not None and self.joins_shared_run(mode):
            return arguments | {"id": shared.run_id, "resume": "allow"}
        new_run = {"name": self.name, "tags": self.config.tags, "config": dict(self.run_config)}
        return arguments | new_run | {"id": secrets.token_hex(8), "resume": "never"}

    def run_context(self, run: Any, mode: str) -> RunContext:
        """Return the content of the context file for the started run, from which later processes join it."""
        arguments, online = self.init_arguments(mode), mode == "online"
        return RunContext(
            run_id=run.id,
            project=arguments["project"],
            # Online, wandb fills in the default entity of the login.
            entity=(run.entity if online else None) or arguments["entity"],
            group=arguments["group"],
            mode=mode,
            url=run.url if online else None,
        )


class StartedRun(NamedTuple):
    """A run from `wandb.init` and its mode, `online` or `offline`."""

    run: Any
    mode: str


def start_run(
    spec: RunSpec, mode: str, *, init_timeout: float, finish_timeout: float, warn: Callable[[str], None]
) -> StartedRun:
    """Start or join a W&B run; if this fails online, start an offline run.

    Args:
        mode: `online` or `offline`.
        init_timeout: Seconds to wait for the first answer of W&B.
        finish_timeout: Seconds that wandb may take to send the remaining data when the run is finished.
        warn: Receives a message if an online run is replaced by an offline one, or the context file cannot be written.
    """
    # Not at module level: the import takes a second, and a failing import must be handled like any other W&B error.
    import wandb

    settings = wandb.Settings(
        silent=True, console="off", init_timeout=init_timeout, finish_timeout=finish_timeout, finish_timeout_raises=True
    )
    # Also for the process: messages that wandb prints before a run exists ignore the settings of the run.
    wandb.setup(wandb.Settings(silent=True))
    try:
        run = wandb.init(**spec.init_arguments(mode), settings=settings)
    except (Exception, SystemExit) as error:
        if mode != "online":
            raise
        warn(
            f"cannot start an online run ({describe_error(error)}); the run is offline in {spec.directory / 'wandb'}; "
            "upload it with `wandb sync`"
        )
        mode = "offline"
        run = wandb.init(**spec.init_arguments(mode), settings=settings)
    if spec.context_file is not None and spec.writes_context(mode):
        try:
            write_context(spec.context_file, spec.run_context(run, mode))
        except UserError as error:
            warn(f"later processes start new W&B runs, because the description of this run cannot be written: {error}")
    return StartedRun(run, mode)


def finish_run(run: Any, outcome: Outcome) -> None:
    """Finish a W&B run with the exit code that belongs to its outcome; W&B shows a stopped run as preempted.

    Args:
        outcome: How the training or evaluation ended.

    Raises:
        TimeoutError: wandb could not send all data in time.
    """
    if outcome == "stopped":
        # W&B shows a run as preempted if it is marked so and its exit code is not 0.
        run.mark_preempting()
    run.finish(exit_code=_EXIT_CODES[outcome])


def describe_error(error: BaseException) -> str:
    """Return the class and message of an error on one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def wandb_mode(configured: str) -> str:
    """Return `online`, `offline` or `disabled`, from the environment variable WANDB_MODE or else the configuration.

    Args:
        configured: The mode of the configuration; `auto` is online if a login exists and offline otherwise.
    """
    mode = os.environ.get("WANDB_MODE") or configured
    if mode == "auto":
        return "online" if has_wandb_login() else "offline"
    return mode


def has_wandb_login() -> bool:
    """Return whether wandb can log in without a prompt, because the environment or netrc contains a key or token."""
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
    """The content of the context file, which describes a W&B run that other processes can join.

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


def wandb_context_path() -> Path | None:
    """Return the context file that the environment variable WANDB_CONTEXT_FILE names, or None if it is not set."""
    name = os.environ.get(CONTEXT_VARIABLE)
    return Path(name) if name else None


@contextlib.contextmanager
def share_wandb_run(folder: Path) -> Iterator[None]:
    """Make all writers that are opened in a `with` block share one W&B run.

    Args:
        folder: Folder for the context file, unless the environment variable WANDB_CONTEXT_FILE already names one.
    """
    if wandb_context_path() is not None:
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
        ConfigError: The file cannot be read or is not valid.
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
        StorageError: The file cannot be written.
    """
    write_atomically(path, json.dumps(asdict(context), indent=2) + "\n")
