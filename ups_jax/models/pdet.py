"""The PDE-Transformer architectures of the Universal Physics Stack (UPS): `pdet_unet` and `pdet_stack`.

Blocks and configuration keys are those of UPS; conditioning and positions are added. Tokens keep their grid, so that
pooling halves every axis instead of the flattened sequence.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ups_jax.config import PdetConfig
from ups_jax.models.attention import attention
from ups_jax.models.conditioning import modulate_and_gate
from ups_jax.models.layers import Dense, layer_dtype, remat_block


class PdetUnet(nn.Module):
    """U-net with `depths[i]` transformer layers at level i, both down and up, and `depths[-1]` at the coarsest level.

    The number of tokens is halved along every axis between levels.
    """

    config: PdetConfig
    periodic: tuple[bool, ...]
    dtype: Any = jnp.float32
    remat: bool = False

    @nn.compact
    def __call__(self, x: Float[Array, "b *n h"], embedding: Float[Array, "b e"]) -> Float[Array, "b *n h"]:
        width, depths = x.shape[-1], self.config.depths
        x = x + Positions(self.periodic, self.dtype)(x)
        skips = []
        for depth in depths[:-1]:
            x = _apply_layers(self, depth, x, embedding, "channel_separated")
            skips.append(x)
            x = Dense(width, dtype=self.dtype)(_halve_resolution(x))
        x = _apply_layers(self, depths[-1], x, embedding, "channel_separated")
        for depth, skip in zip(reversed(depths[:-1]), reversed(skips), strict=True):
            x = jax.image.resize(x, skip.shape, "linear", antialias=False)
            x = x + Dense(width, dtype=self.dtype)(skip)
            x = _apply_layers(self, depth, x, embedding, "channel_separated")
        return nn.LayerNorm(epsilon=1e-5, dtype=layer_dtype(jnp.float32, x))(x)


class PdetStack(nn.Module):
    """Stack of `depth` transformer layers at one resolution.

    If the tokens have no grid, `periodic` is None and no position encoding is added to the input.
    """

    config: PdetConfig
    periodic: tuple[bool, ...] | None
    dtype: Any = jnp.float32
    remat: bool = False

    @nn.compact
    def __call__(self, x: Float[Array, "b *n h"], embedding: Float[Array, "b e"]) -> Float[Array, "b *n h"]:
        if self.periodic is not None:
            x = x + Positions(self.periodic, self.dtype)(x)
        x = _apply_layers(self, self.config.depth, x, embedding, self.config.attention_type)
        return nn.LayerNorm(epsilon=1e-5, dtype=layer_dtype(jnp.float32, x))(x)


class PdetLayer(nn.Module):
    """Pre-norm transformer layer: residual attention, then a residual MLP, both modulated by the conditions."""

    config: PdetConfig
    attention_type: str
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b *n h"], embedding: Float[Array, "b e"]) -> Float[Array, "b *n h"]:
        groups = {"standard": 1, "channel_separated": x.shape[-1] // self.config.group_size}[self.attention_type]
        attention = TokenAttention(self.config.num_heads, groups, self.config.qk_norm, self.dtype, name="attention")
        x = Residual(attention, self.dtype)(x, embedding)
        return Residual(Mlp(self.config.mlp_ratio, self.dtype, name="mlp"), self.dtype)(x, embedding)


class Residual(nn.Module):
    """Residual connection x + gate * branch(y), where y is the modulated layer norm of x."""

    branch: nn.Module
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b *n h"], embedding: Float[Array, "b e"]) -> Float[Array, "b *n h"]:
        dtype = layer_dtype(jnp.float32, x)
        norm = nn.LayerNorm(epsilon=1e-5, use_bias=False, use_scale=False, dtype=dtype)
        y, gate = modulate_and_gate(norm(x), embedding, dtype=self.dtype)
        return x + gate * self.branch(y)


class Mlp(nn.Module):
    """Two dense layers with a GELU between them; the hidden width is `ratio` times the input width."""

    ratio: float
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b *n h"]) -> Float[Array, "b *n h"]:
        width = x.shape[-1]
        hidden = nn.gelu(Dense(round(width * self.ratio), dtype=self.dtype)(x))
        return Dense(width, dtype=self.dtype)(hidden)


class TokenAttention(nn.Module):
    """Softmax attention over all tokens, applied with the same weights to each of `groups` equal groups of channels."""

    num_heads: int
    groups: int
    qk_norm: bool
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b *n h"]) -> Float[Array, "b *n h"]:
        batch, width = x.shape[0], x.shape[-1]
        group = width // self.groups
        shape = (batch, -1, self.groups, self.num_heads, group // self.num_heads)
        y = x.reshape(batch, -1, self.groups, group)
        query, key, value = (
            Dense(group, name=name, dtype=self.dtype)(y).reshape(shape) for name in ("query", "key", "value")
        )
        if self.qk_norm:
            query, key = (
                nn.RMSNorm(epsilon=1e-6, dtype=layer_dtype(self.dtype, values), name=f"{name}_norm")(values)
                for name, values in (("query", query), ("key", key))
            )
        flat = (batch, -1, self.groups * self.num_heads, group // self.num_heads)
        mixed = attention(query.reshape(flat), key.reshape(flat), value.reshape(flat))
        return Dense(group, name="out", dtype=self.dtype)(mixed.reshape(y.shape)).reshape(x.shape)


class Positions(nn.Module):
    """Position encoding of tokens: a dense layer on waves of the position along each axis.

    The waves have whole periods on a periodic axis and half periods on the others.
    """

    periodic: tuple[bool, ...]
    dtype: Any = jnp.float32
    frequencies: int = 4

    @nn.compact
    def __call__(self, x: Float[Array, "b *n h"]) -> Float[Array, "1 *n h"]:
        sizes = x.shape[1:-1]
        waves = []
        for axis, (size, wraps) in enumerate(zip(sizes, self.periodic, strict=True)):
            position = (jnp.arange(size) + 0.5) / size * (2 if wraps else 1) * jnp.pi
            angles = position[:, None] * jnp.arange(1, self.frequencies + 1)[None]
            wave = jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)
            shape = [size if wave_axis == axis else 1 for wave_axis in range(len(sizes))]
            waves.append(jnp.broadcast_to(wave.reshape(1, *shape, -1), (1, *sizes, wave.shape[-1])))
        dtype = layer_dtype(self.dtype, x)
        return Dense(x.shape[-1], dtype=dtype)(jnp.concatenate(waves, axis=-1).astype(dtype))


def _apply_layers(
    parent: PdetUnet | PdetStack,
    depth: int,
    x: Float[Array, "b *n h"],
    embedding: Float[Array, "b e"],
    attention_type: str,
) -> Float[Array, "b *n h"]:
    """Return the tokens after `depth` transformer layers, which become submodules of `parent`."""
    layer = remat_block(PdetLayer) if parent.remat else PdetLayer
    for _ in range(depth):
        x = layer(parent.config, attention_type, parent.dtype)(x, embedding)
    return x


def _halve_resolution(x: Float[Array, "b *n h"]) -> Float[Array, "b *m h"]:
    """Return the tokens averaged over neighbouring pairs along every axis.

    On an axis of odd length the last token is repeated; an axis of length 1 does not change.
    """
    for axis in range(1, x.ndim - 1):
        if x.shape[axis] == 1:
            continue
        if x.shape[axis] % 2:
            x = jnp.concatenate([x, jnp.take(x, jnp.array([-1]), axis=axis)], axis=axis)
        x = x.reshape(*x.shape[:axis], x.shape[axis] // 2, 2, *x.shape[axis + 1 :]).mean(axis + 1)
    return x
