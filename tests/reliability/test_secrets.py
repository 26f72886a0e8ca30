"""The key of W&B is in no file of a run and in nothing that a script prints, whether its server answers or not."""

from __future__ import annotations

import base64
from pathlib import Path

import places
import pytest
import runs
from scenarios import SHORT
from wandb_server import server

pytestmark = pytest.mark.multiprocess
KEY = "5ec2e7" * 6 + "c0de"
BOUNDS = {"finish_timeout": 5.0, "init_timeout": 3.0}
FAULTS = [{"at": places.WANDB, "do": "defaults", "values": BOUNDS}]


@pytest.mark.parametrize("kind", ["refuses", pytest.param("answers 500", marks=pytest.mark.slow)])
def test_the_key_of_wandb_is_in_no_file_and_in_no_output(kind: str, data_root: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    homes = {f"WANDB_{name}_DIR": str(tmp_path / "home") for name in ("DATA", "CACHE", "CONFIG")}
    with server(kind) as login:
        line = runs.training("operator", run, data_root, *SHORT, "logging.wandb.enabled=true")
        result = runs.run(line, FAULTS, **homes, **login | {"WANDB_API_KEY": KEY})
    assert result.code == 0, result.err
    # As the header of a request has it, too.
    forms = [KEY.encode(), base64.b64encode(b"api:" + KEY.encode())]
    files = [file for file in tmp_path.rglob("*") if file.is_file()]
    # What W&B itself leaves in a run is among them.
    assert any(file.is_relative_to(run / "wandb") and file.suffix == ".wandb" for file in files), files
    for what, content in [
        ("what it printed", (result.out + result.err).encode()),
        *((str(file), file.read_bytes()) for file in files),
    ]:
        assert not any(form in content for form in forms), what
