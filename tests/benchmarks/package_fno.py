"""The FNO of the `neuraloperator` package: its weights under the names of ours, and what it makes of a fixed input.

`python tests/benchmarks/package_fno.py` records both in `package_fno.npz`, for machines
without torch; the record is of neuraloperator 2.0.0 with torch 2.13.0.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

RECORD = Path(__file__).with_suffix(".npz")
WIDTH, MODES, CHANNELS = 6, 5, 2
SHAPES = {"1d": (32,), "2d": (16, 24)}


def given(name: str) -> np.ndarray:
    """The input of a case, (b, *s, c)."""
    return np.random.default_rng(0).standard_normal((3, *SHAPES[name], CHANNELS + 1)).astype(np.float32)


def computed(name: str) -> tuple[dict[str, Any], np.ndarray]:
    """Parameters and output of the package for a case; needs torch."""
    import torch
    from neuralop.models import FNO

    torch.manual_seed(0)
    dimensions = len(SHAPES[name])
    model = FNO(
        n_modes=(2 * MODES - 1,) * dimensions, in_channels=CHANNELS + 1, out_channels=CHANNELS, hidden_channels=WIDTH
    )
    with torch.no_grad():
        out = model(torch.from_numpy(np.moveaxis(given(name), -1, 1).copy())).movedim(1, -1).numpy()
    return _copied(model), out


def recorded(name: str) -> tuple[dict[str, Any], np.ndarray]:
    """The same, as it was recorded."""
    params: dict[str, Any] = {}
    with np.load(RECORD) as file:
        for key in file:
            case, *path, last = key.split("/")
            if case == name and path:
                node = params
                for part in path:
                    node = node.setdefault(part, {})
                node[last] = file[key]
        return params, file[f"{name}/output"]


def _record() -> None:
    values = {}
    for name in SHAPES:
        params, values[f"{name}/output"] = computed(name)
        values |= {f"{name}/{path}": leaf for path, leaf in _leaves(params)}
    np.savez_compressed(RECORD, **values)


def _leaves(tree: dict[str, Any], above: str = "") -> list[tuple[str, np.ndarray]]:
    rows = []
    for name, value in tree.items():
        path = f"{above}{name}"
        rows += _leaves(value, f"{path}/") if isinstance(value, dict) else [(path, value)]
    return rows


def _copied(model: Any) -> dict[str, Any]:
    blocks = model.fno_blocks
    lift, project = model.lifting.fcs, model.projection.fcs
    params: dict[str, Any] = {
        "lift_hidden": _dense(lift[0]),
        "lift": _dense(lift[1]),
        "project": _dense(project[0]),
        "write": _dense(project[1]),
    }
    for layer in range(4):
        convolution, mlp = blocks.convs[layer], blocks.channel_mlp[layer].fcs
        params[f"layer_{layer}"] = {
            "spectral": {"spectrum": _spectrum(convolution.weight.to_tensor().detach().numpy())},
            "skip": _dense(blocks.fno_skips[layer].conv) | {"bias": _numbers(convolution.bias).ravel()},
            "mlp_hidden": _dense(mlp[0]),
            "mlp_out": _dense(mlp[1]),
            "gate": _numbers(blocks.channel_mlp_skips[layer].weight).ravel(),
        }
    return params


def _spectrum(weight: np.ndarray) -> np.ndarray:
    """(in, out, *signed, half), wavenumbers ascending, to (half, *signed, in, [Re | Im] of out)."""
    rows = np.moveaxis(weight, (-1, 0, 1), (0, -2, -1))
    return np.concatenate([rows.real, rows.imag], axis=-1)


def _dense(layer: Any) -> dict[str, np.ndarray]:
    params = {"kernel": _numbers(layer.weight)[..., 0].T}
    return params if layer.bias is None else params | {"bias": _numbers(layer.bias)}


def _numbers(parameter: Any) -> np.ndarray:
    return parameter.detach().numpy()


if __name__ == "__main__":
    _record()
