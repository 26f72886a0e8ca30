"""Keyword arguments whose former names still work, with a warning."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")


def renamed_keywords(**current_names: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Return a decorator that also accepts keyword arguments under their former names, with a `DeprecationWarning`.

    `former="current"` declares a name. A call raises TypeError if it passes an argument under both names.
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        @functools.wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> R:
            for former, current in current_names.items():
                if former in kwargs:
                    message = f"{function.__name__}: the argument {former} is now called {current}"
                    if current in kwargs:
                        raise TypeError(f"{message}; give one of them")
                    warnings.warn(message, DeprecationWarning, stacklevel=2)
                    kwargs[current] = kwargs.pop(former)
            return function(*args, **kwargs)

        return call

    return decorate
