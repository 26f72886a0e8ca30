"""Muon: momentum whose matrices are orthogonalised by Newton-Schulz (Jordan et al. 2024), as an optax transform."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

# Quintic iteration of Jordan et al.: singular values land in about 0.7 .. 1.2 after five steps, not at 1.
_COEFFICIENTS = (3.4445, -4.7750, 2.0315)


# How long the step of an (in, out) matrix is made, whose singular values are about 1. `spectral` (Jordan et al.) keeps
# the change of its outputs the same whatever its shape; `rms` (Liu et al. 2025) gives its entries Adam's size, 0.2.
_SCALES: dict[str, Callable[[int, int], float]] = {
    "spectral": lambda inputs, outputs: math.sqrt(max(1.0, outputs / inputs)),
    "rms": lambda inputs, outputs: 0.2 * math.sqrt(max(inputs, outputs)),
}


class ScaleByMuonState(NamedTuple):
    """The momentum, one array a parameter."""

    mu: Any


def scale_by_muon(
    momentum: float = 0.95, ns_steps: int = 5, scale: Literal["spectral", "rms"] = "spectral"
) -> optax.GradientTransformation:
    """Updates of near-orthogonal matrices: Nesterov momentum, Newton-Schulz, times a factor of their shape.

    The factor is sqrt(max(1, out / in)), or 0.2 sqrt(max(out, in)) with `scale="rms"`. Every parameter is an (in, out)
    matrix, or a stack of them with the stack on the leading axes; the kernel of a convolution has to be flattened to
    (taps * in, out), as `GridConv` has it. It sets no learning rate.
    """

    def init(params: Any) -> ScaleByMuonState:
        return ScaleByMuonState(mu=jax.tree.map(jnp.zeros_like, params))

    def update(updates: Any, state: ScaleByMuonState, params: Any = None) -> tuple[Any, ScaleByMuonState]:
        del params
        mu = jax.tree.map(lambda old, new: momentum * old + (1 - momentum) * new, state.mu, updates)
        ahead = jax.tree.map(lambda old, new: momentum * old + (1 - momentum) * new, mu, updates)
        leaves, tree = jax.tree.flatten(ahead)
        return jax.tree.unflatten(tree, _orthogonalize_all(leaves, ns_steps, _SCALES[scale])), ScaleByMuonState(mu=mu)

    return optax.GradientTransformation(init, update)


def orthogonalize(matrices: Float[Array, "n i o"], steps: int = 5) -> Float[Array, "n i o"]:
    """An approximation of U V^T for each matrix U S V^T, at least as wide as it is high for the least work.

    X <- a X + (b A + c A^2) X with A = X X^T, from X of Frobenius norm 1.
    """
    a, b, c = _COEFFICIENTS
    x = matrices / (jnp.linalg.norm(matrices, axis=(-2, -1), keepdims=True) + 1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x


def _orthogonalize_all(leaves: list[Array], steps: int, scale: Callable[[int, int], float]) -> list[Array]:
    """All leaves at once, each times the scale of its shape.

    Those of one shape are one batch: many small products cost more than their arithmetic.
    """
    groups: defaultdict[tuple[int, int], list[int]] = defaultdict(list)
    wide = []
    for index, leaf in enumerate(leaves):
        height, width = leaf.shape[-2:]
        matrix = leaf.reshape(-1, height, width)
        wide.append(matrix.mT if height > width else matrix)
        groups[min(height, width), max(height, width)].append(index)
    result = list(leaves)
    for members in groups.values():
        batch = orthogonalize(jnp.concatenate([wide[index] for index in members]), steps)
        start = 0
        for index in members:
            leaf = leaves[index]
            part = batch[start : start + len(wide[index])]
            start += len(wide[index])
            height, width = leaf.shape[-2:]
            part = part.mT if height > width else part
            result[index] = (part * scale(height, width)).reshape(leaf.shape).astype(leaf.dtype)
    return result
