"""The closed set of covariance structures, and what a Gaussian formula asks of each one.

A structure keeps the numbers its user gave, since the difference of q and p must be formed
before anything is rounded. Per coordinate: `Scale`, `Variance`, `LogVariance`. For a whole
matrix: `ScaleTril`, `Covariance`, `Precision`. Each sees one event and knows its lower
triangular factor C with S = C C^T (kept as a vector, as C or as C^-1: its `factor`), how to
apply C and C^-1, and the change X = C^-1 dC that a change of its numbers makes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, TypeVar, dataclass_transform

import jax.numpy as jnp
from jax import Array

from kljax import _pytree, doubled, linalg, special
from kljax.doubled import Doubled

_T = TypeVar("_T")


@dataclass_transform(frozen_default=True)
def _node(cls: type[_T]) -> type[_T]:
    cls = dataclass(frozen=True, eq=False)(cls)
    return _pytree.register(cls, ["value"])


@dataclass(frozen=True, eq=False)
class Structure(ABC):
    """What every structure answers; b is a matrix with d rows."""

    value: Array

    @abstractmethod
    def factorize(self) -> Array:
        """The factor that the other methods take."""

    @abstractmethod
    def whiten(self, factor: Array, b: Array) -> Array:
        """C^-1 b."""

    @abstractmethod
    def whiten_transposed(self, factor: Array, b: Array) -> Array:
        """C^-T b."""

    @abstractmethod
    def color(self, factor: Array, b: Array) -> Array:
        """C b."""

    @abstractmethod
    def factor_diagonal(self, factor: Array) -> Array:
        """The diagonal of C."""

    @abstractmethod
    def change(self, factor: Array, tangent: Any) -> Array:
        """X = C^-1 dC, lower triangular."""

    @abstractmethod
    def half_square_change(self, tangent: Any, delta: Array, y: Array, slope: Array) -> Array:
        """D |y|^2 / 2 for y = C^-1 delta at fixed delta; slope = C^-T y."""

    def half_log_det(self, factor: Array) -> Array:
        """Log |C| = log |S| / 2."""
        return jnp.sum(special.log(self.factor_diagonal(factor)))

    def dense_factor(self, factor: Array) -> Array:
        """C as a matrix."""
        size = factor.shape[0]
        return self.color(factor, jnp.eye(size, dtype=factor.dtype))

    def dense(self, factor: Array) -> Array:
        """S as a matrix."""
        c = self.dense_factor(factor)
        return linalg.matmul(c, c.T)

    def variances(self, factor: Array) -> Array:
        """The diagonal of S."""
        return jnp.sum(self.dense_factor(factor) ** 2, axis=1)


# ---- one number a coordinate --------------------------------------------------------------


class Diagonal(Structure):
    """Independent coordinates; `factor` is the vector of standard deviations."""

    @abstractmethod
    def scale(self) -> Array:
        """Standard deviations s."""

    @abstractmethod
    def variance(self) -> Array:
        """Variances v = s^2."""

    @abstractmethod
    def log_scale(self) -> Array:
        """Log s."""

    @abstractmethod
    def log_variance(self) -> Doubled:
        """Log v to twice the digits."""

    @abstractmethod
    def rate(self) -> Array:
        """D log v / d value."""

    def factorize(self) -> Array:
        return self.scale()

    def whiten(self, factor: Array, b: Array) -> Array:
        return b / factor[:, None]

    def whiten_transposed(self, factor: Array, b: Array) -> Array:
        return b / factor[:, None]

    def color(self, factor: Array, b: Array) -> Array:
        return b * factor[:, None]

    def factor_diagonal(self, factor: Array) -> Array:
        return factor

    def change(self, factor: Array, tangent: Any) -> Array:
        return jnp.diag(0.5 * self.rate() * tangent.value)

    def half_square_change(self, tangent: Any, delta: Array, y: Array, slope: Array) -> Array:
        return -0.5 * jnp.sum(y[:, 0] ** 2 * self.rate() * tangent.value)

    def half_log_det(self, factor: Array) -> Array:
        return jnp.sum(self.log_scale())

    def dense_factor(self, factor: Array) -> Array:
        return jnp.diag(factor)

    def dense(self, factor: Array) -> Array:
        return jnp.diag(self.variance())

    def variances(self, factor: Array) -> Array:
        return self.variance()


@_node
class Scale(Diagonal):
    """Standard deviations s > 0."""

    def scale(self) -> Array:
        return self.value

    def variance(self) -> Array:
        return self.value * self.value

    def log_scale(self) -> Array:
        return special.log(self.value)

    def log_variance(self) -> Doubled:
        half = _settled_log(self.value)
        return Doubled(2 * half.high, 2 * half.low)

    def rate(self) -> Array:
        return 2 * special.reciprocal(self.value)


@_node
class Variance(Diagonal):
    """Variances v = s^2 > 0."""

    def scale(self) -> Array:
        return jnp.sqrt(self.value)

    def variance(self) -> Array:
        return self.value

    def log_scale(self) -> Array:
        return 0.5 * special.log(self.value)

    def log_variance(self) -> Doubled:
        return _settled_log(self.value)

    def rate(self) -> Array:
        return special.reciprocal(self.value)


@_node
class LogVariance(Diagonal):
    """Log-variances l = log v."""

    def scale(self) -> Array:
        return special.exp(0.5 * self.value)

    def variance(self) -> Array:
        return special.exp(self.value)

    def log_scale(self) -> Array:
        return 0.5 * self.value

    def log_variance(self) -> Doubled:
        return doubled.exactly(self.value)

    def rate(self) -> Array:
        return jnp.ones_like(self.value)


def _settled_log(x: Array) -> Doubled:
    """Log x, once: of a prior without batch axes not again for every q."""
    log = doubled.log(x)
    return Doubled(linalg.settled(log.high), linalg.settled(log.low))


# ---- a matrix -----------------------------------------------------------------------------


class _ByFactor(Structure):
    """Structures whose factor is C itself."""

    def whiten(self, factor: Array, b: Array) -> Array:
        return linalg.solve_lower(factor, b)

    def whiten_transposed(self, factor: Array, b: Array) -> Array:
        return linalg.solve_lower_transposed(factor, b)

    def color(self, factor: Array, b: Array) -> Array:
        return linalg.matmul(factor, b)

    def factor_diagonal(self, factor: Array) -> Array:
        return linalg.diagonal(factor)

    def dense_factor(self, factor: Array) -> Array:
        return factor


@_node
class ScaleTril(_ByFactor):
    """A lower triangular Cholesky factor C."""

    def factorize(self) -> Array:
        # Or what stands above the diagonal, which must be 0, would be given a gradient.
        return jnp.tril(self.value)

    def change(self, factor: Array, tangent: Any) -> Array:
        return linalg.solve_lower(factor, jnp.tril(tangent.value))

    def half_square_change(self, tangent: Any, delta: Array, y: Array, slope: Array) -> Array:
        return -jnp.sum(slope * linalg.matmul(jnp.tril(tangent.value), y))


@_node
class Covariance(_ByFactor):
    """A covariance matrix S, symmetric."""

    def factorize(self) -> Array:
        return linalg.cholesky(self.value)

    def change(self, factor: Array, tangent: Any) -> Array:
        return linalg.lower_half(linalg.whiten_both(factor, tangent.value))

    def half_square_change(self, tangent: Any, delta: Array, y: Array, slope: Array) -> Array:
        return -0.5 * jnp.sum(slope * linalg.matmul(tangent.value, slope))

    def dense(self, factor: Array) -> Array:
        return self.value

    def variances(self, factor: Array) -> Array:
        return linalg.diagonal(self.value)


@_node
class Precision(Structure):
    """A precision matrix P = S^-1, symmetric; `factor` is C^-1, since P = C^-T C^-1."""

    def factorize(self) -> Array:
        # The Cholesky factor of P read backwards is C^-1 with both axes reversed.
        return linalg.flip(linalg.cholesky(linalg.flip(self.value))).T

    def whiten(self, factor: Array, b: Array) -> Array:
        return linalg.matmul(factor, b)

    def whiten_transposed(self, factor: Array, b: Array) -> Array:
        return linalg.matmul(factor.T, b)

    def color(self, factor: Array, b: Array) -> Array:
        return linalg.solve_lower(factor, b)

    def factor_diagonal(self, factor: Array) -> Array:
        return special.reciprocal(linalg.diagonal(factor))

    def change(self, factor: Array, tangent: Any) -> Array:
        half = linalg.solve_lower_right(factor, tangent.value)
        both = linalg.solve_lower_right(factor, half.T)
        return -linalg.lower_half(linalg.symmetrize(both))

    def half_square_change(self, tangent: Any, delta: Array, y: Array, slope: Array) -> Array:
        column = delta[:, None]
        return 0.5 * jnp.sum(column * linalg.matmul(tangent.value, column))
