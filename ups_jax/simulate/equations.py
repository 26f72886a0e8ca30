"""What is left of the embedded tasks' equations between two frames: the residual that a predicted step leaves.

Linear parts act on Fourier modes, so that the stiffness of high derivatives is divided out and not counted as an error.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Complex, Float

# Wavenumbers of each axis in radians per unit, broadcast against (b, *k); Fourier transforms of real fields (b, *s).
Waves = list[Float[np.ndarray, "..."]]


@dataclass(frozen=True, kw_only=True)
class Equation:
    """u_t = linear u + nonlinear(u), periodic; `linear` is the factor of each mode for coefficients of (b, 1, ..)."""

    linear: Callable[[Waves, Float[Array, "b ..."]], Array | np.ndarray]
    nonlinear: Callable[[Float[Array, "b *s"], Waves], Float[Array, "b *s"]]


def tendency(
    equation: Equation, u: Float[Array, "b *s"], coefficient: Float[Array, " b"], extent: tuple[float, ...]
) -> Float[Array, "b *s"]:
    """u_t of fields on a grid over `extent`, one length an axis."""
    waves, factor = _symbols(equation, u, coefficient, extent)
    return _back(factor * _forth(u), u) + equation.nonlinear(u, waves)


def residual(
    equation: Equation,
    before: Float[Array, "b *s"],
    after: Float[Array, "b *s"],
    dt: float,
    coefficient: Float[Array, " b"],
    extent: tuple[float, ...],
) -> Float[Array, " b"]:
    """Root mean square distance of `after` from the trapezoidal rule's step, to first order in the linear part.

    (1/dt - L/2)^-1 [(after - before) / dt - (f(before) + f(after)) / 2] with f the tendency and L its linear part. Of
    the true step it is the rule's own error, of order dt^3.
    """
    _, factor = _symbols(equation, after, coefficient, extent)
    both = tendency(equation, before, coefficient, extent) + tendency(equation, after, coefficient, extent)
    left = _forth((after - before) / dt - both / 2)
    distance = _back(left / (1 / dt - factor / 2), after)
    return jnp.sqrt(jnp.mean(jnp.square(distance), tuple(range(1, distance.ndim))))


def _transport(u: Float[Array, "b *s"], waves: Waves) -> Float[Array, "b *s"]:
    """-(u^2 / 2)_x."""
    return _back(-0.5j * waves[0] * _forth(jnp.square(u)), u)


def _vorticity_transport(w: Float[Array, "b *s"], waves: Waves) -> Float[Array, "b *s"]:
    """-v . grad w with curl v = w: v = (psi_y, -psi_x) and Laplace psi = -w."""
    x, y = waves
    transform = _forth(w)
    psi = transform / np.where(x**2 + y**2 == 0, np.inf, x**2 + y**2)
    gradients = [_back(1j * k * transform, w) for k in (x, y)]
    return -_back(1j * y * psi, w) * gradients[0] + _back(1j * x * psi, w) * gradients[1]


def _diffusion(waves: Waves, coefficient: Float[Array, "b ..."]) -> Array:
    return -coefficient * sum(k**2 for k in waves)


EQUATIONS = {
    "burgers1d": Equation(linear=_diffusion, nonlinear=_transport),
    "advection1d": Equation(linear=lambda waves, beta: -1j * beta * waves[0], nonlinear=lambda u, _: jnp.zeros_like(u)),
    "ks1d": Equation(linear=lambda waves, _: waves[0] ** 2 - waves[0] ** 4, nonlinear=_transport),
    "ns2d": Equation(linear=_diffusion, nonlinear=_vorticity_transport),
}


def _symbols(
    equation: Equation, u: Float[Array, "b *s"], coefficient: Float[Array, " b"], extent: tuple[float, ...]
) -> tuple[Waves, Array]:
    axes = len(extent)
    waves = []
    for axis, (size, length) in enumerate(zip(u.shape[1:], extent, strict=True)):
        numbers = np.fft.rfftfreq(size, 1 / size) if axis == axes - 1 else np.fft.fftfreq(size, 1 / size)
        shape = [-1 if other == axis else 1 for other in range(axes)]
        waves.append((2 * np.pi / length * numbers).astype(np.float32).reshape(1, *shape))
    return waves, jnp.asarray(equation.linear(waves, coefficient.reshape(-1, *(1,) * axes)))


def _forth(u: Float[Array, "b *s"]) -> Complex[Array, "b *k"]:
    return jnp.fft.rfftn(u, axes=tuple(range(1, u.ndim)))


def _back(transform: Any, like: Float[Array, "b *s"]) -> Float[Array, "b *s"]:
    """The real field of a transform (b, *k), on the grid of another."""
    return jnp.fft.irfftn(transform, like.shape[1:], axes=tuple(range(1, like.ndim)))
