"""Residuals of predicted time steps under the equations of the built-in tasks.

In Fourier space a residual is divided by the linear operator of an implicit time step. Otherwise high derivatives would
amplify small errors of short waves.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Complex, Float

# Wavenumbers along each axis in radians per unit length. They broadcast against (b, *k), the shape of the real Fourier
# transforms of fields (b, *s).
Wavenumbers = list[Float[np.ndarray, "..."]]


@dataclass(frozen=True, kw_only=True)
class Equation:
    """A periodic equation u_t = L u + N(u) with a linear part L and a nonlinear part N.

    Attributes:
        linear: Function (wavenumbers, coefficient (b, 1, ..)) -> symbol of L, its factor for each Fourier mode.
        nonlinear: Function (u, wavenumbers) -> N(u).
    """

    linear: Callable[[Wavenumbers, Float[Array, "b ..."]], Array | np.ndarray]
    nonlinear: Callable[[Float[Array, "b *s"], Wavenumbers], Float[Array, "b *s"]]


def tendency(
    equation: Equation, u: Float[Array, "b *s"], coefficient: Float[Array, " b"], extent: tuple[float, ...]
) -> Float[Array, "b *s"]:
    """Return the time derivative u_t that an equation gives to fields `u` on a periodic grid.

    Args:
        coefficient: PDE coefficient of each sample.
        extent: Length of the domain along each axis.
    """
    waves, symbol = _wavenumbers_and_symbol(equation, u, coefficient, extent)
    return _inverse_transform(symbol * _transform(u), u) + equation.nonlinear(u, waves)


def trapezoidal_residual(
    equation: Equation,
    before: Float[Array, "b *s"],
    after: Float[Array, "b *s"],
    dt: float,
    coefficient: Float[Array, " b"],
    extent: tuple[float, ...],
) -> Float[Array, " b"]:
    """Return the residual of a time step under the trapezoidal rule, as root mean square over space.

    It is the rms of (1/dt - L/2)^-1 [(after - before) / dt - (f(before) + f(after)) / 2], where f(u) = u_t
    and L is the linear part of f. The residual of an exact step is the error of the trapezoidal rule, of order dt^3.

    Args:
        coefficient: PDE coefficient of each sample.
        extent: Length of the domain along each axis.
    """
    _, symbol = _wavenumbers_and_symbol(equation, after, coefficient, extent)
    tendency_sum = tendency(equation, before, coefficient, extent) + tendency(equation, after, coefficient, extent)
    defect = _transform((after - before) / dt - tendency_sum / 2)
    distance = _inverse_transform(defect / (1 / dt - symbol / 2), after)
    return jnp.sqrt(jnp.mean(jnp.square(distance), tuple(range(1, distance.ndim))))


def _burgers_transport(u: Float[Array, "b *s"], waves: Wavenumbers) -> Float[Array, "b *s"]:
    """Return the nonlinear term of Burgers' equation, -(u^2 / 2)_x."""
    return _inverse_transform(-0.5j * waves[0] * _transform(jnp.square(u)), u)


def _vorticity_transport(w: Float[Array, "b *s"], waves: Wavenumbers) -> Float[Array, "b *s"]:
    """Return the transport of vorticity, -v . grad w, with the velocity v = (psi_y, -psi_x) and Laplace psi = -w."""
    x, y = waves
    transform = _transform(w)
    psi = transform / np.where(x**2 + y**2 == 0, np.inf, x**2 + y**2)
    w_x, w_y = (_inverse_transform(1j * k * transform, w) for k in (x, y))
    return -_inverse_transform(1j * y * psi, w) * w_x + _inverse_transform(1j * x * psi, w) * w_y


def _diffusion_symbol(waves: Wavenumbers, coefficient: Float[Array, "b ..."]) -> Array:
    """Return the symbol of `coefficient` times the Laplacian, -coefficient |k|^2."""
    return -coefficient * sum(k**2 for k in waves)


EQUATIONS = {
    "burgers1d": Equation(linear=_diffusion_symbol, nonlinear=_burgers_transport),
    "advection1d": Equation(linear=lambda waves, beta: -1j * beta * waves[0], nonlinear=lambda u, _: jnp.zeros_like(u)),
    "ks1d": Equation(linear=lambda waves, _: waves[0] ** 2 - waves[0] ** 4, nonlinear=_burgers_transport),
    "ns2d": Equation(linear=_diffusion_symbol, nonlinear=_vorticity_transport),
}


def _wavenumbers_and_symbol(
    equation: Equation, u: Float[Array, "b *s"], coefficient: Float[Array, " b"], extent: tuple[float, ...]
) -> tuple[Wavenumbers, Array]:
    """Return the wavenumbers of the grid of `u` and the symbol of the equation's linear part."""
    axes = len(extent)
    waves = []
    for axis, (size, length) in enumerate(zip(u.shape[1:], extent, strict=True)):
        numbers = np.fft.rfftfreq(size, 1 / size) if axis == axes - 1 else np.fft.fftfreq(size, 1 / size)
        shape = [-1 if other_axis == axis else 1 for other_axis in range(axes)]
        waves.append((2 * np.pi / length * numbers).astype(np.float32).reshape(1, *shape))
    return waves, jnp.asarray(equation.linear(waves, coefficient.reshape(-1, *(1,) * axes)))


def _transform(u: Float[Array, "b *s"]) -> Complex[Array, "b *k"]:
    """Return the real Fourier transform of fields over all space axes."""
    return jnp.fft.rfftn(u, axes=tuple(range(1, u.ndim)))


def _inverse_transform(
    transform: Complex[Array | np.ndarray, "b *k"], like: Float[Array, "b *s"]
) -> Float[Array, "b *s"]:
    """Return the real fields whose Fourier transform is `transform`, on the grid of `like`."""
    return jnp.fft.irfftn(transform, like.shape[1:], axes=tuple(range(1, like.ndim)))
