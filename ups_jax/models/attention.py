"""Multi-head softmax attention, with the fastest implementation for the device.

On a CPU the scores are computed in chunks of (sample, head) pairs that fit into a core's cache, and are recomputed in
the backward pass, as in FlashAttention (Dao et al. 2022). Heads of at most two channels use
`ups_jax.models.cpu_attention`. A GPU uses cuDNN's fused kernel if it supports the dtype and the head width, else XLA's
attention.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ups_jax.models import cpu_attention
from ups_jax.models.layers import layer_dtype

# Bytes of a chunk's scores; together with their gradient they fit into a core's L2 cache.
_CHUNK_BYTES = 2**19
# Types and head widths that cuDNN's fused kernel supports.
_FUSED_TYPES = (jnp.bfloat16, jnp.float16)
_FUSED_WIDTHS = range(8, 129, 8)


# Attention, and the logarithm of each query's sum of exponentiated scores.
AttentionAndLogSum = tuple[Array, Array]
# Gradients with respect to query, key and value.
Gradients = tuple[Array, Array, Array]


def attention(
    query: Float[Array, "b n a d"], key: Float[Array, "b m a d"], value: Float[Array, "b m a d"]
) -> Float[Array, "b n a d"]:
    """Return multi-head attention, softmax(query key^T / sqrt(d)) value, of n queries to m keys in `a` heads.

    If the batch size is symbolic, as in an exported program, XLA's attention is used, because chunks need a known size.
    """
    if not isinstance(query.shape[0], int):
        return jax.nn.dot_product_attention(query, key, value)
    if jax.default_backend() == "gpu" and query.dtype in _FUSED_TYPES and query.shape[-1] in _FUSED_WIDTHS:
        return jax.nn.dot_product_attention(query, key, value, implementation="cudnn")
    return _attention_by_device(jax.config.jax_default_matmul_precision, query, key, value)  # type: ignore[attr-defined]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attention_by_device(precision: str | None, query: Array, key: Array, value: Array) -> Array:
    """Return the attention, computed by the implementation for the platform that the program is compiled for."""
    return _forward(precision, query, key, value)[0]


def _forward(precision: str | None, query: Array, key: Array, value: Array) -> tuple[Array, tuple[Array, ...]]:
    """Return the attention and the arrays that `_backward` needs; the forward rule of `_attention_by_device`."""
    with jax.default_matmul_precision(precision):
        out, log_sum = jax.lax.platform_dependent(query, key, value, cpu=_attention_on_cpu, default=_attention_by_xla)
    return out, (query, key, value, out, log_sum)


def _backward(precision: str | None, saved: tuple[Array, ...], gradient: Array) -> Gradients:
    """Return the gradients with respect to query, key and value; the backward rule of `_attention_by_device`."""
    # This is traced outside of the context that set the precision of the forward pass.
    with jax.default_matmul_precision(precision):
        return jax.lax.platform_dependent(*saved, gradient, cpu=_gradient_on_cpu, default=_gradient_by_xla)


_attention_by_device.defvjp(_forward, _backward)


def _attention_by_xla(query: Array, key: Array, value: Array) -> AttentionAndLogSum:
    """Return XLA's attention, and zeros in place of the `log_sum` of `_attention_on_cpu`, which is not needed."""
    like = jax.eval_shape(_attention_on_cpu, query, key, value)[1]
    return jax.nn.dot_product_attention(query, key, value), jnp.zeros(like.shape, like.dtype)


def _gradient_by_xla(query: Array, key: Array, value: Array, out: Array, log_sum: Array, gradient: Array) -> Gradients:
    """Return the gradients with respect to query, key and value; `gradient` is with respect to XLA's attention."""
    return jax.vjp(jax.nn.dot_product_attention, query, key, value)[1](gradient)


def _attention_on_cpu(query: Array, key: Array, value: Array) -> AttentionAndLogSum:
    """Return the attention, and the logarithm of each query's sum of exponentiated scores (`log_sum`)."""
    samples = cpu_attention.samples_per_group(query, key)
    return (
        _chunked_attention(query, key, value)
        if samples is None
        else cpu_attention.attention_and_log_sum(query, key, value, samples)
    )


def _gradient_on_cpu(query: Array, key: Array, value: Array, out: Array, log_sum: Array, gradient: Array) -> Gradients:
    """Return the gradients with respect to query, key and value; `out` and `log_sum` are from `_attention_on_cpu`."""
    samples = cpu_attention.samples_per_group(query, key)
    if samples is None:
        return _gradient_by_chunks(query, key, value, out, log_sum, gradient)
    return cpu_attention.attention_gradients(query, key, value, out, log_sum, gradient, samples)


