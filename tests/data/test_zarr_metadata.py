"""A Zarr folder that names anything but numbers and plain codecs is refused before zarr reads a chunk of it."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import in_process

from ups_jax.core.errors import DataError
from ups_jax.data.sources import open_file
from ups_jax.data.sources.zarr import check_metadata

V2 = {"zarr_format": 2, "shape": [2, 2, 2], "chunks": [2, 2, 2], "dtype": "<f8", "fill_value": 0, "order": "C"}
V3 = {"zarr_format": 3, "node_type": "array", "shape": [2], "data_type": "float32"}
BLOSC = {"id": "blosc", "cname": "lz4", "clevel": 5, "shuffle": 1, "blocksize": 0}
BYTES = {"name": "bytes", "configuration": {"endian": "little"}}


class Payload:
    """Makes a folder when it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, (str(self.folder),)


def sharded(inner: Any) -> dict[str, Any]:
    return {"name": "sharding_indexed", "configuration": {"codecs": [BYTES, inner], "index_codecs": [BYTES, "crc32c"]}}


def write(folder: Path, name: str, content: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(content if isinstance(content, str) else json.dumps(content))
    return folder


@pytest.mark.parametrize("place", [{"filters": [{"id": "pickle"}]}, {"compressor": {"id": "pickle"}}])
@pytest.mark.parametrize("dtype", ["<f8", "|O"])
def test_a_pickle_in_a_zarr_file_is_refused_and_not_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], dtype: str, place: dict[str, Any]
) -> None:
    pytest.importorskip("zarr")
    group = write(tmp_path / "particles.zarr", ".zgroup", {"zarr_format": 2})
    write(group, ".zattrs", {"dt": 0.1})
    array = write(group / "positions", ".zarray", {**V2, "dtype": dtype, "filters": None, "compressor": None, **place})
    (array / "0.0.0").write_bytes(pickle.dumps(Payload(tmp_path / "unpickled")))
    assert in_process("inspect_data.py", group, "--no-picture") == 3
    captured = capsys.readouterr()
    assert (
        captured.err.count("\n") == 1 and f"{array / '.zarray'}: " in captured.err and "Traceback" not in captured.err
    )
    assert ("'pickle'" if dtype == "<f8" else "'|O'") in captured.err
    assert not (tmp_path / "unpickled").exists()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (".zarray", {**V2, "filters": [{"id": "delta", "dtype": "<f8"}, {"id": "pickle"}]}, "'pickle'"),
        (".zarray", {**V2, "filters": {"id": "pickle"}}, "'pickle'"),
        (".zarray", {**V2, "filters": None, "compressor": {"id": "json2"}}, "'json2'"),
        (".zarray", {**V2, "filters": [{"id": ["pickle"]}]}, "codec"),
        (".zarray", {**V2, "filters": ["pickle"]}, "'pickle'"),
        (".zarray", {**V2, "dtype": "|O"}, r"'\|O'"),
        (".zarray", {**V2, "dtype": [["a", "|O"]]}, "not of numbers"),
        (".zarray", {**V2, "dtype": "<U8"}, "not of numbers"),
        (".zarray", {**V2, "dtype": "<c16"}, "not of numbers"),
        ("zarr.json", {**V3, "codecs": [BYTES, {"name": "numcodecs.pickle"}]}, r"'numcodecs\.pickle'"),
        ("zarr.json", {**V3, "codecs": ["vlen-utf8"]}, "'vlen-utf8'"),
        ("zarr.json", {**V3, "codecs": [sharded({"name": "pickle"})]}, "'pickle'"),
        ("zarr.json", {**V3, "codecs": [sharded(sharded("pickle"))]}, "'pickle'"),
        ("zarr.json", {**V3, "codecs": None}, "codec"),
        ("zarr.json", {**V3, "data_type": "string", "codecs": [BYTES]}, "'string'"),
        ("zarr.json", {**V3, "data_type": {"name": "struct"}, "codecs": [BYTES]}, "not of numbers"),
        ("zarr.json", {**V3, "node_type": "other", "codecs": ["pickle"]}, "'pickle'"),
        ("zarr.json", {**V3, "codecs": [BYTES], "storage_transformers": [{"name": "x"}]}, "storage.transformers"),
        (
            "zarr.json",
            {"node_type": "group", "consolidated_metadata": {"metadata": {"a/b": {**V3, "codecs": ["pickle"]}}}},
            "`a/b`.*'pickle'",
        ),
        (".zmetadata", {"metadata": {"a/.zarray": {**V2, "filters": [{"id": "pickle"}]}}}, r"`a/\.zarray`"),
        (".zarray", "[]", "JSON"),
        (".zarray", "{", "JSON"),
        (".zarray", "[" * 200000, "JSON"),
    ],
)
def test_what_is_not_numbers_through_plain_codecs_is_told(
    tmp_path: Path, name: str, content: Any, message: str
) -> None:
    write(tmp_path / "group" / "array", name, content)
    with pytest.raises(DataError, match=message) as caught:
        check_metadata(tmp_path)
    assert f"array/{name}: " in str(caught.value) and "\n" not in str(caught.value) and len(str(caught.value)) < 500


