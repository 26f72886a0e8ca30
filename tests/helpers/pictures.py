"""Figures that are saved without being drawn: drawing those of an evaluation takes as long as a short training."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from io import BytesIO
from typing import Any

import numpy as np
import pytest
from matplotlib.image import imsave


@contextmanager
def undrawn() -> Iterator[None]:
    """Save every figure as the same picture of grey noise; `evaluation/test_plots.py` tests what figures show."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("matplotlib.figure.Figure.savefig", lambda figure, file, **_: write(file))
        yield


def write(file: Any) -> None:
    if hasattr(file, "write"):
        file.write(picture())
    else:
        file.write_bytes(picture())


@cache
def picture() -> bytes:
    noise = np.random.default_rng(0).integers(0, 256, (100, 300, 1), np.uint8)
    imsave(content := BytesIO(), np.repeat(noise, 3, axis=2), format="png")
    return content.getvalue()
