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


def config_file(path_or_name: str | Path) -> Path:
    """Return the file of a configuration that is given by its path, or by its packaged name: no folder, no suffix.

    Raises:
        ConfigError: There is neither a packaged configuration nor a file of this name.
    """
    path = Path(path_or_name)
    if _names_a_folder(path_or_name) or path.suffix:
        return path
    packaged = CONFIGS / f"{path}.yaml"
    return path if path.is_file() and not packaged.is_file() else packaged_file(str(path))


def packaged_file(name: str) -> Path:
    """Return the file of a packaged configuration; raise ConfigError if there is none of this name."""
    if name in packaged_configs():
        return CONFIGS / f"{name}.yaml"
    near = difflib.get_close_matches(Path(name).stem, packaged_configs(), n=1)
    hint = f"did you mean {near[0]}? " if near else ""
    example = name if name.endswith((".yaml", ".yml")) else f"{name}.yaml"
    raise ConfigError(
        f"{name}: there is no packaged configuration of this name; {hint}`{command('configs')}` lists them, and "
        f"--config takes your own file by its path, such as {example}"
    )


def included_file(name: str, including: Path) -> Path:
    """Return the file that `including` names in its `include`: another one beside it, or else a packaged one."""
    beside = including.parent / name
    without_suffix = [including.parent / f"{name}.yaml"] if not Path(name).suffix else []
    for candidate in (beside, *without_suffix):
        if candidate.is_file() and candidate.resolve() != including.resolve():
            return candidate
    packaged = CONFIGS / f"{name.removesuffix('.yaml')}.yaml"
    return packaged if packaged.is_file() and not _names_a_folder(name) else beside


def _names_a_folder(path: str | Path) -> bool:
    """Return whether a path contains a folder; `./` counts as one."""
    return len(Path(path).parts) != 1 or "/" in str(path)


def _first_comment(path: Path) -> str:
    with path.open(encoding="utf-8") as file:
        return file.readline().removeprefix("#").strip()