def test_plain_codecs_and_groups_pass(tmp_path: Path) -> None:
    write(tmp_path, ".zgroup", {"zarr_format": 2})
    write(tmp_path / "a", ".zarray", {**V2, "filters": [{"id": "shuffle", "elementsize": 8}], "compressor": BLOSC})
    write(tmp_path / "b", ".zarray", {**V2, "dtype": "|b1", "filters": None, "compressor": {"id": "zlib", "level": 1}})
    write(tmp_path / "c", "zarr.json", {**V3, "codecs": ["bytes", {"name": "zstd", "configuration": {"level": 0}}]})
    write(tmp_path / "d", "zarr.json", {**V3, "data_type": "bool", "codecs": [sharded({"name": "blosc"})]})
    write(tmp_path / "e", "zarr.json", {"zarr_format": 3, "node_type": "group", "consolidated_metadata": None})
    write(tmp_path, ".zmetadata", {"metadata": {".zgroup": {}, ".zattrs": {"x": "pickle"}, "a/.zarray": V2}})
    check_metadata(tmp_path)


def test_what_lies_behind_links_is_looked_at_and_a_loop_of_links_ends(tmp_path: Path) -> None:
    write(tmp_path / "elsewhere", ".zarray", {**V2, "filters": [{"id": "pickle"}]})
    (tmp_path / "whole.zarr").mkdir()
    (tmp_path / "whole.zarr" / "positions").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(DataError, match="'pickle'"):
        check_metadata(tmp_path / "whole.zarr")
    (tmp_path / "loop.zarr").mkdir()
    (tmp_path / "loop.zarr" / "again").symlink_to(tmp_path / "loop.zarr")
    with pytest.raises(DataError, match="more than once"):
        check_metadata(tmp_path / "loop.zarr")


@pytest.mark.parametrize("zarr_format", [2, 3])
def test_what_zarr_writes_by_itself_passes(tmp_path: Path, zarr_format: Any) -> None:
    zarr = pytest.importorskip("zarr")
    root = zarr.open_group(str(tmp_path / "mine.zarr"), mode="w", zarr_format=zarr_format)
    for name, kind in (("a", "f4"), ("b", "f8"), ("c", "i8"), ("d", "u1"), ("e", "bool")):
        root.create_array(name, data=np.ones((4, 4), kind))
    if zarr_format == 3:
        root.create_array("f", data=np.ones((4, 4)), chunks=(2, 2), shards=(4, 4))
    check_metadata(tmp_path / "mine.zarr")


@pytest.mark.parametrize("wrong", [{"shape": "2"}, {"chunks": None}, {"shape": [10**13, 1, 1]}, {"fill_value": {}}, {}])
def test_a_zarr_file_of_nonsense_is_one_line(tmp_path: Path, wrong: dict[str, Any]) -> None:
    pytest.importorskip("zarr")
    group = write(tmp_path / "particles.zarr", ".zgroup", {"zarr_format": 2})
    array = write(group / "positions", ".zarray", {**V2, "filters": None, "compressor": None, **wrong})
    (array / "0.0.0").write_bytes(b"short")
    with pytest.raises(DataError, match=r"particles\.zarr") as caught:
        open_file(group, "transient")
    assert "\n" not in str(caught.value)
