"""The least that a training step has to do: multiplications and additions of its products, bytes of its state."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr


def product_operations(function: Callable[..., Any], *arguments: Any) -> int:
    """Multiplications and additions of the matrix products and convolutions of `function`, each pass of a scan counted,
    of other loops one; of a choice the cheapest branch that has any. A kernel of cuDNN's counts nothing. A training
    step does three times those of its loss (Kaplan et al. 2020)."""
    return _of(jax.make_jaxpr(function)(*arguments).jaxpr)


def least_bytes(params: Any, batch: Any) -> int:
    """AdamW's traffic in float32: parameters and two averages read and written once, the gradient never, the batch
    read. Activations are not counted: a step could keep them in its caches."""
    size = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))
    return 6 * 4 * size + sum(leaf.nbytes for leaf in jax.tree.leaves(batch))


def _of(jaxpr: Jaxpr) -> int:
    total = 0
    for equation in jaxpr.eqns:
        name, params = equation.primitive.name, equation.params
        inner = [_of(part) for part in _jaxprs(params)]
        if name == "dot_general":
            (contracted, _), _ = params["dimension_numbers"]
            shape = equation.invars[0].aval.shape
            total += 2 * math.prod(equation.outvars[0].aval.shape) * math.prod(shape[axis] for axis in contracted)
        elif name == "conv_general_dilated":
            kernel = equation.invars[1].aval.shape
            outputs = kernel[params["dimension_numbers"].rhs_spec[0]]
            total += 2 * math.prod(equation.outvars[0].aval.shape) * math.prod(kernel) // outputs
        elif name == "scan":
            total += params["length"] * sum(inner)
        elif name == "cond":
            total += min(filter(None, inner), default=0)
        else:
            total += sum(inner)
    return total


def _jaxprs(params: dict[str, Any]) -> list[Jaxpr]:
    jaxprs = []
    for value in params.values():
        for part in value if isinstance(value, tuple | list) else [value]:
            if isinstance(part, ClosedJaxpr):
                jaxprs.append(part.jaxpr)
            elif isinstance(part, Jaxpr):
                jaxprs.append(part)
    return jaxprs
