"""Latent tokens on a regular grid of nodes: what points say is pooled there, and read again at any place."""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from ups_jax.config import LatentConfig
from ups_jax.models.kernels import Nodes, nodes_of, to_nodes, to_points, weights_of
from ups_jax.task import Task


class NodePooling(nn.Module):
    """Means of the messages that the kernel brings to each node, and of the nodes around a place; no parameters."""

    task: Task
    latent: LatentConfig

    @property
    def nodes(self) -> Nodes:
        """Where the latent tokens lie."""
        task = self.task
        return nodes_of(self.latent.nodes, task.origin, task.box, task.periodic)

    def pool(
        self, own: Float[Array, "b p c"], coords: Float[Array, "b p d"], mask: Float[Array, "b p"]
    ) -> Float[Array, "b n k"]:
        """The tokens of points with features `own` at physical `coords`, with the density of the points around them."""
        messages, density = to_nodes(weights_of(self.nodes, coords, mask), own)
        tokens = jnp.concatenate([messages, density / (1 + density)], axis=-1)
        return tokens.reshape(tokens.shape[0], -1, tokens.shape[-1])

    def placed(self, tokens: Float[Array, "b n k"]) -> Float[Array, "b *n k"]:
        """The tokens as the core takes them: on their grid."""
        return tokens.reshape(tokens.shape[0], *self.nodes.shape, -1)

    def read(
        self, tokens: Float[Array, "b n h"], coords: Float[Array, "b q d"], mask: Float[Array, "b q"]
    ) -> Float[Array, "b q k"]:
        """What the tokens say at other places, or the same."""
        return to_points(weights_of(self.nodes, coords, mask), self.placed(tokens))
