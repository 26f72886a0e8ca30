"""The optimizer Muon as an optax transformation: it orthogonalises the momentum by a Newton-Schulz iteration."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PyTree

# Quintic iteration of Jordan et al.: after five steps the singular values are between about 0.7 and 1.2.
_COEFFICIENTS = (3.4445, -4.7750, 2.0315)

# Scale of the step of an (in, out) matrix whose singular values are about 1. `spectral` (Jordan et al.) makes changes
# of the output independent of the shape; `rms` (Liu et al. 2025) gives the entries a root mean square of 0.2, as Adam.
_SCALES: dict[str, Callable[[int, int], float]] = {
    "spectral": lambda inputs, outputs: math.sqrt(max(1.0, outputs / inputs)),
    "rms": lambda inputs, outputs: 0.2 * math.sqrt(max(inputs, outputs)),
}


class ScaleByMuonState(NamedTuple):
    """The state of `scale_by_muon`.

    Attributes:
        mu: Momentum, an array per parameter.
    """

    mu: PyTree


def scale_by_muon(
    momentum: float = 0.95, ns_steps: int = 5, scale: Literal["spectral", "rms"] = "spectral"
) -> optax.GradientTransformation:
    """Return the optax transformation that turns gradients into scaled, nearly orthogonal matrices.

    It applies Nesterov momentum, a Newton-Schulz iteration and a scale, but no learning rate. Every parameter is an
    (in, out) matrix, or a stack of matrices along leading axes. The kernel of a convolution must have the shape
    (taps * in, out), as in `GridConv`.

    Args:
        momentum: Decay of the momentum.
        ns_steps: Iterations of Newton-Schulz.
        scale: `spectral` for the factor sqrt(max(1, out / in)), `rms` for 0.2 sqrt(max(out, in)).

    References:
        Jordan et al. 2024 (Muon); Liu et al. 2025 for `rms`.
    """

    def init(params: PyTree) -> ScaleByMuonState:
        return ScaleByMuonState(mu=jax.tree.map(jnp.zeros_like, params))

    def update(
        updates: PyTree, state: ScaleByMuonState, params: PyTree | None = None
    ) -> tuple[PyTree, ScaleByMuonState]:
        del params
        mu = jax.tree.map(lambda old, new: momentum * old + (1 - momentum) * new, state.mu, updates)
        ahead = jax.tree.map(lambda old, new: momentum * old + (1 - momentum) * new, mu, updates)
        leaves, tree = jax.tree.flatten(ahead)
        return jax.tree.unflatten(tree, _orthogonalize_all(leaves, ns_steps, _SCALES[scale])), ScaleByMuonState(mu=mu)

    return optax.GradientTransformation(init, update)


def orthogonalize(matrices: Float[Array, "n i o"], steps: int = 5) -> Float[Array, "n i o"]:
    """Return an approximation of U V^T for each matrix with singular value decomposition U S V^T.

    The iteration is X <- a X + (b A + c A^2) X with A = X X^T, from X of Frobenius norm 1.

    Args:
        matrices: Stack of matrices; transpose matrices with more rows than columns, which cost more.
        steps: Number of iterations.
    """
    a, b, c = _COEFFICIENTS
    x = matrices / (jnp.linalg.norm(matrices, axis=(-2, -1), keepdims=True) + 1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x


def _orthogonalize_all(leaves: list[Array], steps: int, scale: Callable[[int, int], float]) -> list[Array]:
    """Return the leaves, orthogonalised and multiplied by `scale(rows, columns)`.

    Leaves of the same shape are processed as one batch, since many small matrix products have a high overhead.
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
