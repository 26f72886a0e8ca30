"""Keys of the original system: each refused with what to write instead, wherever it stands."""

from __future__ import annotations

from typing import Any

import pytest

from ups_jax.config.legacy_keys import FORMER
from ups_jax.config.loading import from_dict
from ups_jax.core.errors import ConfigError

TASK = {"data": {"tasks": [{"name": "a"}]}}


def nested(path: str) -> dict[str, Any]:
    value: Any = 1
    for key in reversed(path.split(".")):
        value = {key: value}
    return value


@pytest.mark.parametrize("path", FORMER)
def test_a_former_key_is_refused_with_its_mend(path: str) -> None:
    with pytest.raises(ConfigError, match="of the original system") as caught:
        from_dict(nested(path))
    assert f"`{path}`" in str(caught.value) and FORMER[path] in str(caught.value)


def test_a_former_key_of_an_optimizer_is_refused_in_a_stage_too() -> None:
    with pytest.raises(ConfigError, match=r"stages\.operator\.optimizer\.muon_backend.*one implementation"):
        from_dict(TASK | nested("stages.operator.optimizer.muon_backend"))


def test_what_a_mend_names_is_a_key() -> None:
    from ups_jax.config.loading import _paths
    from ups_jax.config.schema import Config

    known = {path.replace("data.tasks.", "") for path in _paths(Config, "")}
    for path, mend in FORMER.items():
        for quoted in mend.split("`")[1::2]:
            key = quoted.split(":")[0]
            assert key.startswith("--") or key in known, f"{path}: {key}"
