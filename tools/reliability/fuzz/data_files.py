"""Fuzzed data: HDF5 in every layout, described arrays, shards, split files, and what is made of them."""

from __future__ import annotations

import contextlib
import functools
import io
import json
from collections.abc import Callable
from typing import Any

import h5py
import numpy as np
import yaml
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from fuzz import bases, mutation
from fuzz.case import Case
from ups_jax.data.sources import shards as manifest

_NAMES = st.sampled_from(
    [
        *bases.LAYOUTS,
        "data.hdf5",
        "x_beta.hdf5",
        "1D_CFD_EtaX_.h5",
        "2D_DarcyFlow_beta1e999_Train.hdf5",
        "a.yaml",
        "a.npz",
    ]
)
_ODD_ARRAYS: tuple[Callable[[], Any], ...] = (
    lambda: np.float32(1.0),
    lambda: np.zeros(0, np.float32),
    lambda: np.zeros((0, 5, 8), np.float32),
    lambda: np.zeros((4, 0, 8), np.float32),
    lambda: np.zeros((4, 1, 8), np.float32),
    lambda: np.zeros((4, 5, 1), np.float32),
    lambda: np.zeros((4, 5, 8), np.int16),
    lambda: np.full((4, 5, 8), 1e30, np.float32),
    lambda: np.zeros((2, 2, 2, 2, 2, 2, 2, 2), np.float32),
    lambda: np.zeros((4, 5, 8), np.complex64),
    lambda: np.arange(6, dtype=np.float64)[::-1].copy(),
    lambda: np.array([b"text", b"more"]),
    lambda: "a text",
    lambda: np.zeros(3, [("a", "f4"), ("b", "i8")]),
    lambda: h5py.Empty("f4"),
    lambda: np.full(6, np.nan),
    lambda: np.full(8, np.inf, np.float32),
    lambda: np.zeros(8, np.float16),
    lambda: np.array([True, False]),
)
_ODD_TEXTS = (
    "",
    "{",
    "a: 1e999",
    "a: " + "9" * 400,
    "sim: [1, {b: 2}]",
    "a: !!python/name:os.system",
    "- " * 3000,
    "\x00",
)


@functools.cache
def _layouts() -> dict[str, bytes]:
    return bases.layouts()


@functools.cache
def _points() -> dict[str, bytes]:
    return bases.points()


@functools.cache
def _folders() -> dict[str, dict[str, bytes]]:
    return bases.folders()


@st.composite
def hdf5(draw: mutation.Draw, files: Callable[[], dict[str, bytes]] = _layouts) -> tuple[str, bytes]:
    """A file's name and its bytes: of a sound one, changed as HDF5 or as bytes."""
    name = draw(st.sampled_from(list(files())))
    content = files()[name]
    if draw(st.booleans()):
        content = _rewritten(draw, content)
    if draw(st.integers(0, 2)) == 0:
        content = draw(mutation.content(content).filter(lambda changed: not _holds_hdf5(changed)))
    return draw(st.sampled_from([name] * 4) | _NAMES), content


def _holds_hdf5(data: bytes) -> bool:
    """Whether a heap of texts has an entry without a length, from which the HDF5 library itself never comes back."""
    start = data.find(b"GCOL")
    while start >= 0:
        end, at = min(start + _number(data, start + 8, 8), len(data)), start + 16
        while at + 16 <= end:
            index, size = _number(data, at, 2), _number(data, at + 8, 8)
            if size > len(data) or (index == 0 and size < 16):
                return True
            at += size if index == 0 else 16 + (size + 7) // 8 * 8
        start = data.find(b"GCOL", start + 4)
    return False


def _number(data: bytes, start: int, width: int) -> int:
    return int.from_bytes(data[start : start + width], "little")


