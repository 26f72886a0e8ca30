"""One fuzzed input: files, a script and its arguments, as plain values that fit into a small JSON file."""

from __future__ import annotations

import base64
import json
import shutil
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Case:
    """`script` is started with `arguments` in a folder that holds `files`; all names are relative to it, but for
    `configs/..`, which are the shipped configurations.

    `base` names the sound folder (of `bases`) that the files are laid over; one of them that is None is taken away
    from it. `codes` are the exit codes that are right. `stop` is the key (of `places.STOPS`) of the function at which
    the script has accepted all that is fuzzed, so that nothing needs to be computed.
    """

    target: str
    script: str
    arguments: tuple[str, ...]
    files: Mapping[str, bytes | None] = field(default_factory=dict)
    base: str | None = None
    codes: tuple[int, ...] = (0, 2, 3)
    stop: str | None = None

    def lay(self, folder: Path, bases: Mapping[str, Path]) -> None:
        """Put everything into an empty folder."""
        if self.base is not None:
            shutil.copytree(bases[self.base], folder, dirs_exist_ok=True)
        for name, content in self.files.items():
            path = folder / name
            if content is None:
                path.unlink(missing_ok=True)
            else:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)

    def to_json(self) -> str:
        """The case as text; contents that are no text are packed."""
        values = {name: getattr(self, name) for name in ("target", "script", "arguments", "base", "codes", "stop")}
        files = {name: _packed(content) for name, content in self.files.items()}
        return json.dumps(values | {"files": files}, indent=1) + "\n"

    @staticmethod
    def from_json(text: str) -> Case:
        """The case that `to_json` wrote."""
        values = json.loads(text)
        files = {name: _unpacked(packed) for name, packed in values.pop("files").items()}
        values |= {name: tuple(values[name]) for name in ("arguments", "codes")}
        return Case(files=files, **values)


def _packed(content: bytes | None) -> Any:
    if content is None:
        return None
    try:
        return {"text": content.decode()}
    except UnicodeDecodeError:
        return {"zlib": base64.b64encode(zlib.compress(content, 9)).decode()}


def _unpacked(packed: Any) -> bytes | None:
    if packed is None:
        return None
    if "text" in packed:
        return str(packed["text"]).encode()
    return zlib.decompress(base64.b64decode(packed["zlib"]))
