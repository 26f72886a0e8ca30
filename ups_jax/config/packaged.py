"""The configurations that come with the package and are given by name, such as `burgers1d`."""

from __future__ import annotations

import difflib
from pathlib import Path

from ups_jax.core.commands import command
from ups_jax.core.errors import ConfigError

_PACKAGE = Path(__file__).resolve().parents[1]
# An installed package has the folder inside; a checkout has it beside the package.
CONFIGS = _PACKAGE / "configs" if (_PACKAGE / "configs").is_dir() else _PACKAGE.parent / "configs"


def packaged_config_summaries() -> dict[str, str]:
    """Return a dictionary from the name of each packaged configuration to the comment in its first line."""
    return {path.stem: _first_comment(path) for path in sorted(CONFIGS.glob("*.yaml"))}


def config_file(path_or_name: str | Path) -> Path:
    """Return the file of a configuration that is given by a path or by the name of a packaged configuration.

    Raises:
        ConfigError: A name without folder and suffix is neither a packaged configuration nor a file.
    """
    path = Path(path_or_name)
    if _has_folder(path_or_name) or path.suffix:
        return path
    packaged = CONFIGS / f"{path}.yaml"
    return path if path.is_file() and not packaged.is_file() else packaged_file(str(path))


def packaged_file(name: str) -> Path:
    """Return the file of a packaged configuration. Raises `ConfigError` if there is none of this name."""
    if name in packaged_config_summaries():
        return CONFIGS / f"{name}.yaml"
    near = difflib.get_close_matches(Path(name).stem, packaged_config_summaries(), n=1)
    hint = f" (did you mean {near[0]}?)" if near else ""
    example = name if name.endswith((".yaml", ".yml")) else f"{name}.yaml"
    raise ConfigError(
        f"{name}: is not a packaged configuration{hint}; choose one from `{command('configs')}`, or give --config the "
        f"path of a file, such as {example}"
    )


def included_file(name: str, including: Path) -> Path:
    """Return the file that `including` includes as `name`: a file in its folder, otherwise a packaged configuration."""
    beside = including.parent / name
    without_suffix = [including.parent / f"{name}.yaml"] if not Path(name).suffix else []
    for candidate in (beside, *without_suffix):
        if candidate.is_file() and candidate.resolve() != including.resolve():
            return candidate
    packaged = CONFIGS / f"{name.removesuffix('.yaml')}.yaml"
    return packaged if packaged.is_file() and not _has_folder(name) else beside


def _has_folder(path: str | Path) -> bool:
    """Return whether a path has a folder part, such as `./`."""
    return len(Path(path).parts) != 1 or "/" in str(path)


def _first_comment(path: Path) -> str:
    with path.open(encoding="utf-8") as file:
        return file.readline().removeprefix("#").strip()