def _chunked_attention(query: Array, key: Array, value: Array) -> AttentionAndLogSum:
    """Return the results of `_attention_on_cpu`, computed in chunks; `log_sum` has the shape (b a, n, 1)."""
    to_chunks = functools.partial(_to_chunks, chunk_size=_chunk_size(query, key))
    out, log_sum = jax.lax.map(_attend_chunk, (to_chunks(query), to_chunks(key), to_chunks(value)))
    return _from_chunks(out, query), log_sum.reshape(-1, *log_sum.shape[2:])


def _attend_chunk(chunk: tuple[Array, Array, Array]) -> AttentionAndLogSum:
    """Return the attention, and the logarithm of each query's sum of exponentiated scores, for (query, key, value)."""
    query, key, value = chunk
    scores = _scores(query * query.shape[-1] ** -0.5, key)
    highest = scores.max(-1, keepdims=True)
    weights = jnp.exp(scores - highest)
    total = weights.sum(-1, keepdims=True)
    return _weighted_sum(weights, value) / total, highest + jnp.log(total)


def _gradient_by_chunks(
    query: Array, key: Array, value: Array, out: Array, log_sum: Array, gradient: Array
) -> Gradients:
    """Return the gradients of `_gradient_on_cpu`, computed in chunks of (sample, head) pairs."""
    chunk = _chunk_size(query, key)
    chunks = [_to_chunks(x, chunk) for x in (query, key, value, out, gradient)]
    gradients = jax.lax.map(_chunk_gradient, (*chunks, log_sum.reshape(-1, chunk, *log_sum.shape[1:])))
    return tuple(_from_chunks(x, like) for x, like in zip(gradients, (query, key, value), strict=True))  # type: ignore[return-value]


def _chunk_gradient(chunk: tuple[Array, ...]) -> Gradients:
    """Return the gradients with respect to query, key and value for (query, key, value, out, gradient, log_sum).

    The attention weights are computed twice, with queries as rows and with keys as rows, so that no product needs a
    transpose.
    """
    query, key, value, out, gradient, log_sum = chunk
    scale = query.shape[-1] ** -0.5
    query = query * scale
    out_dot_gradient = (out * gradient).sum(-1, keepdims=True)
    score_gradient = jnp.exp(_scores(query, key) - log_sum) * (_scores(gradient, value) - out_dot_gradient)
    weights_by_key = jnp.exp(_scores(key, query) - jnp.swapaxes(log_sum, -1, -2))
    score_gradient_by_key = weights_by_key * (_scores(value, gradient) - jnp.swapaxes(out_dot_gradient, -1, -2))
    return (
        _weighted_sum(score_gradient, key) * scale,
        _weighted_sum(score_gradient_by_key, query),
        _weighted_sum(weights_by_key, gradient),
    )


def _scores(x: Float[Array, "g q d"], y: Float[Array, "g k d"]) -> Float[Array, "g q k"]:
    """Return the dot products of all rows of `x` with all rows of `y`."""
    return jnp.einsum("gqd,gkd->gqk", x, y)


def _weighted_sum(weights: Float[Array, "g q k"], rows: Float[Array, "g k d"]) -> Float[Array, "g q d"]:
    """Return for each query q the sum over k of weights[q, k] * rows[k]."""
    return jnp.einsum("gqk,gkd->gqd", weights, rows)


def _chunk_size(query: Float[Array, "b n a d"], key: Float[Array, "b m a d"]) -> int:
    """Return the number of (sample, head) pairs per chunk, a divisor of their total number."""
    batch, tokens, heads, _ = query.shape
    max_size = max(1, _CHUNK_BYTES // (4 * tokens * key.shape[1]))
    pairs = batch * heads
    return max(size for size in range(1, min(max_size, pairs) + 1) if pairs % size == 0)


def _to_chunks(x: Float[Array, "b n a d"], chunk_size: int) -> Float[Array, "c g n d"]:
    """Return `x` in chunks of (sample, head) pairs, in float32 or float64, since fewer bits are no faster on a CPU."""
    tokens, width = x.shape[1], x.shape[3]
    return jnp.swapaxes(x, 1, 2).astype(layer_dtype(jnp.float32, x)).reshape(-1, chunk_size, tokens, width)


def _from_chunks(x: Float[Array, "c g n d"], like: Float[Array, "b n a d"]) -> Float[Array, "b n a d"]:
    """Return chunks in the shape and dtype of `like`, the inverse of `_to_chunks`."""
    batch, tokens, heads, width = like.shape
    return jnp.swapaxes(x.reshape(batch, heads, tokens, width), 1, 2).astype(like.dtype)
