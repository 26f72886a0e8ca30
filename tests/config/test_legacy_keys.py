"""Keys of the original system: each refused with what to write instead, wherever it stands."""

from __future__ import annotations

from typing import Any

import pytest

from ups_jax.config import Config, from_dict
from ups_jax.config.legacy_keys import FORMER
from ups_jax.config.loading import key_paths
from ups_jax.core.errors import ConfigError

TASK = {"data": {"tasks": [{"name": "a"}]}}


def nested(path: str) -> dict[str, Any]:
    value: Any = 1
    for key in reversed(path.split(".")):
        value = {key: value}
    return value


@pytest.mark.parametrize("path", FORMER)
def test_a_former_key_is_refused_with_a_hint(path: str) -> None:
    with pytest.raises(ConfigError, match="of the original system") as caught:
        from_dict(nested(path))
    assert f"`{path}`" in str(caught.value) and FORMER[path] in str(caught.value)


def test_a_former_key_of_an_optimizer_is_refused_in_a_stage_too() -> None:
    with pytest.raises(ConfigError, match=r"stages\.operator\.optimizer\.muon_backend.*one implementation"):
        from_dict(TASK | nested("stages.operator.optimizer.muon_backend"))


def test_the_keys_that_a_hint_names_exist() -> None:
    paths = {path.replace("data.tasks.", "") for path in key_paths(Config)}
    for path, hint in FORMER.items():
        for quoted in hint.split("`")[1::2]:
            key = quoted.split(":")[0]
            assert key.startswith("--") or key in paths, f"{path}: {key}"
