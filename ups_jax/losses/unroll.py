"""How a loss is unrolled in time: steps without a gradient first, cuts of the gradient, what is kept for it.

Both walks carry the window of frames that a time step sees, and keep every value of an ordinary unrolled scan.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

# The window that the next step sees, and what this step is worth by name.
Advance = Callable[[Any, Any], tuple[Any, Any]]


def push_forward(
    step: Callable[[Any, Float[Array, "b k *s c"]], Float[Array, "b *s c"]],
    params: Any,
    window: Float[Array, "b k *s c"],
    steps: int,
) -> Float[Array, "b k *s c"]:
    """The window after `steps` of the model's own steps, as a constant: no gradient reaches what led there.

    The pushforward trick of Brandstetter et al. (2022, section 3.1): what is scored starts from the errors that the
    model makes, and only the scored steps are taught to live with them.
    """
    if steps == 0:
        return window
    fixed = jax.lax.stop_gradient(params)

    def advance(window: Float[Array, "b k *s c"], _: None) -> tuple[Float[Array, "b k *s c"], None]:
        return jnp.concatenate([window[:, 1:], step(fixed, window)[:, None]], axis=1), None

    return jax.lax.stop_gradient(jax.lax.scan(advance, jax.lax.stop_gradient(window), None, length=steps)[0])


def unroll(
    advance: Advance,
    window: Float[Array, "b k *s c"],
    targets: Float[Array, "t b *s c"],
    *,
    truncate: int | None = None,
    recompute: bool = False,
) -> Any:
    """The values of `advance(window, target) -> (next window, values)` over all targets, stacked on the first axis.

    With `truncate` the gradient does not pass from step n to step n - 1 where n is a multiple of it (truncated
    back-propagation through time); values stay the same. With `recompute` a step keeps its window alone for the
    backward pass, and is made again there.
    """

    every = len(targets) if truncate is None else truncate

    def cut(window: Any, numbered: tuple[Array, Any]) -> tuple[Any, Any]:
        number, target = numbered
        here = (number > 0) & (number % every == 0)
        return advance(jnp.where(here, jax.lax.stop_gradient(window), window), target)

    body: Advance = advance if truncate is None else cut
    over: Any = targets if truncate is None else (jnp.arange(len(targets)), targets)
    if recompute:
        # Inside a scan nothing can be merged with the forward pass, so that no barrier is needed against it.
        body = jax.checkpoint(body, prevent_cse=False)
    return jax.lax.scan(body, window, over)[1]
