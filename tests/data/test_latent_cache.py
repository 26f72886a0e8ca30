"""A folder of latents: what it holds comes back as it was, belongs to its key, and is whole or refused."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ups_jax.core.commands import command
from ups_jax.core.errors import ConfigError, DataError
from ups_jax.data import windows
from ups_jax.data.latent_cache.cache import LatentCache, LatentWindows
from ups_jax.data.latent_cache.manifest import MANIFEST, LatentKey, LatentManifest, read_manifest, weights_digest
from ups_jax.data.latent_cache.writer import write_latents
from ups_jax.data.shard_folder import UNFINISHED

KEY = LatentKey(weights="w", encoder={"dim": 3}, normaliser={"mean": [0.5]}, data="d", dtype="float32")
# Five trajectories of four latents of 2 x 3 tokens, the first of them of stored frame 2; two trajectories a shard.
PLAN = LatentManifest(key=KEY, task="a", trajectories=5, frames=4, first=2, tokens=(2, 3), width=7, carried=2,
                shard_trajectories=2)  # fmt: skip
LATENTS = np.random.default_rng(0).normal(size=(5, *PLAN.trajectory_shape)).astype(np.float32)
ROOM = 2.0**20


def plan_of(dtype: str) -> LatentManifest:
    return replace(PLAN, key=replace(KEY, dtype=dtype))


def bfloat16_bits(values: np.ndarray) -> np.ndarray:
    """Rounded to the nearest, ties to even, in integers alone."""
    bits = values.view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def write(out: Path, plan: LatentManifest = PLAN, values: np.ndarray = LATENTS, **options: bool) -> bool:
    return write_latents(out, plan, lambda ids: values[ids], **options)


@pytest.mark.parametrize("room", [0.0, ROOM])
@pytest.mark.parametrize(
    ("dtype", "stored", "tolerance"),
    [("float32", LATENTS, 0.0), ("float16", LATENTS.astype(np.float16), 2**-11),
     ("bfloat16", bfloat16_bits(LATENTS), 2**-8)],
)  # fmt: skip
def test_what_was_written_is_read_by_trajectory_and_stored_frame(
    tmp_path: Path, dtype: str, stored: np.ndarray, tolerance: float, room: float
) -> None:
    assert write(tmp_path, plan_of(dtype), stored)
    cache = LatentCache(tmp_path, room)
    assert cache.in_memory == (room > 0)
    ids, frames = np.array([4, 0, 3]), np.array([[2, 5], [3, 3], [5, 4]])
    expected = LATENTS[ids[:, None], frames - 2]
    for width in (None, 2):
        actual = cache.read(ids, frames, width)
        assert actual.dtype == np.float32
        np.testing.assert_allclose(actual, expected[..., :width], rtol=tolerance, atol=1e-7 * (tolerance > 0))
    assert tolerance == 0 or (actual != expected[..., :2]).any()


def test_each_part_gives_another_key_and_is_named() -> None:
    others = {"weights": "v", "encoder": {"dim": 4}, "normaliser": {"mean": [0.6]}, "data": "e", "dtype": "float16",
              "version": 0}  # fmt: skip
    names = ["encoder weights", "encoder config", "normaliser", "data or split", "dtype", "format"]
    changed = [replace(KEY, **{part: value}) for part, value in others.items()]
    assert [other.differences(KEY) for other in changed] == [(name,) for name in names]
    assert len({KEY.digest, *(other.digest for other in changed)}) == 7 and len(KEY.digest) == 64


def test_the_digest_of_weights_sees_path_shape_type_and_every_bit() -> None:
    base = np.arange(6, dtype=np.float32)
    moved = base.copy()
    moved[3] = np.nextafter(moved[3], np.float32(9))
    trees = [{"a": base}, {"b": base}, {"a": base.reshape(2, 3)}, {"a": base.view(np.int32)}, {"a": moved},
             {"a": base, "b": base}]  # fmt: skip
    assert len({weights_digest(tree) for tree in trees}) == len(trees)
    assert weights_digest({"a": base, "b": moved}) == weights_digest({"b": moved, "a": base})


def test_an_interrupted_encoding_goes_on_and_ends_in_the_same_bytes(tmp_path: Path) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    write(whole)
    asked: list[list[int]] = []

    def until(last: int):
        def encode(ids: np.ndarray) -> np.ndarray:
            if ids[-1] > last:
                raise KeyboardInterrupt
            asked.append(ids.tolist())
            return LATENTS[ids]

        return encode

    with pytest.raises(KeyboardInterrupt):
        write_latents(broken, PLAN, until(2))
    with pytest.raises(DataError, match=broken.name):
        LatentCache(broken)
    # Trajectory 2 was done, in a shard that was not.
    asked.clear()
    assert write_latents(broken, PLAN, until(9))
    assert asked == [[2], [3], [4]]
    files = sorted(item.name for item in whole.iterdir())
    assert files == sorted(item.name for item in broken.iterdir()) and UNFINISHED not in files
    assert all((whole / name).read_bytes() == (broken / name).read_bytes() for name in files if name != ".lock")


def test_a_shard_that_was_damaged_meanwhile_is_made_again(tmp_path: Path) -> None:
    def encode(ids: np.ndarray) -> np.ndarray:
        if ids[-1] > 3:
            raise KeyboardInterrupt
        return LATENTS[ids]

    with pytest.raises(KeyboardInterrupt):
        write_latents(tmp_path, PLAN, encode)
    damage(tmp_path / "latents-00001-of-00003.npy")
    assert write(tmp_path)
    np.testing.assert_array_equal(LatentCache(tmp_path).read(np.arange(5), np.tile(np.arange(2, 6), (5, 1))), LATENTS)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda manifest: {"shards": manifest.shards[:-1]}, r"\[2, 2\].*5"),
        (lambda manifest: {"shard_trajectories": 0}, "shards"),
        (
            lambda manifest: {"shards": tuple(replace(shard, file="../stolen.npy") for shard in manifest.shards)},
            r"`shards\.file`.*'\.\./stolen\.npy'",
        ),
    ],
)
def test_a_manifest_that_does_not_add_up_or_leads_out_is_refused(tmp_path: Path, change: Any, said: str) -> None:
    write(tmp_path)
    manifest = read_manifest(tmp_path)
    (tmp_path / MANIFEST).write_text(replace(manifest, **change(manifest)).text)
    with pytest.raises(DataError, match=said):
        LatentCache(tmp_path)


def damage(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-3] ^= 1
    file.write_bytes(content)


def test_the_same_again_is_there_already_and_another_key_is_refused_by_name(tmp_path: Path) -> None:
    write(tmp_path)
    before = sorted(item.name for item in tmp_path.iterdir())
    # As one leaves it that was killed with the manifest written.
    (tmp_path / UNFINISHED).write_text((tmp_path / MANIFEST).read_text())
    assert not write(tmp_path)
    assert sorted(item.name for item in tmp_path.iterdir()) == before
    with pytest.raises(DataError, match=r"dtype.*--overwrite"):
        write(tmp_path, plan_of("float16"), LATENTS.astype(np.float16))
    other = replace(PLAN, key=replace(KEY, weights="v", data="e"))
    with pytest.raises(DataError, match="encoder weights, data or split"):
        write(tmp_path, other)
    assert write(tmp_path, other, 2 * LATENTS, overwrite=True)
    assert LatentCache(tmp_path).manifest.key == other.key


def test_what_is_broken_is_one_line_that_names_it(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=rf"latents\.json.*{command('encode')}"):
        LatentCache(tmp_path)
    write(tmp_path)
    text = (tmp_path / MANIFEST).read_text()
    for broken in (text.replace('"first": 2', '"first": 1'), text[:-9]):
        (tmp_path / MANIFEST).write_text(broken)
        with pytest.raises(DataError, match=MANIFEST) as caught:
            LatentCache(tmp_path)
        assert "\n" not in str(caught.value)
    (tmp_path / MANIFEST).write_text(text)
    damage(tmp_path / "latents-00002-of-00003.npy")
    with pytest.raises(DataError, match=r"latents-00002-of-00003\.npy"):
        LatentCache(tmp_path)
    with pytest.raises(DataError, match=r"latents-0000\d-of-00003\.npy"):
        write(tmp_path)
    (tmp_path / "latents-00002-of-00003.npy").unlink()
    with pytest.raises(DataError, match=r"latents-0000\d-of-00003\.npy"):
        LatentCache(tmp_path)


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("all of it")
    with pytest.raises(DataError, match=r"thesis\.tex"):
        write(tmp_path, overwrite=True)
    assert [item.name for item in tmp_path.iterdir()] == ["thesis.tex"]


def test_one_process_at_a_time_writes(tmp_path: Path) -> None:
    def encode(ids: np.ndarray) -> np.ndarray:
        write(tmp_path)
        return LATENTS[ids]

    with pytest.raises(ConfigError, match=str(os.getpid())):
        write_latents(tmp_path, PLAN, encode)


def test_windows_of_latents_are_those_of_the_drawing_rolled_by_whole_tokens(tmp_path: Path) -> None:
    write(tmp_path)
    latents = LatentWindows(cache=LatentCache(tmp_path), context=2, pushforward=1)
    of_fields = windows.WindowPlan(
        key=(1, 2), train_ids=np.array([0, 2, 4]), windows_per_trajectory=2, batch_size=4, offsets=np.arange(4) + 1,
        start_probabilities=np.full(2, 0.5), shape=(8, 12), roll_axes=(True, False), channels=3, symmetries=(),
    )  # fmt: skip
    plan = latents.adapt_plan(of_fields)
    drawn = [windows.draw_windows(plan, n) for n in range(20)]
    assert {int(shift) for draw in drawn for shift in draw.shifts[:, 0]} == {0, 1}
    assert all((draw.shifts[:, 1] == 0).all() for draw in drawn)
    # Patches that do not divide the axis are not equivariant to shifts.
    assert latents.adapt_plan(replace(of_fields, shape=(7, 12))).roll_axes == (False, False)
    draw = drawn[0]
    batch = latents.read_batch(draw)
    # The context's last frame and one that is given, then those that are scored; frame 2 has the first latent.
    for name, part, width in (("latents", slice(1, 3), 7), ("targets", slice(3, 4), 2)):
        plain = LATENTS[draw.ids[:, None], draw.frames[:, part] - 2][..., :width]
        rolled = [np.roll(row, shift, axis=1) for row, shift in zip(plain, draw.shifts[:, 0], strict=True)]
        np.testing.assert_array_equal(batch[name], rolled)
    halves = [latents.read_batch(draw.rows_of_host(index, 2))["latents"] for index in range(2)]
    np.testing.assert_array_equal(np.concatenate(halves), batch["latents"])


def test_the_manifest_says_what_it_holds(tmp_path: Path) -> None:
    write(tmp_path)
    content = json.loads((tmp_path / MANIFEST).read_text())
    assert content["key"]["weights"] == "w" and [shard["trajectories"] for shard in content["shards"]] == [2, 2, 1]
