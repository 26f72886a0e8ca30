"""A sealed checkpoint knows every change to its files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from ups_jax.runs.checksums import complete_checksums, find_damage, write_checksums


@pytest.fixture
def sealed(tmp_path: Path) -> Path:
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "a").write_bytes(b"0123456789")
    (tmp_path / "meta").write_bytes(b"{}")
    complete_checksums(tmp_path)
    return tmp_path


def test_an_untouched_checkpoint_is_sound_and_keeps_its_seal(sealed: Path) -> None:
    assert find_damage(sealed) is None
    (sealed / "meta").write_bytes(b"[]")
    complete_checksums(sealed)
    assert find_damage(sealed) == "meta differs from its checksum"


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
    assert str(find_damage(sealed)).startswith("state/")


def test_what_the_commit_adds_is_sealed_once_it_is_there(tmp_path: Path) -> None:
    (tmp_path / "meta").write_bytes(b"{}")
    (tmp_path / "_CHECKPOINT_METADATA").write_bytes(b"not yet")
    write_checksums(tmp_path)
    (tmp_path / "_CHECKPOINT_METADATA").write_bytes(b"committed")
    (tmp_path / "commit_success.txt").write_bytes(b"yes")
    assert find_damage(tmp_path) is None
    complete_checksums(tmp_path)
    assert find_damage(tmp_path) is None
    (tmp_path / "_CHECKPOINT_METADATA").write_bytes(b"committee")
    assert find_damage(tmp_path) == "_CHECKPOINT_METADATA differs from its checksum"


@pytest.mark.parametrize("content", [b"{", b"\xff", b"[]", b"{}", b'{"meta": null}'])
def test_a_damaged_seal_is_seen_and_stays(sealed: Path, content: bytes) -> None:
    (sealed / "checksums.json").write_bytes(content)
    complete_checksums(sealed)
    assert find_damage(sealed) is not None
    assert (sealed / "checksums.json").read_bytes() == content


def test_what_a_kill_leaves_of_a_seal_is_no_damage(sealed: Path) -> None:
    (sealed / ".checksums.json.abcdefgh.tmp").write_text("{")
    assert find_damage(sealed) is None


def test_a_checkpoint_without_a_seal_is_not_judged(tmp_path: Path) -> None:
    (tmp_path / "state").write_bytes(b"x")
    assert find_damage(tmp_path) is None
