"""How exact the products of matrices are: a model called so is the same function on every device."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax


def apply(model: nn.Module, params: Any, *inputs: Any, method: str | None = None) -> Any:
    """`model.apply` with float32 products, and those of its gradient, as exact as `model.products` says: `highest` is
    float32 where a GPU or TPU would take fewer bits of its factors, `default` is the device's own choice."""
    with jax.default_matmul_precision(model.products):
        return model.apply({"params": params}, *inputs, method=method)
