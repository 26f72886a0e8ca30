"""A sealed checkpoint knows every change to its files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from ups_jax.training.checksums import fault, seal


@pytest.fixture
def sealed(tmp_path: Path) -> Path:
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "a").write_bytes(b"0123456789")
    (tmp_path / "meta").write_bytes(b"{}")
    seal(tmp_path)
    return tmp_path


def test_an_untouched_checkpoint_is_sound_and_keeps_its_seal(sealed: Path) -> None:
    assert fault(sealed) is None
    (sealed / "meta").write_bytes(b"[]")
    seal(sealed)
    assert fault(sealed) == "meta is not what was written"


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(b"01234"),
        lambda path: path.write_bytes(b"0123456788"),
        lambda path: path.unlink(),
        lambda path: (path.parent / "b").write_bytes(b"more"),
    ],
)
def test_every_damage_is_seen(sealed: Path, damage: Callable[[Path], object]) -> None:
    damage(sealed / "state" / "a")
    assert str(fault(sealed)).startswith("state/")


def test_a_checkpoint_without_a_seal_is_not_judged(tmp_path: Path) -> None:
    (tmp_path / "state").write_bytes(b"x")
    assert fault(tmp_path) is None
