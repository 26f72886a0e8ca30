"""How tests run the project's scripts: as a user would, in processes of their own."""

from __future__ import annotations

import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CONFIGS = ROOT / "configs"


def command(name: str, *arguments: str) -> list[str]:
    """The command line of a script."""
    return [sys.executable, str(ROOT / "scripts" / name), *map(str, arguments)]


def quiet() -> dict[str, str]:
    """The environment without a terminal's width or a W&B login."""
    return os.environ | {"COLUMNS": "200", "WANDB_MODE": "offline"}
