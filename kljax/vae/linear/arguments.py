"""What the functions of a linear VAE take, checked once and in one dtype."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
from jax import Array
from jax.core import Tracer
from jax.typing import ArrayLike

from kljax import _record
from kljax.vae import _inputs
from kljax.vae.terms import TermWeights, checked

ONES = TermWeights()
# What becomes a vector.
Vector = ArrayLike | Sequence[float]


class Problem(NamedTuple):
    """Eigenvalues of the data, noise variance and the weights, in one dtype.

    Attributes:
        l: eigenvalues, shape (n,).
        v: noise variance.
        a: weight of the trace.
        b: weight of the Mahalanobis term.
        c: weight of the log-determinant.
    """

    l: Array
    v: Array
    a: Array
    b: Array
    c: Array

    @property
    def r(self) -> Array:
        """Eigenvalues in units of the noise variance."""
        return self.l / self.v

    @property
    def weights(self) -> TermWeights:
        return TermWeights(self.a, self.b, self.c)

    def is_valid(self) -> Array:
        """For every eigenvalue; what comes of invalid values is nan."""
        weights = (self.a >= 0) & (self.b >= 0) & (self.c >= 0)
        finite = jnp.isfinite(self.l) & jnp.isfinite(self.v)
        return (self.l >= 0) & finite & (self.v > 0) & weights


def problem(values: Vector, noise_variance: ArrayLike, weights: TermWeights) -> Problem:
    """The arguments as arrays of one dtype, at least float32."""
    l, v = eigenvalues(values), _inputs.positive("noise_variance", noise_variance)
    numbers = (l, v, *checked(weights))
    dtype = jnp.result_type(*numbers)
    return Problem(*(jnp.asarray(x, dtype) for x in numbers))


def eigenvalues(values: Vector) -> Array:
    l = _record.as_array("eigenvalues", values)
    if l.ndim != 1 or not l.size:
        raise ValueError(
            f"eigenvalues must be a vector of at least one number; got shape {l.shape}."
        )
    if not isinstance(l, Tracer) and not jnp.all(l >= 0):
        raise ValueError(f"eigenvalues must be >= 0; the smallest is {float(jnp.min(l)):g}.")
    return l.astype(jnp.promote_types(l.dtype, jnp.float32))


def square(name: str, value: ArrayLike, size: int) -> Array:
    x = _record.as_array(name, value)
    if x.shape != (size, size):
        raise ValueError(f"{name} has shape {x.shape}; it must be ({size}, {size}).")
    return x


def safe(x: Array) -> Array:
    """x, or 1 in place of 0: to divide by where the quotient is not used."""
    return jnp.where(x == 0, jnp.ones_like(x), x)


def marked(x: Array, exists: Array, valid: Array) -> Array:
    """x, or nan.

    With a gradient of 0 where there is no point, so that one can choose among points, and of
    nan for invalid arguments.
    """
    mark = jnp.where(valid, 1.0, jnp.nan).astype(x.dtype)
    return jnp.where(exists | ~valid, x, jnp.nan) * mark
