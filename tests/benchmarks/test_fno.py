"""The benchmark's own FNO computes what the package's does, with the same weights."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from comparison.fno import FNO, FourierMixing

from ups_jax.models.spectral import SpectralMixing

WIDTH, MODES, CHANNELS = 12, 5, 2


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("shape", [(32,), (16, 24)], ids=["1d", "2d"])
def test_the_fno_equals_the_package_with_copied_weights(shape: tuple[int, ...]) -> None:
    torch = pytest.importorskip("torch")
    models = pytest.importorskip("neuralop.models")
    dimensions = len(shape)
    torch.manual_seed(0)
    theirs = models.FNO(
        n_modes=(2 * MODES - 1,) * dimensions, in_channels=CHANNELS + 1, out_channels=CHANNELS, hidden_channels=WIDTH
    )
    ours = FNO(channels=CHANNELS, width=WIDTH, modes=MODES, periodic=(True,) * dimensions)
    x = np.random.default_rng(0).standard_normal((3, *shape, CHANNELS + 1)).astype(np.float32)
    with torch.no_grad():
        expected = theirs(torch.from_numpy(np.moveaxis(x, -1, 1).copy())).movedim(1, -1).numpy()
    result = ours.apply({"params": _copied(theirs)}, jnp.asarray(x))
    assert np.abs(expected).max() > 0.01
    np.testing.assert_allclose(result, expected, atol=2e-5 * np.abs(expected).max())


def test_both_ways_to_mix_modes_are_the_same_map() -> None:
    x = jnp.asarray(np.random.default_rng(1).standard_normal((2, 30, 4)), jnp.float32)
    weights = {"spectrum": jnp.asarray(np.random.default_rng(2).standard_normal((7, 4, 8)), jnp.float32)}
    by_fft = FourierMixing(7).apply({"params": weights}, x)
    np.testing.assert_allclose(by_fft, SpectralMixing(7).apply({"params": weights}, x), atol=1e-5)


def _copied(model: Any) -> dict[str, Any]:
    """The package's parameters under the names of ours."""
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
    """(in, out, *modes), wavenumbers ascending from the lowest negative one, to (modes, in, [Re | Im] of out)."""
    rows = np.moveaxis(weight.reshape(*weight.shape[:2], -1), -1, 0)
    return np.concatenate([rows.real, rows.imag], axis=-1)


def _dense(layer: Any) -> dict[str, np.ndarray]:
    params = {"kernel": _numbers(layer.weight)[..., 0].T}
    return params if layer.bias is None else params | {"bias": _numbers(layer.bias)}


def _numbers(parameter: Any) -> np.ndarray:
    return parameter.detach().numpy()
