"""How a loss is unrolled in time: steps without a gradient first, cuts of the gradient, what is kept for it.

Both walks carry the window of frames that a time step sees, and keep every value of an ordinary unrolled scan.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

# The window that the next step sees, and what this step is worth by name.
Advance = Callable[[Any, Any], tuple[Any, Any]]


def next_window(window: Float[Array, "b k *s c"], newest: Float[Array, "b *s c"]) -> Float[Array, "b k *s c"]:
    """The frames that the step after sees."""
    return jnp.concatenate([window[:, 1:], newest[:, None]], axis=1)


def push_forward(
    step: Callable[[Any, Any], Array],
    params: Any,
    window: Float[Array, "b *k"],
    truth: Float[Array, "t b *s"],
    given: Int[Array, " b"],
    follow: Callable[[Any, Any], Array] = next_window,
) -> Float[Array, "b *k"]:
    """The window after the steps of `truth`, as a constant: no gradient reaches what led there. The first `given` steps
    of a row are the true ones, the others the model's own. `follow(window, newest)` is what the step after sees.

    The pushforward trick of Brandstetter et al. (2022, section 3.1): what is scored starts from the errors that the
    model makes, and only the scored steps are taught to live with them. Rows that start from the truth have to be among
    them: a model that is scored after its own steps alone learns what makes up for these, and no step of time.
    """
    if not len(truth):
        return window
    fixed = jax.lax.stop_gradient(params)

    def advance(window: Float[Array, "b *k"], numbered: tuple[Array, Array]) -> tuple[Any, None]:
        number, true = numbered
        is_given = (number < given).reshape(-1, *(1,) * (true.ndim - 1))
        newest = jnp.where(is_given, true, step(fixed, window))
        return follow(window, newest), None

    walked, _ = jax.lax.scan(advance, jax.lax.stop_gradient(window), (jnp.arange(len(truth)), truth))
    return jax.lax.stop_gradient(walked)


def unroll(
    advance: Advance,
    window: Float[Array, "b *k"],
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
    body, over = _body(advance, targets, truncate, recompute)
    return jax.lax.scan(body, window, over)[1]


def unroll_to_the_end(
    advance: Advance,
    end: Advance,
    window: Float[Array, "b *k"],
    targets: Float[Array, "t b *s c"],
    *,
    truncate: int | None = None,
    recompute: bool = False,
) -> Any:
    """The same with `end` for the last step, after which there is none, so that it need not make a window for one. Of
    a single step there is no scan."""
    body, over = _body(advance, targets, truncate, recompute)
    before, last = jax.tree.map(lambda each: each[:-1], over), jax.tree.map(lambda each: each[-1], over)
    ended, _ = _body(end, targets, truncate, recompute)
    if len(targets) == 1:
        return jax.tree.map(lambda value: value[None], ended(window, last)[1])
    window, values = jax.lax.scan(body, window, before)
    return jax.tree.map(lambda each, value: jnp.concatenate([each, value[None]]), values, ended(window, last)[1])


def _body(advance: Advance, targets: Any, truncate: int | None, recompute: bool) -> tuple[Advance, Any]:
    """The step of a scan, and what it goes over."""
    every = len(targets) if truncate is None else truncate

    def cut(window: Any, numbered: tuple[Array, Any]) -> tuple[Any, Any]:
        number, target = numbered
        here = (number > 0) & (number % every == 0)
        return advance(jnp.where(here, jax.lax.stop_gradient(window), window), target)

    body: Advance = advance if truncate is None else cut
    over: Any = targets if truncate is None else (jnp.arange(len(targets)), targets)
    # Inside a scan nothing can be merged with the forward pass, so that no barrier is needed against it.
    return (jax.checkpoint(body, prevent_cse=False) if recompute else body), over