def _rewritten(draw: mutation.Draw, content: bytes) -> bytes:
    """The file with some datasets, groups and attributes changed, by HDF5's own functions."""
    buffer = io.BytesIO(content)
    with h5py.File(buffer, "r+") as file:
        for _ in range(draw(st.integers(1, 3))):
            names: list[str] = []
            file.visit(names.append)
            name = draw(st.sampled_from(names or ["tensor"]))
            kind = draw(
                st.sampled_from(["drop", "odd", "odd", "shape", "values", "type", "link", "group", "note", "text"])
            )
            # Not every change of a changed file is one that HDF5 lets be made.
            with contextlib.suppress(OSError, ValueError, TypeError, KeyError, RuntimeError):
                _change(draw, file, name, kind)
    return buffer.getvalue()


def _change(draw: mutation.Draw, file: h5py.File, name: str, kind: str) -> None:
    item = file.get(name)
    if kind == "note":
        owner = file if draw(st.booleans()) or item is None else item
        key = draw(
            st.sampled_from([*owner.attrs, *file.attrs, "config", "n_spatial_dims", "boundary", "channels", "nu"])
        )
        owner.attrs[key] = draw(
            st.sampled_from([make() for make in _ODD_ARRAYS]) | st.sampled_from([1, -1, 2**40, 0.5])
        )
    elif kind == "text":
        (file if item is None else item).attrs["config"] = draw(st.sampled_from(_ODD_TEXTS))
    elif kind == "link":
        if item is not None:
            del file[name]
        target = draw(st.sampled_from(["/nowhere", "/", f"/{name}"]))
        file[name] = h5py.SoftLink(target) if draw(st.booleans()) else h5py.ExternalLink("other.hdf5", target)
    elif kind == "drop" or not isinstance(item, h5py.Dataset):
        if item is not None:
            del file[name]
    elif kind == "group":
        del file[name]
        file.create_group(name)
    elif kind == "odd":
        attributes = dict(item.attrs)
        del file[name]
        file[name] = draw(st.sampled_from(_ODD_ARRAYS))()
        file[name].attrs.update(attributes)
    else:
        _replace(draw, file, name, kind)


def _replace(draw: mutation.Draw, file: h5py.File, name: str, kind: str) -> None:
    item = file[name]
    if item.size is None or item.size > 10**6:
        return
    attributes, values = dict(item.attrs), item[()]
    if not isinstance(values, np.ndarray) or values.dtype.kind not in "fiu" or not values.size:
        return
    if kind == "shape":
        changes = [
            values[:1],
            values[:-1],
            values[..., :1],
            values[..., :-1],
            values[None],
            values.T,
            values.reshape(-1),
        ]
        values = draw(st.sampled_from(changes))
    elif kind == "type":
        values = values.astype(draw(st.sampled_from(["f2", "f4", "f8", ">f4", "i1", "i8", "u2"])), casting="unsafe")
    else:
        values = values.astype(np.float64)
        place = draw(st.integers(0, values.size - 1))
        values.reshape(-1)[place] = draw(st.sampled_from([np.nan, np.inf, -np.inf, 0.0, 1e30, -1e300, 1e-300, 5.0]))
    del file[name]
    if draw(st.integers(0, 9)) == 0:
        # What a file claims costs nothing where no chunk of it was written.
        shape = draw(st.sampled_from([(10**12,), (10**6, 10**6), (4, 10**9, 8), (10**9, 5, 8)]))
        file.create_dataset(name, shape, np.float32, chunks=tuple(min(size, 64) for size in shape))
    else:
        file[name] = values
    file[name].attrs.update(attributes)


@st.composite
def inspection(draw: mutation.Draw) -> Case:
    """`inspect_data.py` on a file."""
    name, content = draw(hdf5())
    arguments = (name, "--no-picture", *draw(st.sampled_from([(), (), ("--all",)])))
    return Case(target="inspection", script="inspect_data.py", arguments=arguments, files={name: content})


_FACTS = {
    "periodic": st.sampled_from([["x"], ["x", "y"], ["q"], []]),
    "conserved": st.sampled_from([["u"], ["density"], ["v", "u"], []]),
    "channels": st.sampled_from([["u"], ["u", "v"], ["density", "pressure", "Vx"], ["h"], [], ["u", "u"], [""]]),
    "coefficients": st.dictionaries(
        st.sampled_from(["nu", "beta", "eta", "k", "q"]), st.sampled_from(["linear", "log10"])
    ),
    "kind": st.sampled_from(["transient", "steady"]),
    "solution": st.sampled_from(["stored", "last_frame"]),
    "symmetries": st.sampled_from(
        [[{"reflect": ["x"], "negate": ["u"]}], [{"swap": ["x", "y"]}], [{}], [{"swap": ["x"]}]]
    ),
}


