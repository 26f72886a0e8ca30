"""The functions at which the harness acts exist: a fault at a name that nothing has would never strike."""

from __future__ import annotations

import functools
import importlib

import places
import pytest

PLACES = {name: value for name, value in vars(places).items() if isinstance(value, str) and name.isupper()}


@pytest.mark.parametrize("place", sorted({*PLACES.values(), *places.STOPS.values()}))
def test_a_function_at_which_the_harness_acts_exists(place: str) -> None:
    module, path = place.split(":")
    assert callable(functools.reduce(getattr, path.split("."), importlib.import_module(module)))
