"""Whether wandb works online here, found out without asking anybody."""

from __future__ import annotations

import netrc
import os
from pathlib import Path
from urllib.parse import urlsplit


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