@st.composite
def opening(draw: mutation.Draw) -> Case:
    """`validate.py` on a configuration of a file and facts about it, some of which do not fit; at times with a split
    file."""
    name, content = draw(hdf5())
    task: dict[str, Any] = {"name": "mine", "path": draw(st.sampled_from([name] * 8 + [[name, name]]))}
    chosen = draw(st.sets(st.sampled_from(sorted(_FACTS)), max_size=3))
    task |= {key: draw(_FACTS[key]) for key in sorted(chosen)}
    data: dict[str, Any] = {"tasks": [task]}
    files: dict[str, bytes | None] = {name: content}
    stage = "steady_prior" if task.get("kind") == "steady" else "operator"
    if draw(st.integers(0, 3)) == 0:
        data["split"] = {"path": "split.json"}
        files["split.json"] = draw(split())
    files["c.yaml"] = yaml.safe_dump({"data": data, "stages": {stage: {"steps": 1}}}).encode()
    arguments = ("--config", "c.yaml", "--stage", stage)
    return Case(target="opening", script="validate.py", arguments=arguments, files=files)


@st.composite
def split(draw: mutation.Draw) -> bytes:
    """A split file."""
    indices = {"trajectories": 4, "train": [0, 2], "val": [1], "test": [3]}
    values = draw(st.sampled_from([indices, {"mine": indices}, indices | {"test": [3, 3]}, indices | {"val": [0]}]))
    if draw(st.booleans()):
        return json.dumps(draw(mutation.value(values))).encode()
    return mutation.utf8(draw(mutation.text(json.dumps(values))))


@st.composite
def described(draw: mutation.Draw) -> Case:
    """`inspect_data.py` on arrays that a description names."""
    suffix, packed = draw(st.sampled_from([(".npz", False), (".npz", True), (".npy", False), (".hdf5", False)]))
    content, text = bases.arrays(suffix, packed), bases.DESCRIPTION.replace(".npz", suffix)
    what = draw(st.sampled_from(["text", "values", "bytes", "both"]))
    if what in ("bytes", "both"):
        content = draw(mutation.content(content))
    if what in ("text", "both"):
        text = draw(mutation.text(text))
    if what == "values":
        text = yaml.safe_dump(draw(mutation.value(yaml.safe_load(text))), allow_unicode=True)
    files = {"d.yaml": mutation.utf8(text), f"mine{suffix}": content}
    return Case(target="described", script="inspect_data.py", arguments=("d.yaml", "--no-picture"), files=files)


@st.composite
def shards(draw: mutation.Draw) -> Case:
    """A folder of shards that is verified, inspected, or made to HDF5."""
    place = bases.shared()["shards"] / "shards"
    files: dict[str, bytes | None] = {}
    what = draw(st.sampled_from(["values", "values", "text", "record"]))
    said = (place / manifest.MANIFEST).read_text()
    if what == "record":
        (record,) = place.glob("data-*")
        files[f"shards/{record.name}"] = draw(mutation.content(record.read_bytes()))
    elif what == "text":
        files[f"shards/{manifest.MANIFEST}"] = mutation.utf8(draw(mutation.text(said)))
    else:
        values = draw(mutation.value(json.loads(said)))
        if draw(st.booleans()):
            values = _believable(values)
        files[f"shards/{manifest.MANIFEST}"] = json.dumps(values).encode()
    script, arguments = draw(
        st.sampled_from(
            [
                ("convert_data.py", ("--verify", "shards")),
                ("inspect_data.py", ("shards", "--no-picture")),
                ("convert_data.py", ("shards", "out.hdf5")),
                ("convert_data.py", ("source.hdf5", "shards", "--record-kib", "1")),
            ]
        )
    )
    return Case(target="shards", script=script, arguments=arguments, files=files, base="shards")


