"""An optimizer's step on many devices is its step on one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from commands import ROOT, quiet


@pytest.mark.multiprocess
def test_muon_on_eight_devices_ends_where_it_does_on_one() -> None:
    paths = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    script = Path(__file__).parent / "sharded_muon.py"
    result = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, timeout=300, env=quiet() | {"PYTHONPATH": paths}
    )
    assert result.returncode == 0, result.stderr
    values = json.loads(result.stdout)
    # The parameters lie one layer a device, and the batch two rows a device.
    assert (values["devices"], values["shard"]) == (8, [1, 32, 32])
    assert values["moved"] > 0.01
    assert values["difference"] < 1e-5
