"""Attention by chunks and of narrow heads: the same function and gradient as the plain formula, in less memory, and
only on a CPU."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ups_jax.models.attention import attention
from ups_jax.models.cpu_attention import samples_per_group


def _parts(batch: int, tokens: int, heads: int, width: int, dtype: Any = np.float32) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.normal(size=(batch, tokens, heads, width)).astype(dtype) for _ in range(4)]


def _formula(query: np.ndarray, key: np.ndarray, value: np.ndarray) -> jax.Array:
    scores = jnp.einsum("bqad,bkad->baqk", query, key) / np.sqrt(query.shape[-1])
    return jnp.einsum("baqk,bkad->bqad", jax.nn.softmax(scores, axis=-1), value)


@jax.jit
def _attended(query: jax.Array, key: jax.Array, value: jax.Array, change: jax.Array) -> tuple[jax.Array, ...]:
    """Attention, and the gradients of its product with `change` by query, key and value."""
    out, pull = jax.vjp(attention, query, key, value)
    return out, *pull(change)


def _exact(*parts: np.ndarray) -> tuple[np.ndarray, ...]:
    """Return the expected result of `_attended`: the formula and its derivatives by hand, in float64."""
    query, key, value, change = (np.asarray(part, np.float64) for part in parts)
    scale = 1 / np.sqrt(query.shape[-1])
    scores = scale * np.einsum("bqad,bkad->baqk", query, key)
    exponentials = np.exp(scores - scores.max(-1, keepdims=True))
    weights = exponentials / exponentials.sum(-1, keepdims=True)
    by_weight = np.einsum("bqad,bkad->baqk", change, value)
    by_score = scale * weights * (by_weight - (weights * by_weight).sum(-1, keepdims=True))
    return (
        np.einsum("baqk,bkad->bqad", weights, value),
        np.einsum("baqk,bkad->bqad", by_score, key),
        np.einsum("baqk,bqad->bkad", by_score, query),
        np.einsum("baqk,bqad->bkad", weights, change),
    )


@pytest.mark.parametrize(
    "shape", [(3, 7, 5, 2), (4, 32, 48, 2), (6, 9, 10, 1), (2, 32, 6, 8), (1, 400, 1, 16), (11, 1, 13, 4)], ids=str
)
def test_values_and_gradients_are_those_of_the_formula(shape: tuple[int, ...]) -> None:
    parts = _parts(*shape)
    (out, *gradients), (expected, *exact_gradients) = _attended(*parts), _exact(*parts)
    np.testing.assert_allclose(out, expected, atol=2e-6)
    for gradient, exact in zip(gradients, exact_gradients, strict=True):
        np.testing.assert_allclose(gradient, exact, atol=1e-5)


@pytest.mark.parametrize("heads", [5, 16])
@pytest.mark.parametrize(("tokens", "heard"), [(400, 9), (9, 400)])
def test_others_than_the_tokens_themselves_are_attended_to(tokens: int, heard: int, heads: int) -> None:
    query, change = _parts(3, tokens, heads, 2)[::3]
    key, value = _parts(3, heard, heads, 2)[1:3]
    (out, *gradients), (expected, *exact_gradients) = (
        _attended(query, key, value, change), _exact(query, key, value, change)
    )  # fmt: skip
    np.testing.assert_allclose(out, expected, atol=2e-6)
    for gradient, exact in zip(gradients, exact_gradients, strict=True):
        np.testing.assert_allclose(gradient, exact, atol=2e-5)


@pytest.mark.parametrize("shape", [(2, 9, 3, 4), (2, 9, 24, 2)], ids=str)
def test_large_scores_neither_overflow_nor_vanish(shape: tuple[int, ...]) -> None:
    query, key, value, change = _parts(*shape)
    parts = (np.float32(60) * query, np.float32(60) * key, value, change)
    out, *gradients = _attended(*parts)
    np.testing.assert_allclose(out, _exact(*parts)[0], atol=1e-4)
    assert all(np.isfinite(gradient).all() for gradient in gradients)


@pytest.mark.parametrize("shape", [(2, 9, 3, 4), (2, 9, 24, 2)], ids=str)
def test_bfloat16_comes_back_as_bfloat16(shape: tuple[int, ...]) -> None:
    parts = _parts(*shape, jnp.bfloat16)
    for result, number in zip(_attended(*parts), _exact(*parts), strict=True):
        assert result.dtype == jnp.bfloat16
        np.testing.assert_allclose(np.asarray(result, np.float32), number, atol=3e-2)


def test_many_at_once_are_each_by_itself() -> None:
    """As members of an ensemble are rolled out."""
    parts = [np.stack([part, 2 * part]) for part in _parts(2, 9, 24, 2)]
    together = jax.jit(jax.vmap(lambda *parts: _attended(*parts)))(*parts)
    for number in range(2):
        for result, expected in zip(together, _exact(*(part[number] for part in parts)), strict=True):
            np.testing.assert_allclose(result[number], expected, atol=1e-4)


def test_scores_are_never_held_at_once() -> None:
    query, key, value, _ = _parts(8, 256, 8, 2)

    def held(function: object) -> int:
        gradient = jax.jit(jax.grad(lambda *parts: jnp.sum(function(*parts) ** 2), argnums=(0, 1, 2)))  # type: ignore[operator]
        return gradient.lower(query, key, value).compile().memory_analysis().temp_size_in_bytes

    assert held(attention) < held(_formula) / 4


def test_a_gpu_takes_the_plain_way() -> None:
    query, key, value, _ = _parts(8, 64, 8, 2)
    programs = {
        platform: jax.export.export(jax.jit(attention), platforms=[platform])(query, key, value).mlir_module()
        for platform in ("cpu", "cuda")
    }
    assert "stablehlo.while" in programs["cpu"]
    assert "stablehlo.while" not in programs["cuda"]


@pytest.mark.parametrize(
    ("shape", "rows"),
    [((16, 32, 48, 2), 2), ((6, 32, 48, 1), 2), ((16, 64, 6, 2), 16), ((3, 32, 48, 3), None), ((2, 32, 6, 2), None)],
    ids=str,
)
def test_only_many_narrow_heads_go_without_products(shape: tuple[int, ...], rows: int | None) -> None:
    query, key, *_ = map(jnp.asarray, _parts(*shape))
    assert samples_per_group(query, key) == rows
    products = str(jax.make_jaxpr(attention)(query, key, key).jaxpr).count("dot_general")
    # Those of the way for other devices are in every program.
    other = str(jax.make_jaxpr(jax.nn.dot_product_attention)(query, key, key).jaxpr).count("dot_general")
    assert (products == other) == (rows is not None)