def _believable(values: Any) -> Any:
    """The manifest with the digest of what it says, where it could be one."""
    try:
        validated = TypeAdapter(manifest.Manifest).validate_python(
            {key: value for key, value in values.items() if key != "digest"}
        )
    except (AttributeError, ValidationError):
        return values
    return values | {"digest": validated.digest}


@st.composite
def conversion(draw: mutation.Draw) -> Case:
    """`convert_data.py` of a file, to shards or to HDF5."""
    name, content = draw(hdf5())
    options = draw(
        st.sampled_from(
            [(), ("--record-kib", "1"), ("--zstd", "3"), ("--channels", "u"), ("--channels", "density", "Vx")]
        )
    )
    out = draw(st.sampled_from(["out", "out.hdf5", "deep/er/out.h5"]))
    return Case(target="conversion", script="convert_data.py", arguments=(name, out, *options), files={name: content})


@st.composite
def points(draw: mutation.Draw) -> Case:
    """A mesh or particles that `inspect_data.py` reads, or `validate.py` opens as the training does: HDF5, Zarr, or a
    series of VTK files."""
    kind = draw(st.sampled_from(["hdf5", "hdf5", *_folders()]))
    files: dict[str, bytes | None]
    if kind == "hdf5":
        name, content = draw(hdf5(_points))
        files = {name: content}
    else:
        name, files = kind, {**_folders()[kind]}
        for _ in range(draw(st.integers(1, 2))):
            _change_file(draw, files)
        if kind == "series":
            name = draw(st.sampled_from(["series", "series/0.pvd", "series/2.pvd"]))
    if draw(st.booleans()):
        arguments = (name, "--no-picture", *draw(st.sampled_from([(), ("--all",)])))
        return Case(target="points", script="inspect_data.py", arguments=arguments, files=files)
    task: dict[str, Any] = {"name": "mine", "path": name}
    chosen = draw(st.sets(st.sampled_from(sorted(_FACTS_OF_POINTS)), max_size=2))
    task |= {key: draw(_FACTS_OF_POINTS[key]) for key in sorted(chosen)}
    files["c.yaml"] = yaml.safe_dump({"data": {"tasks": [task]}, "stages": {"operator": {"steps": 1}}}).encode()
    return Case(target="points", script="validate.py", arguments=("--config", "c.yaml"), files=files)


_FACTS_OF_POINTS = {
    "channels": st.sampled_from([["p"], ["x", "y"], ["x", "y", "c"], ["x", "y", "z", "u"], ["v_x", "v_y"], ["q"], []]),
    "periodic": st.sampled_from([["x"], ["x", "y"], ["q"], []]),
    "coefficients": st.sampled_from([{"kappa": "linear"}, {"kappa": "log10"}, {"radius": "linear"}, {"q": "linear"}]),
    "conserved": st.sampled_from([["p"], ["q"]]),
    "kind": st.sampled_from(["transient", "steady"]),
}


def _change_file(draw: mutation.Draw, files: dict[str, bytes | None]) -> None:
    """One file of a folder is gone, another's, or changed: as values where it is JSON, else as text or bytes."""
    name = draw(st.sampled_from(sorted(files)))
    content = files[name] or b""
    what = draw(st.sampled_from(["content", "content", "values", "values", "text", "gone", "other"]))
    if what == "gone":
        del files[name]
        return
    if what == "other":
        files[name] = files[draw(st.sampled_from(sorted(files)))]
        return
    try:
        text = content.decode()
        values = json.loads(text)
    except ValueError:
        values = None
    if what == "values" and values is not None:
        files[name] = json.dumps(draw(mutation.value(values))).encode()
    elif what == "text" and content.isascii():
        files[name] = mutation.utf8(draw(mutation.text(content.decode())))
    else:
        files[name] = draw(mutation.content(content))


TARGETS = {
    "points": points(),
    "inspection": inspection(),
    "opening": opening(),
    "described": described(),
    "shards": shards(),
    "conversion": conversion(),
}
