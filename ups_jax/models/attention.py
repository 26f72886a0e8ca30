"""Softmax attention over all tokens, each device in the way that is fast there.

On a CPU the scores of many heads would be written to memory and read again several times. There they are made chunk by
chunk, small enough for a core's cache, and made again for the gradient (the recomputation of Dao et al. 2022,
FlashAttention, without its tiles); the narrowest heads go by `narrow_attention`. A GPU takes XLA's way, or cuDNN's
fused kernel where that takes the type and width.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ups_jax.models import cpu_attention
from ups_jax.models.layers import layer_dtype

# Bytes of a chunk's scores: with those of their gradient they stay in a core's second cache.
_CHUNK_BYTES = 2**19
# What cuDNN's fused kernel takes.
_FUSED_TYPES = (jnp.bfloat16, jnp.float16)
_FUSED_WIDTHS = range(8, 129, 8)


def attention(
    query: Float[Array, "b n a d"], key: Float[Array, "b m a d"], value: Float[Array, "b m a d"]
) -> Float[Array, "b n a d"]:
    """softmax(query key^T / sqrt(d)) value over the m tokens, for each of the `a` heads of width d.

    A batch whose size is a symbol, as in an exported program, has no chunks and takes XLA's way.
    """
    if not isinstance(query.shape[0], int):
        return jax.nn.dot_product_attention(query, key, value)
    if jax.default_backend() == "gpu" and query.dtype in _FUSED_TYPES and query.shape[-1] in _FUSED_WIDTHS:
        return jax.nn.dot_product_attention(query, key, value, implementation="cudnn")
    return _by_device(jax.config.jax_default_matmul_precision, query, key, value)  # type: ignore[attr-defined]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _by_device(products: str | None, query: Any, key: Any, value: Any) -> Any:
    return _forward(products, query, key, value)[0]


def _forward(products: str | None, query: Any, key: Any, value: Any) -> Any:
    with jax.default_matmul_precision(products):
        out, logarithm = jax.lax.platform_dependent(query, key, value, cpu=_on_cpu, default=_plain)
    return out, (query, key, value, out, logarithm)


def _backward(products: str | None, kept: Any, gradient: Any) -> Any:
    # It is traced when the gradient is taken, where the forward pass's precision does not hold any more.
    with jax.default_matmul_precision(products):
        return jax.lax.platform_dependent(*kept, gradient, cpu=_gradient_on_cpu, default=_plain_gradient)


_by_device.defvjp(_forward, _backward)


def _plain(query: Any, key: Any, value: Any) -> tuple[Any, Any]:
    """XLA's attention; the logarithm of the sums is not known of it, nor wanted by its gradient."""
    like = jax.eval_shape(_on_cpu, query, key, value)[1]
    return jax.nn.dot_product_attention(query, key, value), jnp.zeros(like.shape, like.dtype)


def _plain_gradient(query: Any, key: Any, value: Any, out: Any, logarithm: Any, gradient: Any) -> tuple[Any, Any, Any]:
    return jax.vjp(jax.nn.dot_product_attention, query, key, value)[1](gradient)


def _on_cpu(query: Any, key: Any, value: Any) -> tuple[Any, Any]:
    """Attention and the logarithm of each row's sum of exponentials, as `_gradient_on_cpu` takes it."""
    rows = cpu_attention.samples_per_group(query, key)
    return _chunked(query, key, value) if rows is None else cpu_attention.attend(query, key, value, rows)


def _gradient_on_cpu(query: Any, key: Any, value: Any, out: Any, logarithm: Any, gradient: Any) -> tuple[Any, Any, Any]:
    rows = cpu_attention.samples_per_group(query, key)
    if rows is None:
        return _chunked_gradient(query, key, value, out, logarithm, gradient)
    return cpu_attention.attend_gradient(query, key, value, out, logarithm, gradient, rows)


def _chunked(query: Any, key: Any, value: Any) -> tuple[Any, Any]:
    """Attention and the logarithm of each row's sum of exponentials, (b a, n, 1) in float32."""
    rows = functools.partial(_rows, chunk=_chunk_of(query, key))
    parts = jax.lax.map(_attend, (rows(query), rows(key), rows(value)))
    return _tokens(parts[0], query), parts[1].reshape(-1, *parts[1].shape[2:])


def _attend(parts: tuple[Any, Any, Any]) -> tuple[Any, Any]:
    query, key, value = parts
    scores = _scores(query * query.shape[-1] ** -0.5, key)
    highest = scores.max(-1, keepdims=True)
    weights = jnp.exp(scores - highest)
    total = weights.sum(-1, keepdims=True)
    return _weighted(weights, value) / total, highest + jnp.log(total)


def _chunked_gradient(
    query: Any, key: Any, value: Any, out: Any, logarithm: Any, gradient: Any
) -> tuple[Any, Any, Any]:
    chunk = _chunk_of(query, key)
    parts = [_rows(part, chunk) for part in (query, key, value, out, gradient)]
    gradients = jax.lax.map(_attend_gradient, (*parts, logarithm.reshape(-1, chunk, *logarithm.shape[1:])))
    return tuple(_tokens(part, like) for part, like in zip(gradients, (query, key, value), strict=True))  # type: ignore[return-value]


def _attend_gradient(parts: tuple[Any, ...]) -> tuple[Any, Any, Any]:
    """The weights are made twice, rows by query and rows by key: no product then has to turn one round."""
    query, key, value, out, gradient, logarithm = parts
    scale = query.shape[-1] ** -0.5
    query = query * scale
    along = (out * gradient).sum(-1, keepdims=True)
    change = jnp.exp(_scores(query, key) - logarithm) * (_scores(gradient, value) - along)
    turned = jnp.exp(_scores(key, query) - jnp.swapaxes(logarithm, -1, -2))
    turned_change = turned * (_scores(value, gradient) - jnp.swapaxes(along, -1, -2))
    return _weighted(change, key) * scale, _weighted(turned_change, query), _weighted(turned, gradient)


def _scores(one: Float[Array, "g q d"], other: Float[Array, "g k d"]) -> Float[Array, "g q k"]:
    return jnp.einsum("gqd,gkd->gqk", one, other)


def _weighted(weights: Float[Array, "g q k"], rows: Float[Array, "g k d"]) -> Float[Array, "g q d"]:
    return jnp.einsum("gqk,gkd->gqd", weights, rows)


def _chunk_of(query: Float[Array, "b n a d"], key: Float[Array, "b m a d"]) -> int:
    """How many (sample, head) pairs a chunk has: a divisor of their number."""
    batch, tokens, heads, _ = query.shape
    most = max(1, _CHUNK_BYTES // (4 * tokens * key.shape[1]))
    pairs = batch * heads
    return max(size for size in range(1, min(most, pairs) + 1) if pairs % size == 0)


def _rows(x: Float[Array, "b n a d"], chunk: int) -> Float[Array, "c g n d"]:
    """Chunks of (sample, head) pairs in float32 at least: a CPU's products are no faster in fewer bits."""
    tokens, width = x.shape[1], x.shape[3]
    return jnp.swapaxes(x, 1, 2).astype(layer_dtype(jnp.float32, x)).reshape(-1, chunk, tokens, width)


def _tokens(x: Float[Array, "c g n d"], like: Float[Array, "b n a d"]) -> Float[Array, "b n a d"]:
    batch, tokens, heads, width = like.shape
    return jnp.swapaxes(x.reshape(batch, heads, tokens, width), 1, 2).astype(like.dtype)
