"""Attention by chunks and of narrow heads: the same function and gradient as the plain formula, in less memory, and
only on a CPU."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ups_jax.models.attention import attention
from ups_jax.models.cpu_attention import rows_at_a_time


def _parts(batch: int, tokens: int, heads: int, width: int, dtype: type = jnp.float32) -> list[jax.Array]:
    rng = np.random.default_rng(0)
    return [jnp.asarray(rng.normal(size=(batch, tokens, heads, width)), dtype) for _ in range(4)]


def _formula(query: np.ndarray, key: np.ndarray, value: np.ndarray) -> jax.Array:
    scores = jnp.einsum("bqad,bkad->baqk", query, key) / np.sqrt(query.shape[-1])
    return jnp.einsum("baqk,bkad->bqad", jax.nn.softmax(scores, axis=-1), value)


@pytest.mark.parametrize(
    "shape", [(3, 7, 5, 2), (4, 32, 48, 2), (6, 9, 10, 1), (2, 32, 6, 8), (1, 400, 1, 16), (11, 1, 13, 4)], ids=str
)
def test_values_and_gradients_are_those_of_the_formula(shape: tuple[int, ...]) -> None:
    query, key, value, change = _parts(*shape)
    out, pull = jax.vjp(jax.jit(attention), query, key, value)
    with jax.enable_x64(True):
        exact = [np.asarray(part, np.float64) for part in (query, key, value, change)]
        expected, expected_pull = jax.vjp(_formula, *exact[:3])
        gradients = [np.asarray(part) for part in expected_pull(exact[3])]
    np.testing.assert_allclose(out, np.asarray(expected), atol=2e-6)
    for found, gradient in zip(pull(change), gradients, strict=True):
        np.testing.assert_allclose(found, gradient, atol=1e-5)


@pytest.mark.parametrize("heads", [5, 16])
@pytest.mark.parametrize(("tokens", "heard"), [(400, 9), (9, 400)])
def test_others_than_the_tokens_themselves_are_attended_to(tokens: int, heard: int, heads: int) -> None:
    query, change = _parts(3, tokens, heads, 2)[::3]
    key, value = _parts(3, heard, heads, 2)[1:3]
    out, pull = jax.vjp(jax.jit(attention), query, key, value)
    expected, expected_pull = jax.vjp(_formula, query, key, value)
    np.testing.assert_allclose(out, expected, atol=2e-6)
    for found, gradient in zip(pull(change), expected_pull(change), strict=True):
        np.testing.assert_allclose(found, gradient, atol=2e-5)


@pytest.mark.parametrize("shape", [(2, 9, 3, 4), (2, 9, 24, 2)], ids=str)
def test_large_scores_neither_overflow_nor_vanish(shape: tuple[int, ...]) -> None:
    query, key, value, change = _parts(*shape)
    out, pull = jax.vjp(attention, 60 * query, 60 * key, value)
    np.testing.assert_allclose(out, _formula(60 * query, 60 * key, value), atol=1e-4)
    assert all(np.isfinite(gradient).all() for gradient in pull(change))


@pytest.mark.parametrize("shape", [(2, 9, 3, 4), (2, 9, 24, 2)], ids=str)
def test_bfloat16_comes_back_as_bfloat16(shape: tuple[int, ...]) -> None:
    query, key, value, change = _parts(*shape, jnp.bfloat16)
    out, pull = jax.vjp(attention, query, key, value)
    exact, exact_pull = jax.vjp(_formula, *(np.asarray(part, np.float32) for part in (query, key, value)))
    expected = [exact, *exact_pull(jnp.asarray(change, jnp.float32))]
    for found, number in zip([out, *pull(change)], expected, strict=True):
        assert found.dtype == jnp.bfloat16
        np.testing.assert_allclose(np.asarray(found, np.float32), number, atol=3e-2)


def test_many_at_once_are_each_by_itself() -> None:
    """As members of an ensemble are rolled out."""
    parts = [jnp.stack([part, 2 * part]) for part in _parts(2, 9, 24, 2)[:3]]
    together = jax.vmap(jax.grad(lambda *parts: jnp.sum(attention(*parts) ** 2), argnums=(0, 1, 2)))(*parts)
    for number in range(2):
        own = jax.grad(lambda *parts: jnp.sum(_formula(*parts) ** 2), argnums=(0, 1, 2))(*(x[number] for x in parts))
        for found, expected in zip(together, own, strict=True):
            np.testing.assert_allclose(found[number], expected, atol=1e-4)


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
    query, key, *_ = _parts(*shape)
    assert rows_at_a_time(query, key) == rows
    products = str(jax.make_jaxpr(attention)(query, key, key).jaxpr).count("dot_general")
    # Those of the way for other devices are in every program.
    other = str(jax.make_jaxpr(jax.nn.dot_product_attention)(query, key, key).jaxpr).count("dot_general")
    assert (products == other) == (rows is not None)
