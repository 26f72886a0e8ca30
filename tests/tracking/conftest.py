"""Tests of the writers see no login, no mode and no pipeline of the person who runs them."""

from __future__ import annotations

from pathlib import Path

import pytest

NAMES = (
    "WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE", "WANDB_MODE", "WANDB_BASE_URL", "WANDB_CONTEXT_FILE", "WANDB_RUN_ID",
    "WANDB_RESUME", "WANDB_SWEEP_ID",
)  # fmt: skip


@pytest.fixture(autouse=True)
def no_login(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
