"""Muon against a numpy version of its paper's formulas, `optax.contrib` and torch's own, over several steps."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ups_jax.optim.muon import scale_by_muon

SHAPES = {"tall": (12, 4), "wide": (4, 12), "stack": (3, 4, 12), "square": (6, 6)}
# What numpy, optax and torch call the two ways to scale an (in, out) step.
FACTORS = {
    "spectral": lambda inputs, outputs: max(1.0, outputs / inputs) ** 0.5,
    "rms": lambda inputs, outputs: 0.2 * max(inputs, outputs) ** 0.5,
}


def gradients(count: int) -> list[dict[str, np.ndarray]]:
    """Gradients that have a common part, as those of a training have."""
    rng = np.random.default_rng(0)
    common = {name: rng.normal(size=shape) for name, shape in SHAPES.items()}
    return [
        {name: (part + rng.normal(size=part.shape)).astype(np.float32) for name, part in common.items()}
        for _ in range(count)
    ]


def run(tx: optax.GradientTransformation, steps: list[dict[str, np.ndarray]]) -> list[dict[str, np.ndarray]]:
    """The update of every step."""
    state, updates = tx.init(steps[0]), []
    compiled = jax.jit(tx.update)
    for gradient in steps:
        update, state = compiled({name: jnp.asarray(leaf) for name, leaf in gradient.items()}, state)
        updates.append({name: np.asarray(leaf) for name, leaf in update.items()})
    return updates


def in_numpy(gradient: np.ndarray, buffer: np.ndarray, momentum: float) -> tuple[np.ndarray, np.ndarray]:
    """One step of Jordan et al. in float64, without the scale, for an (in, out) matrix: B = m B + g, NS(g + m B)."""
    buffer = momentum * buffer + gradient
    x = gradient + momentum * buffer
    x = x / np.linalg.norm(x)
    for _ in range(5):
        gram = x.T @ x
        x = 3.4445 * x + x @ (-4.7750 * gram + 2.0315 * gram @ gram)
    return x, buffer


@pytest.mark.parametrize("scale", FACTORS)
def test_every_step_is_that_of_the_papers_formulas(scale: Any) -> None:
    steps = gradients(4)
    buffers = {name: np.zeros(shape).reshape(-1, *shape[-2:]) for name, shape in SHAPES.items()}
    for gradient, update in zip(steps, run(scale_by_muon(0.95, 5, scale), steps), strict=True):
        for name, shape in SHAPES.items():
            for index, matrix in enumerate(gradient[name].reshape(-1, *shape[-2:])):
                step, buffers[name][index] = in_numpy(matrix, buffers[name][index], 0.95)
                expected = step * FACTORS[scale](*shape[-2:])
                np.testing.assert_allclose(
                    update[name].reshape(-1, *shape[-2:])[index], expected, atol=2e-4, err_msg=name
                )


def test_a_stack_is_its_matrices_each_by_itself() -> None:
    steps = gradients(3)
    whole = run(scale_by_muon(), steps)
    for index in range(3):
        alone = run(scale_by_muon(), [{"one": step["stack"][index]} for step in steps])
        for update, single in zip(whole, alone, strict=True):
            np.testing.assert_allclose(update["stack"][index], single["one"], rtol=1e-4, atol=5e-6)


def test_optax_makes_the_same_steps_once_its_momentum_is_unbiased() -> None:
    # optax corrects the bias of momentum and gradient apart, which turns a Nesterov step by 1 - m^t; at m = 0.5 that
    # is gone after a dozen steps, and the first step has one gradient in both.
    steps = gradients(15)
    axes = {name: optax.contrib.MuonDimensionNumbers(len(shape) - 2, len(shape) - 1) for name, shape in SHAPES.items()}
    theirs = run(optax.contrib.scale_by_muon(beta=0.5, eps=1e-7, weight_dimension_numbers=axes), steps)
    for scale, factor in FACTORS.items():
        ours = run(scale_by_muon(0.5, 5, scale), steps)  # type: ignore[arg-type]
        for step in (0, 12, 13, 14):
            for name, shape in SHAPES.items():
                expected = theirs[step][name] * factor(*shape[-2:])
                np.testing.assert_allclose(ours[step][name], expected, rtol=1e-3, atol=1e-3, err_msg=name)


@pytest.mark.parametrize(("scale", "adjust"), [("spectral", "original"), ("rms", "match_rms_adamw")])
def test_torchs_muon_makes_the_same_steps(scale: Any, adjust: str, monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch")
    if not hasattr(torch.optim, "Muon"):
        pytest.skip("this torch has no Muon")
    # torch iterates in bfloat16, which is a hundredth of a step; what is compared is the algorithm.
    monkeypatch.setattr(torch.Tensor, "bfloat16", lambda tensor: tensor.clone())
    names = ("tall", "wide", "square")
    rng = np.random.default_rng(1)
    start = {name: rng.normal(size=SHAPES[name]).astype(np.float32) for name in names}
    # torch keeps matrices as (out, in).
    theirs = {name: torch.nn.Parameter(torch.tensor(start[name].T.copy())) for name in names}
    other = torch.optim.Muon(theirs.values(), lr=0.02, momentum=0.95, weight_decay=0.1, adjust_lr_fn=adjust)
    tx = optax.chain(scale_by_muon(0.95, 5, scale), optax.add_decayed_weights(0.1), optax.scale_by_learning_rate(0.02))
    ours = {name: jnp.asarray(leaf) for name, leaf in start.items()}
    state, compiled = tx.init(ours), jax.jit(tx.update)
    for gradient in gradients(5):
        for name in names:
            theirs[name].grad = torch.tensor(gradient[name].T.copy())
        other.step()
        updates, state = compiled({name: jnp.asarray(gradient[name]) for name in names}, state, ours)
        ours = optax.apply_updates(ours, updates)
    for name in names:
        np.testing.assert_allclose(ours[name], theirs[name].detach().numpy().T, atol=1e-5, err_msg=name)


def test_an_rms_step_is_as_large_as_adams() -> None:
    rng = np.random.default_rng(0)
    shapes = {"dense": (32, 32), "conv": (3 * 16, 16), "wide": (16, 64)}
    gradient = {name: jnp.asarray(rng.normal(size=shape), jnp.float32) for name, shape in shapes.items()}
    tx = scale_by_muon(scale="rms")
    updates, _ = jax.jit(tx.update)(gradient, tx.init(gradient))
    sizes = [float(jnp.sqrt(jnp.mean(jnp.square(update)))) for update in updates.values()]
    np.testing.assert_allclose(sizes, 0.2, rtol=0.2)


def test_the_iteration_brings_all_singular_values_near_one() -> None:
    for name, update in run(scale_by_muon(), gradients(1))[0].items():
        height, width = update.shape[-2:]
        values = np.linalg.svd(update / FACTORS["spectral"](height, width), compute_uv=False)
        assert values.min() > 0.6 and values.max() < 1.25, name
