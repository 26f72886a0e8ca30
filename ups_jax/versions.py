"""Versions of packages as records and keys hold them."""

from __future__ import annotations

from importlib import metadata


def version(package: str) -> str:
    """That of an installed package. `ups_jax` runs from its folder too, and is then "not installed"."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"
