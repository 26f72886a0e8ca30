"""Blocks that are computed again for the gradient, instead of all that they made being kept until then."""

from __future__ import annotations

from typing import TypeVar

import flax.linen as nn

Block = TypeVar("Block", bound=type[nn.Module])


def recomputed(block: Block) -> Block:
    """The class of modules with the same name, so that parameters are called the same and checkpoints fit both.

    Values and gradients are the same, for one more forward pass; a block keeps its inputs alone (Chen et al. 2016).
    """
    result = nn.remat(block)
    result.__name__ = block.__name__
    return result
