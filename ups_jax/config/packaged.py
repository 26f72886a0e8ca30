"""The configurations that come with the package, which are given by their names alone."""

from __future__ import annotations

import difflib
from pathlib import Path

from ups_jax.core.commands import command
from ups_jax.core.errors import ConfigError

_PACKAGE = Path(__file__).resolve().parents[1]
# An installed package has the folder inside; a checkout has it beside the package.
CONFIGS = _PACKAGE / "configs" if (_PACKAGE / "configs").is_dir() else _PACKAGE.parent / "configs"


def packaged_configs() -> dict[str, str]:
    """Return the first comment of every packaged configuration, by name."""
    return {path.stem: _first_comment(path) for path in sorted(CONFIGS.glob("*.yaml"))}


def config_file(given: str | Path) -> Path:
    """Return the file of a configuration that is given by its path, or by its packaged name: no folder, no suffix.

    Raises `ConfigError` where there is neither a packaged configuration nor a file of such a name.
    """
    path = Path(given)
    if len(path.parts) != 1 or path.suffix:
        return path
    packaged = CONFIGS / f"{path}.yaml"
    if packaged.is_file() or path.exists():
        return packaged if packaged.is_file() else path
    near = difflib.get_close_matches(str(given), packaged_configs(), n=1)
    raise ConfigError(
        f"{given}: there is no packaged configuration of this name{f', did you mean {near[0]}?' if near else ';'} "
        f"`{command('configs')}` lists them; a file is given with its suffix, such as {given}.yaml"
    )


def included_file(name: str, including: Path) -> Path:
    """Return the file that `including` names in its `include`: one beside it, or else a packaged configuration."""
    beside = including.parent / name
    if beside.exists() or len(Path(name).parts) != 1:
        return beside
    packaged = CONFIGS / name if Path(name).suffix else CONFIGS / f"{name}.yaml"
    return packaged if packaged.is_file() else beside


def _first_comment(path: Path) -> str:
    with path.open(encoding="utf-8") as file:
        return file.readline().removeprefix("#").strip()
